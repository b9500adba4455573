"""Load a task from the Hub, from a folder of the official files, or from a user's own files, into one form.

Whatever the source, a row has the task's text columns, `idx` and `label` (`labels`, one tag id per character, for
token tasks; the text `target` for sequence to sequence, None where unknown), and label ids follow the task's own order:
labels are matched by name, never by position. Rows about passages are those of `to_passages`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from ..origin import keep_origin
from .examples import IGNORED, READ_TEXTS, find_column, spelling, to_dataset
from .passages import to_passages
from .readers import Rows, read_rows, read_values
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
        unlabeled_file: more texts, without labels; goes with any source. A .txt has a text per line.
        text_columns: names of the text columns in the data, in the task's order, where they differ from the usual.
        label_column: name of the label column in the data, where it differs from the usual.
        cache_dir: where downloads from the Hub are kept.
        token: a token for the Hub.

    Returns:
        The splits under the names of `task.files`. `label` is an id in `task.labels` order, or a float for a
        regression; -1 in test rows without a label, -100 in the split "unlabeled". `idx` is the row's own id, or its
        position when it has none.

    Raises:
        InputError: anything is wrong with the data, naming file and line.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {kind: path for kind, path in files.items() if path is not None}
    if data_dir is not None and files:
        given = ", ".join(f"{kind}_file" for kind in files)
        raise InputError(f"both data_dir and {given} are given: give the folder or the files")
    if unlabeled_file is not None and (task.reads_passages or task.head == "seq2seq"):
        what = "asks about passages" if task.reads_passages else "writes texts"
        raise InputError(f"{unlabeled_file}: unlabelled rows are for training a classifier, but {task.name} {what}")
    task = _with_columns(task, text_columns, label_column)
    if files:
        loaded = {}
        for kind, path in files.items():
            split = task.split(kind)
            if split is None:
                raise InputError(f"{path}: the task {task.name} has no {kind} split; it has {', '.join(task.files)}")
            loaded[split] = _load_file(task, split, path)
    elif data_dir is not None:
        try:
            loaded = _load_folder(task, Path(data_dir))
        except PermissionError as error:
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    else:
        loaded = _load_hub(task, cache_dir, token)
    if unlabeled_file is not None:
        loaded["unlabeled"] = _load_file(task, "unlabeled", unlabeled_file)
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
        text_columns: one or two columns; by default a usual name or pair of names ("sentence", "text", "sentence1" and
            "sentence2", ...), else the first one or two columns of text.
        label_column: name of the label column, by default "label".
        labels: label names in id order when they are known, as from a trained model; an empty sequence stands for a
            regression. By default the sorted labels of the training file (else of the validation or test file), or a
            regression when these are decimal numbers.

    Returns:
        The splits, as `load_task` returns them, and the task "custom" made for them.

    Raises:
        InputError: anything is wrong with the data, naming file and line.
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
    """The sorted label names of a file; none when they are decimal numbers."""
    found: dict[str, tuple[str, Any]] = {}  # name -> the first (where, value) that is spelled so
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        value = row[find_column(row, (label_column,), where)]
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
    """Refuse labels that are partly names and partly something else of JSON: numbers, true, false."""
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
    return "_" not in text  # 1_0 is a number to Python alone


def _with_columns(task: Task, text_columns: Sequence[str] | None, label_column: str | None) -> Task:
    """The task, reading its texts and labels from the columns a user has named."""
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


def _load_file(task: Task, split: str, path: str | Path, *, classic: bool = False) -> datasets.Dataset:
    path = Path(path)
    if task.reads_passages:
        return _load_passages(task, split, [path])
    header = rename = None
    if path.suffix.lower() == ".txt":
        if split != "unlabeled" or len(task.text_columns) != 1:
            raise InputError(f"{path}: a .txt file can only hold the unlabeled texts of a task with one text column")
        header = task.sources(task.text_columns[0])
    elif task.headerless and split in task.headerless_splits and path.suffix.lower() == ".tsv":
        header = None if _has_header(task, path) else task.headerless
    elif classic and task.tsv:
        rename = functools.partial(_name_by_place, task, split)
    skip_short = task.tolerant and split.startswith(("train", "validation"))
    rows = read_rows(path, header=header, rename=rename, tolerant=task.tolerant, skip_short=skip_short)
    return to_dataset(task, split, rows, str(path))


def _has_header(task: Task, path: Path) -> bool:
    """Whether the first line of a file that should have none names the columns after all."""
    _, first = next(read_rows(path, header=task.headerless), (0, {}))
    found = {cell.strip() for cell in first.values()}
    wanted = (task.label_sources, *(task.sources(column) for column in task.text_columns))
    return all(found.intersection(names) for names in wanted)


def _load_passages(task: Task, split: str, paths: Sequence[Path]) -> datasets.Dataset:
    """The rows of one or more files; where the answers are in a file of their own (ChID), with these."""

    def values() -> Iterator[tuple[str, Any]]:
        for path in paths:
            apart = path.with_name(f"{path.stem}_answer.json")
            answers = next((answers for _, answers in read_values(apart)), None) if apart.exists() else None
            for line, value in read_values(path):
                if answers is not None and isinstance(value, dict):
                    value = {**value, "answers": answers}
                yield f"{path}:{line}", value

    return to_passages(task, split, values(), " and ".join(map(str, paths)))


def _name_by_place(task: Task, split: str, header: list[str]) -> list[str]:
    """The header of a classic .tsv, with names by place for the columns it does not call by a known name."""
    texts, label, test_texts = task.tsv
    wanted = [task.sources(column) for column in task.text_columns]
    places = dict(zip(test_texts if split.startswith("test") else texts, wanted, strict=True))
    if not split.startswith("test"):
        places[label] = task.label_sources
    header = list(header)
    known = {name for names in (*wanted, task.label_sources) for name in names}
    for place, names in places.items():
        if not set(names) & set(header) and place < len(header) and header[place] not in known:
            header[place] = names[0]
    return header


def _load_folder(task: Task, data_dir: Path) -> dict[str, datasets.Dataset]:
    if not data_dir.is_dir():
        raise InputError(f"data_dir {data_dir}: {'is not a directory' if data_dir.exists() else 'no such directory'}")
    names = {name.lower() for name in task.folders}
    inside = sorted(path for path in data_dir.iterdir() if path.is_dir() and path.name.lower() in names)
    folder = inside[0] if inside else data_dir
    suffixes = (".tsv", ".json", ".jsonl", ".csv", ".parquet")
    loaded = {}
    for split, stems in task.files.items():
        candidates = ([folder / f"{part}{suffix}" for part in stem.split("+")] for stem in stems for suffix in suffixes)
        paths = next((paths for paths in candidates if any(path.exists() for path in paths)), None)
        if paths is None:
            continue
        if len(paths) > 1:
            loaded[split] = _load_passages(task, split, paths)
            continue
        (path,) = paths
        if split == "unlabeled" and path.stat().st_size == 0:  # FewCLUE ships cluewsc with such a file
            logger.info("%s: is empty, so there is no split of unlabeled texts", path)
            continue
        loaded[split] = _load_file(task, split, path, classic=path.suffix == ".tsv")
    if not loaded:
        expected = ", ".join(dict.fromkeys(stems[0] for stems in task.files.values()))
        raise InputError(
            f"data_dir {data_dir}: no data for {task.name}, expected {expected} (.tsv or .json) there or in its folder "
            f"{task.folders[0]}"
        )
    return loaded


def _load_hub(task: Task, cache_dir: str | None, token: str | bool | None) -> dict[str, datasets.Dataset]:
    if task.hub is None:
        raise InputError(f"{task.name} is not on the Hub: pass --data_dir with the folder of its files")
    path, config = task.hub
    try:
        raw = datasets.load_dataset(path, config, cache_dir=cache_dir, token=token)
    except Exception as error:  # the network, the cache and the builders each fail in types of their own
        raise InputError(
            f"the Hub could not be reached for {path} ({config}): {error}; pass --data_dir with a local copy"
        ) from error
    # A split may be called there as in the files, such as CMRC 2018's "trial"
    loaded = {}
    for split, stems in task.files.items():
        name = next((name for name in (split, *stems) if name in raw), None)
        if name is not None:
            source, rows = f"{path} {config} {name}", _hub_rows(raw[name])
            if task.reads_passages:
                loaded[split] = to_passages(task, split, ((f"{source}:{n}", row) for n, row in rows), source)
            else:
                loaded[split] = to_dataset(task, split, rows, source)
            keep_origin(loaded[split], raw[name])
    if not loaded:
        raise InputError(f"{path} ({config}) has the splits {', '.join(raw)}, expected {', '.join(task.files)}")
    return loaded


def _hub_rows(dataset: datasets.Dataset) -> Rows:
    """The rows with label names in place of the dataset's own label ids."""
    label_names = {
        column: feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    number = 0
    for batch in dataset.iter(batch_size=1000):
        for column, names in label_names.items():
            batch[column] = [None if value is None or value < 0 else names[value] for value in batch[column]]
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))
