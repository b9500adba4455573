"""Read .tsv, .csv, .json, .jsonl, .parquet and .txt files row by row; errors name the line that is wrong."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ..errors import InputError
from .strict import named_twice, parse_json
from .textfiles import FOR_LONG_TEXTS, LINE_LIMIT, SUFFIXES, check_file, lines_of

logger = logging.getLogger(__name__)

csv.field_size_limit(LINE_LIMIT)

Rows = Iterator[tuple[int, dict]]


def read_rows(
    path: str | Path,
    *,
    header: Sequence[str] | None = None,
    rename: Callable[[list[str]], list[str]] | None = None,
    tolerant: bool = False,
    skip_short: bool = False,
) -> Rows:
    """Read a data file; the ending of its name says of what kind it is.

    Args:
        path: the file: .tsv (quotation marks are text, unless the whole file is quoted as pandas does), .csv (quoted as
            usual), .json and .jsonl (an object per line), .parquet, or .txt (a text per line).
        header: names of the columns of a .tsv without a header line, or of a .txt; default for a .txt: "text".
        rename: makes the names of the columns from the header of a .tsv.
        tolerant: accept .tsv rows with more cells than the header. The last cell goes into the last column, and a
            warning says how many such rows there were.
        skip_short: leave out .tsv rows with fewer cells than the header; a warning says how many there were.

    Returns:
        An iterator over (line number, row as a dict); for a .parquet file the row number.

    Raises:
        InputError: the file is not of the kind that its name says. A missing file or an unknown kind raises at once, a
            broken line during the iteration.
    """
    path = Path(path)
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        return _read_tsv(path, header, rename, tolerant, skip_short)
    if suffix == ".txt":
        column = header[0] if header else "text"
        return ((number, {column: line}) for number, line in lines_of(path) if line.strip())
    if suffix in _READERS:
        return _READERS[suffix](path)
    raise InputError(f"{path}: unknown kind of file {suffix!r}, expected one of {', '.join(SUFFIXES)}")


def read_values(path: str | Path) -> Iterator[tuple[int | str, object]]:
    """Read a file that may also be one JSON document: an array, or an object over several lines.

    Args:
        path: the file. A .json file whose first line is not a complete object is one document; every other file is
            read by `read_rows`.

    Returns:
        An iterator over (line number, row), or over the values of the document: (" item 1", value), ...
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        return read_rows(path)
    check_file(path)
    if _is_object(next((line for _, line in lines_of(path, limit=None) if line.strip()), "{}")):
        return _read_json(path)
    text = "\n".join(line for _, line in lines_of(path, limit=None))
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: broken JSON ({error.msg}), expected an object or an array") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({error}), expected an object or an array") from None
    values = document if isinstance(document, list) else [document]
    return ((f" item {number}", value) for number, value in enumerate(values, 1))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _check_header(path: Path, header: Sequence[str], expected: str) -> None:
    """Refuse a header with equal names, or with one name that has the separators of another kind of file."""
    if not any(header):
        raise InputError(f"{path}:1: is empty, expected the names of the columns")
    for separator, name in _SEPARATORS.items():
        if len(header) == 1 and separator in header[0] and name != expected:
            raise InputError(
                f"{path}:1: the header {header[0]!r} is separated by {name}, expected {expected} in a "
                f"{path.suffix.lower()} file"
            )
    if twice := named_twice(header):
        raise InputError(f"{path}:1: the header names {', '.join(map(repr, twice))} twice, expected distinct columns")


_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}


def _read_tsv(
    path: Path, header: Sequence[str] | None, rename: Callable | None, tolerant: bool, skip_short: bool
) -> Rows:
    if header is None and rename is None and _is_quoted(path):
        logger.warning("%s: its cells are quoted as pandas writes them; the quotes are not part of the texts", path)
        yield from _read_csv(path, "\t")
        return
    lines = lines_of(path)
    if header is None:
        header = next(lines, (1, ""))[1].split("\t")
        _check_header(path, header, "tabs")
        header = rename(header) if rename else header
    short, long = [], []
    for number, line in lines:
        if not line and len(header) > 1:
            continue
        cells = line.split("\t")
        if len(cells) < len(header) and skip_short:
            short.append(number)
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        elif len(cells) > len(header) and tolerant:
            long.append(number)
            yield number, dict(zip(header, cells, strict=False)) | {header[-1]: cells[-1]}
        else:
            raise InputError(
                f"{path}:{number}: the row has {len(cells)} cells, expected {len(header)} ({', '.join(header)})"
            )
    for kind, numbers, fate in (("fewer", short, "left out"), ("more", long, "read without the surplus")):
        if numbers:
            logger.warning(
                "%s: %d rows have %s cells than the header and were %s (the first is line %d)",
                *(path, len(numbers), kind, fate, numbers[0]),
            )


_QUOTED_CELL = re.compile(r'(?:^|(?<=\t))"([^"]*(?:""[^"]*)*)"(?=\t|\Z)')
_NEEDS_QUOTES = re.compile(r'""|[\t\n\r]')


def _is_quoted(path: Path) -> bool:
    """Whether the cells of a .tsv are quoted: all, or those with tabs, line breaks or quotation marks, and no other.

    Official files are not quoted: a quotation mark is a character of the text, wherever it stands.
    """
    record, is_open, all_quoted, found = "", False, False, False
    for number, line in lines_of(path):
        record = f"{record}\n{line}" if is_open else line
        is_open ^= line.count('"') % 2 == 1
        if is_open and len(record) > LINE_LIMIT:
            return False
        if is_open or '"' not in record:
            continue
        cells = _QUOTED_CELL.findall(record)
        if '"' in _QUOTED_CELL.sub("", record):
            return False
        all_quoted |= number == 1
        if not all_quoted and not all(map(_NEEDS_QUOTES.search, cells)):
            return False
        found = True
    return found and not is_open


def _read_csv(path: Path, delimiter: str = ",") -> Rows:
    # strict: otherwise a stray quotation mark would swallow the rows after it silently
    reader = csv.reader((line + "\n" for _, line in lines_of(path)), strict=True, delimiter=delimiter)
    first = 1  # first line of the current row
    try:
        header = next(reader, [])
        _check_header(path, header, _SEPARATORS[delimiter])
        first = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise InputError(
                    f"{path}:{first}: the row has {len(cells)} cells, expected {len(header)} ({', '.join(header)})"
                )
            if cells:
                yield first, dict(zip(header, cells, strict=True))
            first = reader.line_num + 1
    except csv.Error as error:
        longer = f". {FOR_LONG_TEXTS}" if "limit" in str(error) else ""
        raise InputError(
            f"{path}:{first}: broken CSV ({error}) in the row that begins here, expected quotation marks to be closed, "
            f"and doubled inside a quoted cell{longer}"
        ) from None


def _read_json(path: Path) -> Rows:
    for number, line in lines_of(path, limit=None):  # an object says itself where it ends
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: broken JSON ({error}), expected one object per line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: holds a JSON {type(row).__name__}, expected one object per line")
        yield number, row


def _read_parquet(path: Path) -> Rows:
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        twice = named_twice(file.schema_arrow.names)
        for batch in () if twice else file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: wrong text and dates
        raise InputError(f"{path}: broken parquet file ({error})") from error
    if twice:
        raise InputError(f"{path}: names the column {twice[0]!r} twice, expected distinct columns")


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
