"""R-Drop checkpoints on the Hugging Face Hub: push, find, download and load them; `python -m rdrop_trainer.hub`."""

from .._lazy import lazily

_EXPORTS = {
    "push_checkpoint": "push",
    "list_checkpoints": "find",
    "CheckpointRecord": "find",
    "download_checkpoint": "download",
    "load_checkpoint": "load",
    "LoadedCheckpoint": "load",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazily(__name__, _EXPORTS)
