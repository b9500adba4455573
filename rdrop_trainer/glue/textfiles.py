"""Read text files line by line, and refuse files of other kinds.

A line ends at "\\n" only. The texts of some tasks contain U+2028, form feeds and other characters at which
`str.splitlines` would split them.
"""

from __future__ import annotations

import codecs
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet", ".txt")
# In a table, a longer line means that line ends are missing, or that a quotation mark was not closed
LINE_LIMIT = 2**20  # bytes
FOR_LONG_TEXTS = "Longer texts go into a .jsonl or .parquet file"

# First bytes of files that are not text
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


def check_file(path: Path) -> None:
    """Refuse a path that is not a file, and a file that is not text, except .parquet."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory, expected a file ({', '.join(SUFFIXES)})")
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may block, and works only once
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


def lines_of(path: Path, limit: int | None = LINE_LIMIT) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, without line ends and without a byte order mark.

    Args:
        limit: the longest line that is accepted, in bytes; None for any.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if limit is not None and len(raw) > limit:
                raise InputError(
                    f"{path}:{number}: the line is {len(raw):,} bytes long, expected at most {limit:,}; are line ends "
                    f"missing? {FOR_LONG_TEXTS}"
                )
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line is not "
                    "UTF-8, expected a file saved as UTF-8, not in a code page such as GBK; in Excel: CSV UTF-8"
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
