"""The columns of a user's own file: which hold text, and which might be the label, by what is in them."""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from ..errors import InputError
from .readers import Rows, read_rows

logger = logging.getLogger(__name__)

ROWS = 1000  # of a file that are looked at
_USUAL = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("前提", "假设"),
    ("sentence",),
    ("text",),
)
_ENDS_OF_PAIRS = (("1", "2"), ("a", "b"), ("一", "二"))
_USUAL_LABELS = "label labels target class category sentiment rating stars score y gold 标签 类别 情感".split()

_MISSING = frozenset("na n/a nan nat null none - ?".split()) | {""}
_NUMBER = re.compile(r"[-+]?[$€£¥]? ?(\d[\d,.]*|\.\d+)(e[-+]?\d+)? ?%?", re.IGNORECASE)
_LINK = re.compile(r"(https?://|ftp://|www\.)\S+|[^\s@]+@[^\s@]+\.\w+", re.IGNORECASE)
_ID = re.compile(r"(?=.*\d)[A-Za-z0-9_.:#/{}|=+-]+|[^\W\d]{1,10}\d+")  # tt0111161, 编号001
_WORD = re.compile(r"[!-~]+")  # without a blank; other scripts than Latin write whole sentences so
_MONTHS = "jan feb mar apr may jun jul aug sep sept oct nov dec".split()
_DATE_WORDS = frozenset(
    "january february march april june july august september october november december mon tue wed thu fri sat sun "
    "monday tuesday wednesday thursday friday saturday sunday "
    "st nd rd th am pm t z utc gmt 年 月 日 号 時 时 分 秒".split()
).union(_MONTHS)


@dataclass(frozen=True)
class Column:
    """A column of a file, judged by its first rows.

    Attributes:
        name: in the header.
        kind: "text", "single words", "few values that repeat", "numbers", "dates", "links", "ids", "an index", "lists
            or objects" or "mostly empty".
        example: the first value, cut.
        repeats: whether its values, few and short, occur several times each, as labels do.
    """

    name: str
    kind: str
    example: str
    repeats: bool

    @classmethod
    def of(cls, name: str, values: Sequence[Any], is_first: bool) -> Column:
        """Judge a column by its values."""
        known = [value for value in values if not _is_missing(value)]
        example = " ".join(str(known[0]).split()) if known else ""
        texts = [str(value).strip() for value in known]
        distinct = len(set(texts))
        few = len(texts) >= 4 and distinct <= max(2, len(texts) // 4)
        repeats = few and (distinct <= 50 or mean(map(len, texts)) <= 12)  # long texts that repeat are premises, say
        kind = _kind(name, len(values), known, texts, is_first)
        if repeats and kind in ("text", "single words"):
            kind = "few values that repeat"
        return cls(name, kind, example if len(example) <= 40 else example[:37] + "...", repeats)

    def __str__(self) -> str:
        return f"{self.name!r} ({self.kind}" + (f", such as {self.example!r})" if self.example else ")")


def read_columns(path: str | Path, read: Callable[[str | Path], Rows] = read_rows) -> tuple[int, list[Column]]:
    """The line of the first row of a file, and its columns."""
    rows = list(islice(read(path), ROWS))
    if not rows:
        raise InputError(f"{path}: is empty, expected rows of data")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = [Column.of(name, [row.get(name) for _, row in rows], i == 0) for i, name in enumerate(names)]
    return rows[0][0], columns


def choose_text_columns(
    path: str | Path, line: int, columns: Sequence[Column], others: Collection[str]
) -> tuple[str, ...]:
    """The one or two columns of text.

    A usual name or pair of names ("sentence", "text", "sentence1" and "sentence2", ...), if it does not stand above
    numbers or dates; else the only column of text; else two whose names are a pair, such as "text_a" and "text_b".

    Args:
        others: names of the columns of labels and ids.
    """
    left = [column for column in columns if column.name not in others]
    by_name = {column.name.lower(): column for column in left if column.kind not in ("numbers", "dates", "an index")}
    for names in _USUAL:
        if by_name.keys() >= set(names):
            return tuple(by_name[name].name for name in names)
    texts = [column.name for column in left if column.kind == "text"]
    texts = texts or [column.name for column in left if column.kind == "single words"]
    if len(texts) == 1 or (len(texts) == 2 and _is_pair(*texts)):
        logger.warning("%s: taking %s for the text; name text_columns if that is wrong", path, " and ".join(texts))
        return tuple(texts)
    shown = f"The columns: {listed(columns)}"
    if not texts:
        raise InputError(f"{path}:{line}: no column of text; if one is, name it with --text_columns. {shown}")
    raise InputError(
        f"{path}: {', '.join(texts)} may all be text; name the one or two to read: --text_columns {_quoted(texts[0])}. "
        f"{shown}"
    )


def advice_on_label(columns: Sequence[Column], texts: Collection[str] = ()) -> str:
    """Which columns may be meant where the label's is not there, as the end of an error's sentence."""
    no_label = {"text", "dates", "links", "ids", "an index", "lists or objects", "mostly empty"}
    texts = {*texts, *(name for names in _USUAL for name in names)}
    left = [c.name for c in columns if c.kind not in no_label and c.name not in texts and not _names_an_id(c.name)]
    repeated = [column.name for column in columns if column.repeats and column.name in left]
    likely = sorted(repeated or left, key=lambda name: name.lower() not in _USUAL_LABELS)[:3]
    if not likely:
        return "; --label_column says which of them has the labels"
    return "; did you mean " + " or ".join(f"--label_column {_quoted(name)}" for name in likely) + "?"


def listed(columns: Sequence[Column]) -> str:
    """Columns with their kinds and examples, for messages."""
    more = f", and {len(columns) - 12} more" if len(columns) > 12 else ""
    return ", ".join(map(str, columns[:12])) + more


def _kind(name: str, rows: int, known: Sequence[Any], texts: Sequence[str], is_first: bool) -> str:
    """What the values of a column are."""
    if is_first and (name == "" or name.startswith(("Unnamed:", "__index_level_"))):
        return "an index"  # as pandas writes it
    if name.startswith("__index_level_") or name.lower() in ("idx", "index"):
        return "an index"
    if name.lower() == "id":
        return "ids"
    if 2 * len(known) < rows:
        return "mostly empty"  # a text is in every row
    kinds: dict[str, Callable[[str], object]] = {
        "numbers": _NUMBER.fullmatch,
        "dates": _is_date,
        "links": _LINK.fullmatch,
        "ids": _ID.fullmatch,
        "single words": _WORD.fullmatch,
    }
    if _most(known, lambda value: isinstance(value, (list, dict, bytes))):
        return "lists or objects"
    if _most(known, lambda value: isinstance(value, (datetime.date, datetime.time))):
        return "dates"
    for kind, test in kinds.items():
        if _most(texts, test):
            return kind
    return "text"


def _most(values: Sequence[Any], test: Callable[[Any], object]) -> bool:
    """Whether a test holds for at least 19 of 20 values."""
    return 20 * sum(bool(test(value)) for value in values) >= 19 * len(values)


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in _MISSING)


def _is_date(text: str) -> bool:
    """Whether a text is a date or a time: its numbers, names of months and days, and signs between them."""
    if len(text) > 40:
        return False
    parts = re.findall(r"\d+|[^\W\d_]+|[^\s\w]|_", text.lower())
    numbers = sum(part.isdecimal() for part in parts)
    words = [part for part in parts if part.isalpha()]
    others = [part for part in parts if not part.isalnum()]
    if not all(word in _DATE_WORDS for word in words) or not set(others) <= set("/.,:+-"):
        return False
    return numbers > 1 or (numbers == 1 and any(word[:3] in _MONTHS for word in words))


def _is_pair(first: str, second: str) -> bool:
    ends = (first[-1:].lower(), second[-1:].lower())
    return first[:-1] == second[:-1] and ends in _ENDS_OF_PAIRS


def _names_an_id(name: str) -> bool:
    return re.search(r"(^|[\W_])id$|I[dD]$|编号$|序号$", name, re.IGNORECASE if name.isupper() else 0) is not None


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else repr(name)
