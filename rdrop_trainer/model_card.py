"""What a model card says of R-Drop: the settings, as metadata that other programs read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .training_args import RDropArguments

TAG = "r-drop"
BLOCK = "r_drop"
_PREFIX = "rdrop_"
# Settings that say how a run was computed, and nothing of what was trained
_NOT_OF_THE_MODEL = ("rdrop_fused_head", "rdrop_allow_deterministic")


def settings_block(settings: RDropArguments, dropout: Mapping[str, float], version: str) -> dict[str, Any]:
    """The `r_drop` entry of a card's metadata.

    Args:
        settings: of the training.
        dropout: the model's dropout probabilities by the name of their setting.
        version: of this package.

    Returns:
        alpha, num_passes, every_n_steps, warmup_steps, forward_mode, reduction and unlabeled_ratio as in
        `RDropArguments`, dropout and version.
    """
    kept = [f.name for f in fields(RDropArguments) if f.name not in _NOT_OF_THE_MODEL]
    values = {name.removeprefix(_PREFIX): getattr(settings, name) for name in kept}
    return {**values, "dropout": dict(dropout), "version": version}


def settings_from_block(block: Any) -> RDropArguments | None:
    """The settings that an `r_drop` entry tells of, which anybody may have written; None where they make no sense."""
    if not isinstance(block, Mapping):
        return None
    names = {f.name for f in fields(RDropArguments)}
    given = {_PREFIX + str(key): value for key, value in block.items() if _PREFIX + str(key) in names}
    try:
        return RDropArguments(**given) if "rdrop_alpha" in given else None
    except (ValueError, TypeError):
        return None
