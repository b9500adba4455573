"""R-Drop checkpoints on the Hugging Face Hub: push, find, download and load them; `python -m rdrop_trainer.hub`."""

from importlib import import_module

_EXPORTS = {
    "push_checkpoint": "push",
    "list_checkpoints": "find",
    "show_checkpoint": "find",
    "CheckpointRecord": "find",
    "download_checkpoint": "download",
    "load_checkpoint": "load",
    "LoadedCheckpoint": "load",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
