"""Import of packages that only some tasks need."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import InputError


def import_optional(module: str, extra: str = "glue") -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: dotted name of the module.
        extra: the extra of rdrop-trainer that installs the package.

    Returns:
        The module.

    Raises:
        InputError: the package is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InputError(f'{package} is needed and not installed: pip install "rdrop-trainer[{extra}]"') from error
