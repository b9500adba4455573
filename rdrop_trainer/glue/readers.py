"""Read .tsv, .csv, .json, .jsonl, .parquet and .txt files row by row, and say exactly where a broken one is broken.

Lines end at "\\n" and nowhere else: the texts of some tasks contain U+2028, form feeds and other characters at which
`str.splitlines` would cut them in two.
"""

from __future__ import annotations

import codecs
import csv
import functools
import json
import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ..errors import InputError

logger = logging.getLogger(__name__)

# More in one line means that line ends are missing, or that a quotation mark was not closed
LINE_LIMIT = 2**20  # bytes
csv.field_size_limit(LINE_LIMIT)

SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet", ".txt")

Rows = Iterator[tuple[int, dict]]


def read_rows(
    path: str | Path,
    *,
    header: Sequence[str] | None = None,
    rename: Callable[[list[str]], list[str]] | None = None,
    tolerant: bool = False,
    skip_short: bool = False,
) -> Rows:
    """Read a data file; its kind follows from the ending of its name.

    Args:
        path: the file: .tsv (no quoting), .csv (quoted as usual), .json and .jsonl (an object per line), .parquet, or
            .txt (a text per line).
        header: names of the columns of a .tsv without a header line; of a .txt, whose column is else called "text".
        rename: turns the header of a .tsv into the names the rows shall have.
        tolerant: accept .tsv rows with more cells than the header; the last cell is the last column's, and a warning
            says how many there were.
        skip_short: leave out .tsv rows with fewer cells than the header; a warning says how many there were.

    Returns:
        An iterator over (line number, row as a dict); in a .parquet file the number of the row stands for the line.

    Raises:
        InputError: the file cannot be read as what its name says. Raised at once when the file is missing or of an
            unknown kind, and during the iteration for a broken line.
    """
    path = Path(path)
    _check_kind(path)
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        return _read_tsv(path, header, rename, tolerant, skip_short)
    if suffix == ".txt":
        column = header[0] if header else "text"
        return ((number, {column: line}) for number, line in _lines(path) if line.strip())
    if suffix in _READERS:
        return _READERS[suffix](path)
    raise InputError(f"{path}: unknown kind of file {suffix!r}, expected one of {', '.join(SUFFIXES)}")


def read_values(path: str | Path) -> Iterator[tuple[int | str, object]]:
    """Read a file that may also be one JSON document: an array, or an object over several lines.

    Args:
        path: the file. A .json file whose first line is no whole object is a document; everything else is read by
            `read_rows`.

    Returns:
        An iterator over (line number, row), or over the values of the document: (" item 1", value), ...

    Raises:
        InputError: as `read_rows`.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        return read_rows(path)
    _check_kind(path)
    lines = functools.partial(_lines, path, limit=None)  # whole documents are often one line
    if _is_object(next((line for _, line in lines() if line.strip()), "{}")):
        return _read_json(path, limit=None)
    text = "\n".join(line for _, line in lines())
    try:
        document = _parse(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: broken JSON ({error.msg}), expected an object or an array") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({error}), expected an object or an array") from None
    values = document if isinstance(document, list) else [document]
    return ((f" item {number}", value) for number, value in enumerate(values, 1))


# How files begin that are no text
_SIGNATURES = {
    b"\x1f\x8b": "is gzip-compressed, expected plain text; unpack it first",
    b"BZh": "is bzip2-compressed, expected plain text; unpack it first",
    b"\xfd7zXZ": "is xz-compressed, expected plain text; unpack it first",
    b"\x28\xb5\x2f\xfd": "is Zstandard-compressed, expected plain text; unpack it first",
    b"PK\x03\x04": "is a zip archive or a spreadsheet, expected plain text; unpack it, or save it as .csv",
    b"PAR1": "is a parquet file, expected text; give it the ending .parquet",
}
_UNICODE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def _check_kind(path: Path) -> None:
    """Refuse what is no file, and a file that is no text unless its name says so."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory, expected a file ({', '.join(SUFFIXES)})")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, and can be read only once
            raise InputError(f"{path}: is no regular file, expected one on disk ({', '.join(SUFFIXES)})")
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix.lower() == ".parquet":
        return
    for signature, what in _SIGNATURES.items():
        if start.startswith(signature):
            raise InputError(f"{path}: {what}")
    for mark, name in _UNICODE.items():
        if start.startswith(mark):
            raise InputError(f"{path}:1: begins with the mark of {name}, expected a file saved as UTF-8")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path, limit: int | None = LINE_LIMIT) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, without line ends and without a byte order mark."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if limit is not None and len(raw) > limit:
                raise InputError(
                    f"{path}:{number}: the line is {len(raw):,} bytes long, expected at most {limit:,}; are line ends "
                    "missing?"
                )
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line is not "
                    "UTF-8, expected a file saved as UTF-8"
                ) from None
            if "\0" in line:
                raise InputError(f"{path}:{number}: holds a NUL byte, expected text in UTF-8")
            line = line.removesuffix("\n").removesuffix("\r")
            if number == 1:
                line = line.removeprefix("\ufeff")
                if line.count("\r") > 0:
                    raise InputError(
                        f"{path}:1: holds carriage returns without line feeds, expected lines to end in a line feed"
                    )
            elif line.startswith("\ufeff"):
                raise InputError(
                    f"{path}:{number}: begins with a byte order mark, as where files were put together; remove it, and "
                    "look for a second header"
                )
            yield number, line


def _check_header(path: Path, header: Sequence[str], expected: str) -> None:
    """Distinct names, and not a single one that looks like several of another kind of file."""
    if not any(header):
        raise InputError(f"{path}:1: is empty, expected the names of the columns")
    for separator, name in _SEPARATORS.items():
        if len(header) == 1 and separator in header[0] and name != expected:
            raise InputError(
                f"{path}:1: the header {header[0]!r} is separated by {name}, expected {expected} in a "
                f"{path.suffix.lower()} file"
            )
    doubles = sorted({name for name in header if header.count(name) > 1})
    if doubles:
        raise InputError(f"{path}:1: the header names {', '.join(map(repr, doubles))} twice, expected distinct columns")


_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}


def _read_tsv(
    path: Path, header: Sequence[str] | None, rename: Callable | None, tolerant: bool, skip_short: bool
) -> Rows:
    lines = _lines(path)
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


def _read_csv(path: Path) -> Rows:
    # strict: a stray quotation mark would otherwise swallow the rows after it without a word.
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    first = 1  # line of the row that is being read
    try:
        header = next(reader, [])
        _check_header(path, header, "commas")
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
        raise InputError(
            f"{path}:{first}: broken CSV ({error}) in the row that begins here, expected quotation marks to be closed, "
            "and doubled inside a quoted cell"
        ) from None


def _read_json(path: Path, limit: int | None = LINE_LIMIT) -> Rows:
    for number, line in _lines(path, limit):
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: broken JSON ({error}), expected one object per line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: holds a JSON {type(row).__name__}, expected one object per line")
        yield number, row


def _parse(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON, whose keys are expected to be distinct; of two alike, either might be meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object names {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def _read_parquet(path: Path) -> Rows:
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: broken parquet file ({error})") from error


_READERS = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_json, ".parquet": _read_parquet}
