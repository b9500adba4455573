"""Load a task from the Hub, from a folder of the official files, or from a user's own files, into one form.

A row has the task's text columns, `idx` and `label`, whatever the source. A token task has `labels` instead, one tag id
per character; a sequence-to-sequence task the text `target`, None where unknown. Label ids follow the order of the
task's labels: labels are matched by name, never by position. `to_passages` describes rows about passages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from .columns import advice_on_label, choose_text_columns, read_columns
from .examples import READ_TEXTS, find_column
from .labels import find_labels
from .metrics import CORRELATIONS, with_metrics
from .sources import load_file, load_folder, load_hub
from .tasks import Task


def load_task(
    task: Task,
    *,
    data_dir: str | Path | None = None,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    unlabeled_file: str | Path | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> datasets.DatasetDict:
    """Load a named task: from files when any are given, from a folder when `data_dir` is given, else from the Hub.

    Args:
        task: the task.
        data_dir: the task's folder, or the folder above it: `glue_data` with .tsv files, or CLUE's with .json files.
            Every split found there is loaded.
        train_file, validation_file, test_file: files to read instead (for MNLI: the matched sets).
        unlabeled_file: more texts, without labels, for any source. A .txt has one text per line.
        text_columns: names of the text columns in the data, in the task's order, where they are not the usual ones.
        label_column: name of the label column in the data, where it is not the usual one.
        cache_dir: where downloads from the Hub are kept.
        token: a token for the Hub.

    Returns:
        The splits under the names of `task.files`. `label` is an id in the order of `task.labels`, or a float for a
        regression; -1 (of a regression NaN) in test rows without a label, -100 in the split "unlabeled". `idx` is the
        row's own id, or its position where it has none.

    Raises:
        InputError: anything is wrong with the data; the message names file and line.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {kind: path for kind, path in files.items() if path is not None}
    if data_dir is not None and files:
        given = ", ".join(f"{kind}_file" for kind in files)
        raise InputError(f"both data_dir and {given} are given: give the folder or the files")
    if unlabeled_file is not None and (task.reads_passages or task.head == "seq2seq"):
        what = "asks about passages" if task.reads_passages else "writes texts"
        raise InputError(f"{unlabeled_file}: unlabeled rows are for training a classifier, but {task.name} {what}")
    task = _with_columns(task, text_columns, label_column)
    if files:
        loaded = {}
        for kind, path in files.items():
            split = task.split(kind)
            if split is None:
                raise InputError(f"{path}: the task {task.name} has no {kind} split; it has {', '.join(task.files)}")
            loaded[split] = load_file(task, split, path)
    elif data_dir is not None:
        try:
            loaded = load_folder(task, Path(data_dir))
        except PermissionError as error:
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    else:
        loaded = load_hub(task, cache_dir, token)
    if unlabeled_file is not None:
        loaded["unlabeled"] = load_file(task, "unlabeled", unlabeled_file)
    return datasets.DatasetDict(loaded)


def load_files(
    *,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    unlabeled_file: str | Path | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    labels: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> tuple[datasets.DatasetDict, Task]:
    """Load a user's own classification or regression data, for which there is no named task.

    Args:
        train_file, validation_file, test_file, unlabeled_file: the files; at least one of the first three.
        text_columns: one or two columns. Default: as `choose_text_columns` finds them.
        label_column: name of the label column; default: "label".
        id_column: name of the column of ids, which predictions keep as they are written; a test file must have it.
        labels: label names in the order of their ids, if they are known, as from a trained model; an empty sequence
            means a regression. Default: the sorted labels of the training file (else of the validation or test file),
            or a regression if these are decimal numbers or the metrics are correlations.
        metrics: scores to report first, as of `with_metrics`. Default: accuracy, or the correlations of a regression.

    Returns:
        The splits, as `load_task` returns them, and a task "custom" for them.

    Raises:
        InputError: anything is wrong with the data; the message names file and line.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {kind: path for kind, path in files.items() if path is not None}
    if not files:
        raise InputError("no data: give train_file, validation_file or test_file")
    kind, first = next(iter(files.items()))
    label_column = label_column or "label"
    line, columns = read_columns(first)
    if label_column not in (column.name for column in columns) and (labels is None or kind != "test"):
        names = dict.fromkeys(column.name for column in columns)
        find_column(names, (label_column,), f"{first}:{line}", advice=advice_on_label(columns, text_columns or ()))
    if text_columns is None:
        others = {label_column} if id_column is None else {label_column, id_column}
        text_columns = choose_text_columns(first, line, columns, others)
    reserved = {"idx", "label", "labels", label_column}.intersection(text_columns)
    if reserved or len(text_columns) > 2 or len(set(text_columns)) < len(text_columns):
        raise InputError(
            f"text columns {', '.join(text_columns)}: expected one or two different ones, none called idx or label"
        )
    if labels is None:
        labels = () if metrics and set(metrics) <= CORRELATIONS else find_labels(first, label_column)
    task = Task(
        "custom",
        "custom",
        tuple(text_columns),
        tuple(labels) or None,
        metrics=("accuracy",) if labels else ("pearson", "spearmanr"),
        headline=("accuracy",) if labels else ("pearson", "spearmanr"),
        files=dict.fromkeys(files, ()),
        label_sources=(label_column,),
        id_column=id_column,
    )
    task = with_metrics(task, metrics or ())
    named: dict[str, Any] = {f"{kind}_file": path for kind, path in files.items()}
    return load_task(task, **named, unlabeled_file=unlabeled_file), task


def _with_columns(task: Task, text_columns: Sequence[str] | None, label_column: str | None) -> Task:
    """The task with the columns that the user has named for its texts and labels."""
    changes: dict[str, Any] = {}
    if (text_columns or label_column) and task.reads_passages:
        raise InputError(f"text_columns or label_column are given, but {task.name} reads the fields of its own files")
    if text_columns is not None:
        if task.name in READ_TEXTS or task.head == "tokens":
            raise InputError(f"text_columns are given, but {task.name} reads the fields of its official files")
        if len(text_columns) != len(task.text_columns):
            raise InputError(
                f"text_columns names {len(text_columns)} columns ({', '.join(text_columns)}), expected "
                f"{len(task.text_columns)} for {task.name} ({', '.join(task.text_columns)})"
            )
        sources = ((name,) for name in text_columns)
        changes["text_sources"] = dict(zip(task.text_columns, sources, strict=True))
    if label_column is not None:
        changes["label_sources"] = (label_column,)
    return dataclasses.replace(task, **changes, tsv=None, headerless=None) if changes else task
