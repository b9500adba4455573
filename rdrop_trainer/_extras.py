"""Packages of others: those that only some tasks need, and versions that lose text."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from types import ModuleType

from .errors import InputError


def import_optional(module: str, extra: str = "glue") -> ModuleType:
    """Import a module of an optional package.

    Args:
        extra: the extra of rdrop-trainer that installs the package.

    Raises:
        InputError: the package is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InputError(f'{package} is needed and not installed: pip install "rdrop-trainer[{extra}]"') from error


def lost_windows() -> str | None:
    """What to do about a tokenizers that loses text; None where the installed one does not.

    With `return_overflowing_tokens` and a stride, 0.23.1 and 0.23.2 end after the second window of a text.
    """
    installed = version("tokenizers")
    if installed not in ("0.23.1", "0.23.2"):
        return None
    return (
        f"tokenizers {installed} loses all windows of a long text but the first two, and the answers in them: "
        'pip install --upgrade "tokenizers!=0.23.1,!=0.23.2"'
    )
