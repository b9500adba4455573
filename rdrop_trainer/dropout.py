"""Finding, reporting and setting a model's dropout.

R-Drop lives on the noise of dropout, and many recent models ship with none. A model carries dropout in three places:
dropout modules, float attributes that functional dropout reads (`self.attention_dropout`), and the configuration from
which a saved model is built again. They are kept in step here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Attribute names of modules and configurations: dropout, hidden_dropout_prob, attn_pdrop, ... LayerDrop and stochastic
# depth (drop_path) are noise of another kind and stay as they are.
_DROPOUT_NAME = re.compile(r"dropout|pdrop", re.IGNORECASE)


@dataclass(frozen=True)
class ActiveDropout:
    """One place where dropout is active: `name` is the module's path (with the attribute, for functional dropout)."""

    name: str
    p: float

    def __str__(self) -> str:
        return f"{self.name} (p={self.p:g})"


def active_dropout(model: nn.Module) -> list[ActiveDropout]:
    """Where dropout with a probability above 0 acts when the model trains.

    A model that is in evaluation mode as a whole (as `from_pretrained` returns it) is judged as if in training mode;
    in a model that is training, a submodule put in evaluation mode counts as inactive.

    Returns:
        One `ActiveDropout` per place, in module order; empty if the model has no dropout noise.
    """
    found = []
    for path, module, attribute in _dropout_attributes(model):
        p = float(getattr(module, attribute))
        if p > 0 and not (model.training and not module.training):
            found.append(ActiveDropout(path if attribute == "p" else f"{path}.{attribute}".lstrip("."), p))
    return found


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout of the model, in place: modules, float attributes and the configuration.

    A configuration entry of None (a head that follows the body) stays None, so a model built from the configuration
    again has the same dropout everywhere, heads included.

    Args:
        model: any model; `model.config`, where there is one, is changed too.
        p: probability of zeroing an element, in [0, 1).

    Raises:
        ValueError: p outside [0, 1), or a model with nowhere to put dropout.
    """
    if not 0 <= p < 1:
        raise ValueError(f"The dropout probability must be in [0, 1), got {p}.")
    _replace_identities(model, p)
    places = list(_dropout_attributes(model))
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no dropout module and no dropout attribute, so its dropout cannot be set; "
            "R-Drop needs a model with dropout."
        )
    for _, module, attribute in places:
        setattr(module, attribute, p)
    if hasattr(model, "config"):
        set_config_dropout(model.config, p)


def set_config_dropout(config: PretrainedConfig, p: float) -> None:
    """Set every dropout entry of a configuration and of the configurations inside it, in place; None stays None."""
    for owner, key, _ in _config_entries(config):
        setattr(owner, key, p)


def dropout_settings(config: PretrainedConfig) -> dict[str, float]:
    """The dropout entries of a configuration and of the configurations inside it, by name; entries of None left out."""
    return {path: value for owner, key, path in _config_entries(config) for value in [getattr(owner, key)]}


def _dropout_attributes(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(module path, module, attribute) of every number that dropout reads."""
    for path, module in model.named_modules():
        is_dropout = _DROPOUT_NAME.search(type(module).__name__) is not None
        for attribute, value in list(vars(module).items()):
            if _is_probability(value) and (_DROPOUT_NAME.search(attribute) or (is_dropout and attribute == "p")):
                yield path, module, attribute


def _replace_identities(model: nn.Module, p: float) -> None:
    """Some models build `nn.Identity` where their configuration says 0; give them a dropout that can be set."""
    for path, module in list(model.named_modules()):
        name = ".".join(path.split(".")[-2:]).lower()
        if type(module) is nn.Identity and "drop" in name and "path" not in name:
            parent = model.get_submodule(path.rpartition(".")[0])
            replacement = nn.Dropout(p).train(module.training)
            setattr(parent, path.rpartition(".")[2], replacement)


def _config_entries(config: PretrainedConfig, prefix: str = "") -> Iterator[tuple[PretrainedConfig, str, str]]:
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _config_entries(value, f"{prefix}{key}.")
        elif _DROPOUT_NAME.search(key) and _is_probability(value):
            yield config, key, prefix + key


def _is_probability(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
