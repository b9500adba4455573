"""Load a task from the Hub, from a folder of the official files, or from a user's own files, into one form.

A row has the task's text columns, `idx` and `label`, whatever the source. A token task has `labels` instead, one tag id
per character; a sequence-to-sequence task the text `target`, None where unknown. Label ids follow the order of the
task's labels: labels are matched by name, never by position. `to_passages` describes rows about passages.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from .examples import IGNORED, READ_TEXTS, find_column, spelling
from .readers import read_rows
from .sources import load_file, load_folder, load_hub
from .tasks import Task

logger = logging.getLogger(__name__)

_KNOWN_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
_ID_COLUMNS = ("id", "idx", "index")


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
        regression; -1 in test rows without a label, -100 in the split "unlabeled". `idx` is the row's own id, or its
        position where it has none.

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
    labels: Sequence[str] | None = None,
) -> tuple[datasets.DatasetDict, Task]:
    """Load a user's own classification or regression data, for which there is no named task.

    Args:
        train_file, validation_file, test_file, unlabeled_file: the files; at least one of the first three.
        text_columns: one or two columns. Default: a usual name or pair of names ("sentence", "text", "sentence1" and
            "sentence2", ...), else the first one or two columns of text.
        label_column: name of the label column; default: "label".
        labels: label names in the order of their ids, if they are known, as from a trained model; an empty sequence
            means a regression. Default: the sorted labels of the training file (else of the validation or test file),
            or a regression if these are decimal numbers.

    Returns:
        The splits, as `load_task` returns them, and a task "custom" for them.

    Raises:
        InputError: anything is wrong with the data; the message names file and line.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {kind: path for kind, path in files.items() if path is not None}
    if not files:
        raise InputError("no data: give train_file, validation_file or test_file")
    first = next(iter(files.values()))
    label_column = label_column or "label"
    text_columns = tuple(text_columns or _guess_text_columns(first, label_column))
    reserved = {"idx", "label", "labels", label_column}.intersection(text_columns)
    if reserved or len(text_columns) > 2 or len(set(text_columns)) < len(text_columns):
        raise InputError(
            f"text columns {', '.join(text_columns)}: expected one or two different ones, none called idx or label"
        )
    if labels is None:
        labels = _find_labels(first, label_column)
    metrics = ("accuracy",) if labels else ("pearson", "spearmanr")
    task = Task(
        "custom",
        "custom",
        text_columns,
        tuple(labels) or None,
        metrics=metrics,
        headline=metrics,
        files=dict.fromkeys(files, ()),
        label_sources=(label_column,),
    )
    named: dict[str, Any] = {f"{kind}_file": path for kind, path in files.items()}
    return load_task(task, **named, unlabeled_file=unlabeled_file), task


def _guess_text_columns(path: str | Path, label_column: str) -> tuple[str, ...]:
    number, row = next(read_rows(path), (0, None))
    if row is None:
        raise InputError(f"{path}: is empty, expected rows of data")
    for columns in _KNOWN_COLUMNS:
        if set(columns) <= row.keys():
            return columns
    texts = [name for name, value in row.items() if isinstance(value, str) and name not in (label_column, *_ID_COLUMNS)]
    if not texts:
        raise InputError(f"{path}:{number}: no column of text, expected one beside {', '.join(row)}")
    logger.warning("%s: taking %s for the text; name text_columns if that is wrong", path, " and ".join(texts[:2]))
    return tuple(texts[:2])


def _find_labels(path: str | Path, label_column: str) -> list[str]:
    """The sorted label names of a file; empty if they are decimal numbers."""
    found: dict[str, tuple[str, Any]] = {}  # name -> the first (where, value) with this spelling
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        value = row[find_column(row, (label_column,), where, advice="; label_column says which of them has the labels")]
        if value is not None and value != "":
            found.setdefault(spelling(value, where), (where, value))
    found.pop(str(IGNORED), None)
    if not found:
        raise InputError(f"{path}: the column {label_column!r} is empty, expected labels to learn")
    whole = all(name.removeprefix("-").isdecimal() for name in found)
    numbers = all(_is_number(name) for name in found)
    if numbers and not whole:
        logger.warning("%s: the labels are decimal numbers, so this is a regression", path)
        return []
    if not numbers:
        _check_one_type(found.values())
    if len(found) == 1:
        raise InputError(f"{path}: every row has the label {next(iter(found))!r}, expected at least two different ones")
    return sorted(found, key=Decimal if whole else None)


def _check_one_type(labels: Iterable[tuple[str, object]]) -> None:
    """Refuse a mixture of names and other JSON values (numbers, true, false) as labels."""
    (first, example), *others = labels
    for where, value in others:
        if type(value) is not type(example):
            raise InputError(
                f"{where}: the label is {value!r}, expected labels of one type, such as {example!r} ({first})"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # only Python takes 1_0 for a number


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
