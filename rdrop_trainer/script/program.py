"""The program from outside: how it was started, for its messages, and its exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

COMMAND = "rdrop-glue"
FILE = "run_glue_rdrop.py"
MODULE = "rdrop_trainer.script"

# Exit codes; `main` says when
INCOMPLETE, WRONG_INPUT, NOT_PUSHED, NOT_FINITE, INTERRUPTED = 1, 2, 3, 4, 130

logger = logging.getLogger("run_glue_rdrop")


def name() -> str:
    """The program's name in its errors."""
    return COMMAND if _is_command() else FILE


def in_short() -> str:
    """The program in examples, as it is typed."""
    return COMMAND if _is_command() else f"python {FILE}"


def words(processes: int = 1) -> list[str]:
    """The words of a command that starts the program as it was started, before its flags."""
    if processes == 1 and _is_command():
        return [COMMAND]
    launcher = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    is_module = Path(sys.argv[0]).parts[-3:] == (*MODULE.split("."), "__main__.py")
    return [*launcher, "-m", MODULE] if _is_command() or is_module else [*launcher, sys.argv[0]]


def _is_command() -> bool:
    return Path(sys.argv[0]).stem == COMMAND


# What transformers raises for settings that do not work, before the first step
WRONG_SETTING = (ValueError, TypeError, OSError, ImportError, RuntimeError)


@contextmanager
def wrong_settings_as_input_errors() -> Iterator[None]:
    """Before the first step, what transformers raises is a setting that the user has to mend."""
    try:
        yield
    except WRONG_SETTING as error:
        raise input_error(error) from error


def input_error(error: Exception) -> InputError:
    """The same message on one line."""
    return InputError(" ".join(str(error).split()))


class StoppedError(InputError):
    """A run that had begun stopped for a reason that may concern one of its processes alone.

    `code` is the exit code: by `WRONG_INPUT` a comparison or a search ends, since its other runs would stop as well.
    """

    def __init__(self, message: str, code: int = WRONG_INPUT) -> None:
        super().__init__(message)
        self.code = code
