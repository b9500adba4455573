"""Packages that only some tasks need, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import InputError


def import_optional(module: str, extra: str = "glue") -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra of this package that installs it.

    Raises:
        InputError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InputError(f'{package} is needed and not installed: pip install "rdrop-trainer[{extra}]"') from error
