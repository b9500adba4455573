"""Turn raw rows of a task into its examples: texts, id and label id."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from ..errors import InputError
from .readers import Rows
from .tag_rows import NOT_IN_A_CELL, one_of, tags_of, tokens_of
from .task import Task

logger = logging.getLogger(__name__)

UNLABELED = -1  # the label of test rows without a label
IGNORED = -100  # the label of rows that have no task loss, only a divergence
_LARGEST = float(np.finfo(np.float32).max)


def to_dataset(task: Task, split: str, rows: Rows, source: str) -> datasets.Dataset:
    """Build one split in memory, in the order of the rows.

    Args:
        split: name of the split. Rows of "train" and "validation" must have a label, or -100 for none; rows of
            "unlabeled" get -100. Rows of "test" must have an id where the task names a column for it.
    """
    kind = split.split("_")[0]
    label_ids = {alias: task.labels.index(name) for alias, name in task.label_aliases.items()}
    texts, ids, labels, left_out = [], [], [], 0
    for position, (line, row) in enumerate(rows):
        where = f"{source}:{line}"
        text = READ_TEXTS.get(task.name, _read_texts)(task, row, where)
        if kind in ("train", "unlabeled") and not task.tolerant and not all("".join(part).strip() for part in text):
            raise InputError(f"{where}: the text is empty, expected some in {' and '.join(task.text_columns)}")
        value = None
        if kind != "unlabeled":
            column = find_column(row, task.label_sources, where, required=kind != "test")
            value = row.get(column)
        if task.head == "tokens":
            label = tags_of(text[0], value, label_ids, where)
        elif task.head == "seq2seq":
            label = None if value is None else text_of(row, column, where).strip() or None
        else:
            label = _label(task, value, label_ids, where)
        if label is None and kind in ("train", "validation"):
            if not task.unlabeled_rows:
                raise InputError(f"{where}: the row has no label ({value!r}), expected {_expected(task)}")
            left_out += 1
            continue
        texts.append(text)
        ids.append(_named_id(task, row, where, kind) or row_id(task, row, position))
        labels.append(label)
    if left_out:
        logger.warning("%s: %d rows without an agreed label were left out of %s", source, left_out, split)
    if not texts:
        raise InputError(f"{source}: is empty, expected rows of data")

    columns = dict(zip(task.text_columns, map(list, zip(*texts, strict=True)), strict=True))
    text_feature = datasets.Value("string")
    features = {c: datasets.List(text_feature) if task.head == "tokens" else text_feature for c in columns}
    columns["idx"], features["idx"] = id_column(ids)
    if task.head == "tokens":
        columns["labels"] = [tags or [] for tags in labels]
        features["labels"] = datasets.List(datasets.Value("int64"))
    elif task.head == "seq2seq":
        columns["target"], features["target"] = labels, datasets.Value("string")
    else:
        missing = IGNORED if kind == "unlabeled" else math.nan if task.is_regression else UNLABELED
        columns["label"] = [missing if label is None else label for label in labels]
        features["label"] = datasets.Value("float32" if task.is_regression else "int64")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def spelling(value: object, where: str) -> str:
    """A raw label as text: JSON writes 0, "0" and true where a .tsv has 0, 0 and true or True."""
    if isinstance(value, (list, dict)):
        raise InputError(f"{where}: the label is {value!r}, expected one name or number")
    text = str(value).strip()
    if NOT_IN_A_CELL.search(text):
        raise InputError(f"{where}: the label {text!r} holds a tab or a line break, expected one line")
    return text.lower() if text in ("True", "False") else text


def is_missing(value: object) -> bool:
    """Whether a raw label stands for none: None, an empty or blank cell, or the NaN of a table with gaps."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_whole_number(text: str) -> str | None:
    """The spelling of a whole number without decimals, as "1" for "1.0"; None if the text is no such number."""
    found = re.fullmatch(r"(-?\d+)(\.0*)?", text)
    return found[1] if found else None


def find_column(row: dict, names: Sequence[str], where: str, required: bool = True, advice: str = "") -> str | None:
    """The first of the names that a row has, or None. If it is required, an error that ends with the advice."""
    for name in names:
        if name in row:
            return name
    if not required:
        return None
    raise InputError(f"{where}: no column {' or '.join(map(repr, names))}, the columns are {', '.join(row)}{advice}")


def text_of(row: dict, column: str, where: str) -> str:
    """The text in a column; an error if it is not text."""
    if not isinstance(row[column], str):
        raise InputError(f"{where}: the column {column!r} holds {row[column]!r}, expected text")
    return row[column]


def _read_texts(task: Task, row: dict, where: str) -> tuple[Any, ...]:
    columns = (find_column(row, task.sources(column), where) for column in task.text_columns)
    if task.head == "tokens":
        return tuple(tokens_of(row[column], where, column) for column in columns)
    return tuple(text_of(row, column, where) for column in columns)


def _read_keywords_and_abstract(task: Task, row: dict, where: str) -> tuple[str, ...]:
    keywords, abstract = (find_column(row, (column,), where) for column in task.text_columns)
    words = row[keywords]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{where}: the column {keywords!r} holds {words!r}, expected a list of words")
    return " ".join(words), text_of(row, abstract, where)


def _read_marked_text(task: Task, row: dict, where: str) -> tuple[str, ...]:
    """The text with `_` around the noun phrase and brackets around the pronoun, as in CLUE's own baselines."""
    text = text_of(row, find_column(row, ("text",), where), where)
    target = row[find_column(row, ("target",), where)]
    try:
        spans = [
            (target["span1_index"], target["span1_text"], "_", "_"),
            (target["span2_index"], target["span2_text"], "[", "]"),
        ]
        matches = all(start >= 0 and text[start : start + len(words)] == words for start, words, _, _ in spans)
    except (KeyError, TypeError):
        matches = False
    if not matches:
        raise InputError(
            f"{where}: the column 'target' holds {target!r}, expected span1_index, span1_text, span2_index and "
            "span2_text that match the text"
        )
    marks = [(start, 1, before) for start, _, before, _ in spans]
    marks += [(start + len(words), 0, after) for start, words, _, after in spans]
    # From right to left, so that no mark moves another. Where two spans touch, the first is closed first.
    for place, _, mark in sorted(marks, reverse=True):
        text = text[:place] + mark + text[place:]
    return (text,)


READ_TEXTS = {"csl": _read_keywords_and_abstract, "cluewsc2020": _read_marked_text}


def _expected(task: Task) -> str:
    if task.head == "seq2seq":
        return "a text"
    if task.is_regression:
        return "a number"
    pairs = zip(task.raw_labels or task.labels, task.labels, strict=True)
    names = [name if name == raw else f"{raw} ({name})" for raw, name in pairs]
    return one_of(names)


def _label(task: Task, value: Any, label_ids: dict[str, int], where: str) -> int | float | None:
    """The id of the label, or the number of a regression; None for a row without a label."""
    if is_missing(value):
        return None
    if task.is_regression:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= _LARGEST:
            raise InputError(f"{where}: the label is {value!r}, expected a number")
        # The Hub has -1 for the missing scores of test rows
        return None if number == UNLABELED and task.score_range and task.score_range[0] > UNLABELED else number
    text = spelling(value, where)
    text = text if text in label_ids else as_whole_number(text) or text
    if text in label_ids:
        return label_ids[text]
    if text == str(IGNORED):
        return IGNORED
    if text in ("-", "-1"):
        return None
    raise InputError(f"{where}: unknown label {value!r}, expected {_expected(task)}")


def _named_id(task: Task, row: dict, where: str, kind: str) -> str | None:
    """The id in the column that the user named, as it is written; it is needed where predictions are to keep it."""
    if task.id_column is None:
        return None
    column = find_column(row, (task.id_column,), where, required=kind == "test")
    value = row.get(column)
    text = "" if is_missing(value) else str(value).strip()
    if kind == "test" and not text:
        raise InputError(f"{where}: the row has no id in {task.id_column!r}")
    if NOT_IN_A_CELL.search(text):
        raise InputError(f"{where}: the id {text!r} holds a tab or a line break, expected one line")
    return text or None


def id_column(ids: Sequence[int | str]) -> tuple[list[int | str], datasets.Value]:
    """The ids of rows as a column, and its type: whole numbers, or text if one of them is."""
    if all(isinstance(value, int) for value in ids):
        return list(ids), datasets.Value("int64")
    return [str(value) for value in ids], datasets.Value("string")


def row_id(task: Task, row: dict, position: int) -> int | str:
    """The id of a row, or its position where it has none."""
    value = row.get("id", row.get("idx"))
    if value is None or value == "":
        return position
    # CLUE's leaderboards want an id back as it was written; elsewhere digits from a .tsv are a number
    if isinstance(value, str) and value.isdecimal() and len(value) < 20 and task.suite in ("glue", "custom"):
        value = int(value)
    return value if isinstance(value, int) and value.bit_length() < 64 else str(value)
