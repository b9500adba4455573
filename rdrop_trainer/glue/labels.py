"""The labels of a user's own file: names of classes, or the numbers of a regression."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import InputError
from .examples import IGNORED, as_whole_number, find_column, is_missing, spelling
from .readers import read_rows

_DECIMAL_COMMA = re.compile(r"[-+]?\d+(,\d+)?")
logger = logging.getLogger(__name__)


def find_labels(path: str | Path, label_column: str) -> list[str]:
    """The sorted label names of a file; empty if they are decimal numbers.

    Numbers that are all whole are names of classes, 1.0 as much as 1: pandas writes whole numbers so where a column
    has gaps.
    """
    found: dict[str, tuple[str, Any]] = {}  # name -> the first (where, value) with this spelling
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        value = row[find_column(row, (label_column,), where)]
        if not is_missing(value):
            found.setdefault(spelling(value, where), (where, value))
    whole = [as_whole_number(name) for name in found]
    names = [name for name in dict.fromkeys(whole if None not in whole else found) if name != str(IGNORED)]
    if not names:
        raise InputError(f"{path}: the column {label_column!r} is empty, expected labels to learn")
    if None in whole and all(_is_number(name) for name in names):
        logger.warning("%s: the labels are decimal numbers, so this is a regression", path)
        return []
    if None in whole:
        _check_one_type(found[name] for name in names)
        if all(_DECIMAL_COMMA.fullmatch(name) for name in names):
            where, value = next(found[name] for name in names if "," in name)
            raise InputError(
                f"{where}: the label is {value!r}, expected decimal numbers to have a point, not a comma, and names of "
                "classes not to look like them (0-1, say)"
            )
        _warn_of_alike(path, names)
    if len(names) == 1:
        raise InputError(f"{path}: every row has the label {names[0]!r}, expected at least two different ones")
    names.sort(key=None if None in whole else Decimal)
    if None not in whole and any("." in name for name in found):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        logger.warning(
            "%s: the labels are numbers such as %s, all of them whole, so these are %d classes (%s); for a regression "
            "add --metric pearson",
            *(path, next(name for name in found if "." in name), len(names), shown),
        )
    return names


def _warn_of_alike(path: str | Path, names: Iterable[str]) -> None:
    """Say it where names are different classes and look like one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            logger.warning(
                "%s: the labels %a and %a are two classes; if they are one, write them alike", path, other, name
            )


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
