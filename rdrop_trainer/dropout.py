"""Finding and setting a model's dropout.

R-Drop needs the noise of dropout, and many recent models ship with none. A model has dropout settings in three places:
dropout modules, float attributes that functional dropout reads (`self.attention_dropout`), and the configuration, from
which a saved model is built again. `set_dropout` changes all three together.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Attribute names of modules and configurations: dropout, hidden_dropout_prob, attn_pdrop, ... LayerDrop and stochastic
# depth (drop_path) are other kinds of noise and are not changed.
_DROPOUT_NAME = re.compile(r"dropout|pdrop", re.IGNORECASE)
_OTHER_NOISE = re.compile(r"layer_?drop|drop_path", re.IGNORECASE)


@dataclass(frozen=True)
class ActiveDropout:
    """One place where dropout is active.

    Attributes:
        name: path of the module; for functional dropout, path and attribute.
        p: probability of zeroing an element, more than 0.
    """

    name: str
    p: float

    def __str__(self) -> str:
        return f"{self.name} (p={self.p:g})"


def active_dropout(model: nn.Module) -> list[ActiveDropout]:
    """The places where dropout with a probability above 0 acts in training.

    A model that is in evaluation mode as a whole, as `from_pretrained` returns it, is treated as if in training mode.
    In a model in training mode, a submodule in evaluation mode has no active dropout.

    Args:
        model: any model; it is not changed.

    Returns:
        One `ActiveDropout` per place, in module order; empty if the model has no dropout noise.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
        >>> active_dropout(model)
        [ActiveDropout(name='1', p=0.1)]
    """
    found = []
    for path, module, attribute in _dropout_attributes(model):
        p = float(getattr(module, attribute))
        if p > 0 and not (model.training and not module.training):
            found.append(ActiveDropout(path if attribute == "p" else f"{path}.{attribute}".lstrip("."), p))
    return found


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout of the model, in place: modules, float attributes and the configuration.

    A configuration entry of None stays None: it means that the head uses the dropout of the body. So a model built from
    the configuration again has the same dropout, heads included. Some models put an `nn.Identity` where their
    configuration has a dropout of 0; it is replaced by a dropout module.

    Args:
        model: any model; `model.config`, where there is one, is changed too.
        p: probability of zeroing an element, in [0, 1).

    Raises:
        ValueError: p outside [0, 1), a model with nowhere to put dropout, or one whose class refuses the probability;
            the model is then unchanged.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0))
        >>> set_dropout(model, 0.3)
        >>> active_dropout(model)
        [ActiveDropout(name='1', p=0.3)]
    """
    if not 0 <= p < 1:
        raise ValueError(f"The dropout probability must be in [0, 1), got {p}.")
    own_config = getattr(model, "config", None)
    config = copy.deepcopy(own_config)
    if config is not None:
        set_config_dropout(config, p)
    missing = _missing_dropout(model, config, p)
    places = list(_dropout_attributes(model))
    if not places and not missing:
        raise ValueError(
            f"{type(model).__name__} has no dropout module and no dropout attribute, so its dropout cannot be set; "
            "R-Drop needs a model with dropout."
        )
    for _, module, attribute in places:
        setattr(module, attribute, p)
    for path in missing:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, nn.Dropout(p).train(getattr(owner, name).training))
    if own_config is not None:
        set_config_dropout(own_config, p)


def set_config_dropout(config: PretrainedConfig, p: float) -> None:
    """Set every dropout entry of a configuration and of its nested configurations, in place; None stays None.

    Raises:
        ValueError: the configuration refuses the value.
    """
    for owner, key, path in _config_entries(config):
        try:
            setattr(owner, key, p)
        except Exception as error:  # strict configurations raise their own error types
            raise ValueError(f"{type(config).__name__} does not take {path}={p}: {error}") from error


def dropout_settings(config: PretrainedConfig) -> dict[str, float]:
    """The dropout entries of a configuration and of its nested configurations, by name, without those of None."""
    return {path: value for owner, key, path in _config_entries(config) for value in [getattr(owner, key)]}


def has_other_noise(model: nn.Module) -> bool:
    """Whether the configuration asks for another kind of noise: LayerDrop or stochastic depth."""
    entries = vars(model.config) if hasattr(model, "config") else {}
    return any(_OTHER_NOISE.search(key) and _is_probability(p) and p > 0 for key, p in entries.items())


def _dropout_attributes(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(module path, module, attribute) of every number that dropout reads."""
    for path, module in model.named_modules():
        is_dropout = _DROPOUT_NAME.search(type(module).__name__) is not None
        for attribute, value in list(vars(module).items()):
            if _is_probability(value) and (_DROPOUT_NAME.search(attribute) or (is_dropout and attribute == "p")):
                yield path, module, attribute


def _missing_dropout(model: nn.Module, config: PretrainedConfig | None, p: float) -> list[str]:
    """Paths of identities that would be dropout modules if the model had been built with dropout.

    A twin of the model on the meta device, built from the configuration, shows which these are. An adapter is not built
    from its configuration; there the name decides.
    """
    identities = [path for path, module in model.named_modules() if type(module) is nn.Identity]
    if config is None or not isinstance(model, PreTrainedModel):
        return [path for path in identities if "lora_dropout" in path]
    try:
        twin = _build_twin(model, config)
    except Exception as error:
        try:
            _build_twin(model, copy.deepcopy(model.config))
        except Exception:
            return []  # a class that needs more than its configuration; there is no twin to compare with
        raise ValueError(f"{type(model).__name__} cannot be built with dropout {p}: {error}") from error
    return [path for path in identities if isinstance(_submodule(twin, path), nn.Dropout)]


def _build_twin(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return type(model)(config)


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _config_entries(config: PretrainedConfig, prefix: str = "") -> Iterator[tuple[PretrainedConfig, str, str]]:
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _config_entries(value, f"{prefix}{key}.")
        elif _DROPOUT_NAME.search(key) and _is_probability(value):
            yield config, key, prefix + key


def _is_probability(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
