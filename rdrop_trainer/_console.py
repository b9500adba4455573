"""What is printed: text that standard output has no signs for, and commands to be typed."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from collections.abc import Sequence


def print_any_text() -> None:
    r"""Let standard output write as \u7535 what its encoding lacks; by default a program ends over it.

    On Windows a file or a pipe has the encoding of the code page, such as cp1252, or cp936 in China.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def typed(words: Sequence[str]) -> str:
    """A command as it is typed: on Windows with double quotes, the only ones that cmd knows."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
