"""Files that are written whole: a reader finds the old file or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; the file there takes the place of `path` when the block ends without an error."""
    temporary = path.with_name(path.name + ".part")
    yield temporary
    os.replace(temporary, path)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file. Text is written as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
