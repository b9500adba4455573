"""Which noise a model has in training: what makes two passes of R-Drop differ."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .._dropout_places import OTHER_NOISE, config_entries, configs_of, entries
from ..dropout import active_dropout

_SHOWN = 3  # names of a source
# Parts of a path that wrappers put there: PEFT, distributed training, `torch.compile`
_WRAPPERS = re.compile(r"(?<![^.])(base_model\.model|module|_orig_mod|modules_to_save\.[^.]+)\.")
# The copy of a trained head that PEFT keeps and does not run
_NOT_RUN = re.compile(r"(^|\.)original_module(\.|$)")


@dataclass(frozen=True)
class Noise:
    """One source of noise.

    Attributes:
        kind: "dropout", "adapter dropout", "LayerDrop", "stochastic depth", "SpecAugment" or "NEFTune alpha".
        strength: the probability; of NEFTune its alpha.
        where: the names of the modules, with * for the numbers of layers; of LayerDrop, stochastic depth and
            SpecAugment the configuration's settings.
    """

    kind: str
    strength: float
    where: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.where) - _SHOWN} more" if len(self.where) > _SHOWN else ""
        return f"{self.kind} {self.strength:g} ({', '.join(self.where[:_SHOWN])}{more})"


def noise_of(model: nn.Module, neftune_alpha: float | None = None) -> list[Noise]:
    """The sources of noise of a model in training.

    Args:
        model: any model; it is not changed. In evaluation mode as a whole it is taken as in training mode.
        neftune_alpha: a trainer's `neftune_noise_alpha`. The model knows it only while it trains.

    Returns:
        Dropout by its probability, that of adapters by itself, LayerDrop, stochastic depth, SpecAugment and NEFTune;
        empty where there is none.
    """
    found: dict[tuple[str, float], dict[str, None]] = {}

    def add(kind: str, strength: float, where: str) -> None:
        found.setdefault((kind, strength), {})[where] = None

    adapted = [
        path for path, module in model.named_modules() if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    for place in active_dropout(model):
        owner = _owner(place.name, adapted)
        if owner is not None:
            add("adapter dropout", place.p, owner.rpartition(".")[2])
        elif not _NOT_RUN.search(place.name):
            add("dropout", place.p, re.sub(r"(?<![^.])\d+(?![^.])", "*", _WRAPPERS.sub("", place.name)))
    for config in configs_of(model):
        for owner, key, path in config_entries(config, OTHER_NOISE):
            if entries(owner)[key] > 0:
                is_path = "path" in key.lower()
                add("stochastic depth" if is_path else "LayerDrop", float(entries(owner)[key]), path)
        for key in ("mask_time_prob", "mask_feature_prob"):
            if getattr(config, "apply_spec_augment", False) and getattr(config, key, 0):
                add("SpecAugment", float(getattr(config, key)), key)
    alphas = [vars(module).get("neftune_noise_alpha") for module in model.modules()]
    if alpha := next(filter(None, [*alphas, neftune_alpha]), None):
        add("NEFTune alpha", float(alpha), "the input embeddings")
    return [Noise(kind, strength, tuple(where)) for (kind, strength), where in found.items()]


def _owner(path: str, adapted: Iterable[str]) -> str | None:
    """The adapted module whose adapter has what is at a path; None for what is no adapter's."""
    inside = [name for name in adapted if path.startswith(f"{name}.") and not path.startswith(f"{name}.base_layer")]
    return max(inside, key=len, default=None)
