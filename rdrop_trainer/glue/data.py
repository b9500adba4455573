"""Load a task from the Hub, from a folder of the official files, or from files, into one form.

A row has the task's text columns, `idx` and `label`, whatever the source. A token task has `labels` instead, one tag id
per token; a sequence-to-sequence task the text `target`, None where unknown. Label ids follow the order of the
task's labels: labels are matched by name, never by position. `to_passages` describes rows about passages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from .examples import READ_TEXTS
from .sources import load_file, load_folder, load_hub
from .task import Task


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
        data_dir: the task's folder, or the folder above it: `glue_data` with .tsv files, or CLUE's with .json files.
            Every split found there is loaded.
        train_file, validation_file, test_file: files to read instead (for MNLI: the matched sets).
        unlabeled_file: more texts, without labels, for any source. A .txt has one text per line.
        text_columns: names of the text columns in the data, in the task's order, where they are not the usual ones.
        label_column: name of the label column in the data, where it is not the usual one.
        cache_dir, token: of the Hub.

    Returns:
        The splits under the names of `task.files`. `label` is an id in the order of `task.labels`, or a float for a
        regression; -1 (of a regression NaN) in test rows without a label, -100 in the split "unlabeled". `idx` is the
        row's own id, or its position where it has none.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {kind: path for kind, path in files.items() if path is not None}
    if data_dir is not None and files:
        given = ", ".join(f"{kind}_file" for kind in files)
        raise InputError(f"both data_dir and {given} are given: give the folder or the files")
    if unlabeled_file is not None and task.head not in ("sequence", "tokens"):
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
