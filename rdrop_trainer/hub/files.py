"""Reading the files of a saved folder: text, JSON, and configurations without the local paths they name.

A file that cannot be read, or is damaged, is an `InputError`.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import InputError
from .card_data import is_hub_name

_DEEPEST = 100  # levels of a JSON file


def content_of(path: Path) -> bytes:
    """What is sent of a file. JSON is parsed; configurations lose the local paths they name."""
    if path.suffix != ".json":
        return _read(path)
    given = _parsed(path)
    clean = _without_local_paths(given) if path.name.endswith("config.json") else given
    return _read(path) if clean == given else json.dumps(clean, indent=2, ensure_ascii=False).encode()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    content = _parsed(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parsed(path: Path) -> Any:
    try:
        value = json.loads(read_text(path))
        if _depth(value) > _DEEPEST:
            raise RecursionError
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}; save the model again") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested deeper than {_DEEPEST} levels; save the model again") from error
    return value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _without_local_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_local_paths(entry) for entry in value]
    if isinstance(value, dict):
        return {k: _without_local_paths(v) for k, v in value.items() if not (isinstance(v, str) and _is_local(k, v))}
    return value


def _is_local(key: str, value: str) -> bool:
    """Whether an entry of a configuration tells where something is on this machine."""
    if key.endswith("name_or_path"):
        return bool(value) and not is_hub_name(value)
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~")
    return key.endswith(("_file", "_path", "_dir")) and absolute
