"""Load the splits of a task from files, from a folder of the official files, or from the Hub."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from ..hub.client import offline_if_unreached
from ..hub.origin import keep_origin
from .conll import read_sentences
from .examples import find_column, text_of, to_dataset
from .pairs import read_pairs
from .passages import to_passages
from .readers import Rows, read_rows, read_values
from .task import Task
from .textfiles import SUFFIXES, check_file, lines_of

logger = logging.getLogger(__name__)


def load_file(task: Task, split: str, path: str | Path, *, classic: bool = False) -> datasets.Dataset:
    """Load one file; `classic`: its columns may be known by their position, as in the .tsv files of glue_data."""
    path = Path(path)
    if task.reads_passages:
        return _load_passages(task, split, [path])
    if task.head == "tokens" and task.suite == "custom":
        return to_dataset(task, split, read_sentences(path), str(path))
    if task.is_language_model:
        return _load_lines(task, path)
    if task.head == "seq2seq" and task.suite == "custom":
        return to_dataset(task, split, read_pairs(path), str(path))
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


def _load_lines(task: Task, path: Path) -> datasets.Dataset:
    """Load the lines of a text, blank ones too, or the texts of a column."""
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".txt":
        lines = [_text_alone(task, row, f"{path}:{number}") for number, row in read_rows(path)]
    else:
        check_file(path)
        lines = [line for _, line in lines_of(path, limit=None)]
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: is empty, expected text")
    return datasets.Dataset.from_dict({"text": lines, "idx": list(range(len(lines)))})


def _text_alone(task: Task, row: dict, where: str) -> str:
    advice = "; --text_columns names that of the texts"
    return text_of(row, find_column(row, task.sources("text"), where, advice=advice), where)


def _has_header(task: Task, path: Path) -> bool:
    """Whether the first line of a file that should have none names the columns after all."""
    _, first = next(read_rows(path, header=task.headerless), (0, {}))
    found = {cell.strip() for cell in first.values()}
    wanted = (task.label_sources, *(task.sources(column) for column in task.text_columns))
    return all(found.intersection(names) for names in wanted)


def _load_passages(task: Task, split: str, paths: Sequence[Path]) -> datasets.Dataset:
    """Load rows about passages from one or more files, with their answers where these are in a separate file (ChID)."""

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
    """The header of a classic .tsv. A column without a known name gets its name by position."""
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


def load_folder(task: Task, data_dir: Path) -> dict[str, datasets.Dataset]:
    """Load the splits in a folder of official files, or in the subfolder of the task."""
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
        loaded[split] = load_file(task, split, path, classic=path.suffix == ".tsv")
    if not loaded:
        expected = ", ".join(dict.fromkeys(stems[0] for stems in task.files.values()))
        raise InputError(
            f"data_dir {data_dir}: no data for {task.name}, expected {expected} (.tsv or .json) there or in its folder "
            f"{task.folders[0]}"
        )
    return loaded


def load_hub(task: Task, cache_dir: str | None, token: str | bool | None) -> dict[str, datasets.Dataset]:
    """Load the splits on the Hub."""
    if task.hub is None:
        raise InputError(f"{task.name} is not on the Hub: pass --data_dir with the folder of its files")
    path, config = task.hub
    try:
        with offline_if_unreached():
            raw = datasets.load_dataset(path, config, cache_dir=cache_dir, token=token)
    except Exception as error:  # the network, the cache and the builders each have their own error types
        raise InputError(
            f"the Hub could not be reached for {path} ({config}): {error}; pass --data_dir with a local copy"
        ) from error
    # On the Hub a split may have the name of its file, such as CMRC 2018's "trial"
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
    """The rows, with label names instead of the label ids of the data set."""
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
