"""Pairs of texts in a user's own file: which column is read, and which is to be written."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import InputError
from .columns import listed, read_columns
from .readers import Rows, read_rows

logger = logging.getLogger(__name__)

_USUAL = (
    ("source", "target"),
    ("src", "tgt"),
    ("document", "summary"),
    ("article", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("abstract", "title"),
    ("input", "output"),
)


def read_pairs(path: str | Path) -> Rows:
    """Read rows; what a column "translation" holds, as {"en": ..., "de": ...}, becomes columns of its own."""
    for line, row in read_rows(path):
        nested = row.get("translation")
        yield line, {**row, **nested} if isinstance(nested, dict) else row


def choose_pair(
    path: str | Path, source: str | None, target: str | None, id_column: str | None, is_test: bool
) -> tuple[str, str]:
    """The columns of the source and of the target.

    Usual names ("source" and "target", "document" and "summary", ...). Where one is given, the other may also be the
    only other column of text. Of two columns of text, nothing says which is which.

    Args:
        is_test: whether the file may have no target.
    """
    line, columns = read_columns(path, read_pairs)
    names = [column.name for column in columns]
    for flag, name, needed in (("source_column", source, True), ("target_column", target, not is_test)):
        if name is not None and name not in names and needed:
            raise InputError(f"{path}:{line}: no column {name!r} (--{flag}). The columns: {listed(columns)}")
    if source is not None and source == target:
        raise InputError(f"--source_column and --target_column are both {source!r}, expected two columns")
    by_name = {name.lower(): name for name in names}
    for first, second in _USUAL:
        found = source or by_name.get(first), target or by_name.get(second)
        fits = found[0] is not None and (found[1] is not None or is_test)
        if fits and (source is None or target is None) and found[0] != found[1]:
            return found[0], found[1] or second
    texts = [
        c.name for c in columns if c.kind in ("text", "single words") and c.name not in (source, target, id_column)
    ]
    if source is None and (target is not None or is_test) and len(texts) == 1:
        source = texts[0]
    elif target is None and source is not None:
        target = texts[0] if len(texts) == 1 else "target" if is_test else None
    if source is None or (target is None and not is_test):
        missing = " and ".join(
            f"--{name}_column" for name, known in (("source", source), ("target", target)) if not known
        )
        raise InputError(
            f"{path}:{line}: which text is read, and which is to be written? Give {missing}. The columns: "
            f"{listed(columns)}"
        )
    return source, target or "target"
