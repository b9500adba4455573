"""Sentences in columns, as of CoNLL: a token a line, its tag in another column, a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from .readers import Rows, read_rows
from .strict import named_twice
from .textfiles import check_file, lines_of

# Tokens of a sentence, and of one that is alone in its file; more means that there are no blank lines between sentences
_LONGEST, _LONGEST_ALONE = 10_000, 1_000
_HEADERS = frozenset(
    "id token tokens word words form char text lemma pos pos_tag chunk tag tags label labels ner ner_tag "
    "ner_tags".split()
)
_NO_WORD = re.compile(r"\d+[-.]\d+")  # ids of CoNLL-U for words of several lines (1-2) and empty nodes (1.1)

Lines = list[tuple[int, str]]


def read_conll(path: str | Path) -> Rows:
    """Read a file sentence by sentence.

    Columns are separated by tabs where the first sentence has them, else by blanks. They are called "1", "2" and so on,
    if the first line does not name them. Comments (lines that begin with # and have not the columns of a token) and
    the lines -DOCSTART- are no tokens.

    Returns:
        An iterator over (line number of the first token, column -> its cells).
    """
    path = Path(path)
    check_file(path)
    names: list[str] = []
    first, separator = 0, ""
    for lines in _sentences(path):
        if not names:
            separator = "\t" if "\t" in lines[-1][1] else "[ \t]+"
        lines = _without_comments(lines, separator, len(names))
        rows = [(number, _cells(line, separator)) for number, line in lines]
        if rows and not names:
            first, cells = rows[0]
            has_header = len(cells) > 1 and {cell.lower() for cell in cells} <= _HEADERS
            names = cells if has_header else [str(place) for place in range(1, len(cells) + 1)]
            if twice := named_twice(names):
                raise InputError(f"{path}:{first}: the header names {twice[0]!r} twice, expected distinct columns")
            rows = rows[has_header:]
        for number, cells in rows:
            if len(cells) != len(names):
                raise InputError(
                    f"{path}:{number}: the line has {_columns(cells)}, expected {_columns(names)} as line {first} has"
                )
        rows = _words([row for row in rows if row[1][0] != "-DOCSTART-"])
        if rows:
            yield rows[0][0], {name: [cells[i] for _, cells in rows] for i, name in enumerate(names)}


def read_sentences(path: str | Path) -> Rows:
    """Read lists of tokens from .json, .jsonl and .parquet, and every other file as columns."""
    if Path(path).suffix.lower() == ".csv":
        raise InputError(
            f"{path}: a .csv holds no sentences of tokens, expected columns (.conll, .txt, .tsv) with a token a line "
            "and a blank line between sentences, or lists (.json, .jsonl, .parquet)"
        )
    return read_rows(path) if holds_lists(path) else read_conll(path)


def holds_lists(path: str | Path) -> bool:
    """Whether a file holds lists of tokens, by the ending of its name."""
    return Path(path).suffix.lower() in (".json", ".jsonl", ".parquet")


def to_conll(sentences: Sequence[tuple[int | str | None, Sequence[str], Sequence[str]]]) -> str:
    """Ids (None: none is written), tokens and tags of sentences as `read_conll` reads them."""
    blocks = []
    for name, tokens, tags in sentences:
        comment = [] if name is None else [f"# id = {name}"]
        blocks.append("\n".join([*comment, *map("\t".join, zip(tokens, tags, strict=True))]))
    return "\n\n".join(blocks) + "\n"


def _sentences(path: Path) -> Iterator[Lines]:
    sentence: Lines = []
    is_alone = True
    for number, line in lines_of(path):
        if line.strip(" \t"):
            sentence.append((number, line))
            if len(sentence) > _LONGEST:
                break
        elif sentence:
            yield sentence
            sentence, is_alone = [], False
    if len(sentence) > (_LONGEST_ALONE if is_alone else _LONGEST):
        raise InputError(
            f"{path}:{sentence[0][0]}: {len(sentence):,} lines without a blank line, expected a token a line and a "
            "blank line between sentences"
        )
    if sentence:
        yield sentence


def _cells(line: str, separator: str) -> list[str]:
    # Not `str.split`: blanks of other scripts are tokens
    return line.rstrip(" ").split("\t") if separator == "\t" else re.split(separator, line.strip(" \t"))


def _without_comments(lines: Lines, separator: str, width: int) -> Lines:
    """The lines without those at their beginning that are comments: "# id = 7", and not "# O" """
    width = width or len(_cells(lines[-1][1], separator))
    for i, (_, line) in enumerate(lines):
        is_token = len(_cells(line, separator)) == width and (separator == "\t" or "\t" not in line.strip())
        if not line.startswith("#") or is_token:
            return lines[i:]
    return []


def _words(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The rows of CoNLL-U that are words; all rows where the first column does not number them."""
    words = [row for row in rows if not _NO_WORD.fullmatch(row[1][0])]
    return words if are_numbers([cells[0] for _, cells in words]) else rows


def are_numbers(cells: Sequence[str]) -> bool:
    """Whether a column of a sentence only numbers its tokens."""
    return list(cells) == [str(place) for place in range(1, len(cells) + 1)]


def _columns(cells: Sequence[str]) -> str:
    return f"{len(cells)} column{'s' * (len(cells) != 1)}"
