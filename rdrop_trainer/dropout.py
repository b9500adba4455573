"""Finding and setting a model's dropout.

R-Drop needs the noise of dropout, and many recent models ship with none. A model has dropout settings in three places:
dropout modules, float attributes that functional dropout reads (`self.attention_dropout`), and the configurations, from
which a saved model or adapter is built again. `set_dropout` changes all three together.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging

from ._dropout_places import (
    CONFIG_NAME,
    DROPOUT_NAME,
    config_entries,
    configs_of,
    entries,
    is_dropout,
    places_of,
)
from ._twins import counterpart, twins_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.get_logger(__name__)

# PEFT's OFT and BOFT replace rotations by identities; a plain dropout in that place would be other noise
_ROTATIONS = "oft_dropout"


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
    return [
        ActiveDropout(place.name, place.p)
        for place in places_of(model)
        if place.p > 0 and not (model.training and not place.module.training)
    ]


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout of the model, in place: modules, float attributes and the configurations.

    The configurations are those of the model, of its parts and of PEFT adapters. An entry of None stays None: it means
    that the head uses the dropout of the body. So a model or an adapter that is loaded again has the same dropout,
    heads included. Some models and adapters put an `nn.Identity` where their configuration has a dropout of 0; it is
    replaced by a dropout module.

    A warning names what could not be set: modules whose class name says dropout and whose probability is not found,
    and dropout that no entry of a configuration sets, so that a saved model does not keep it.

    Args:
        model: any model; its configurations, where there are some, are changed too.
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
    configs = configs_of(model)
    for config in configs:
        if isinstance(config, PretrainedConfig):  # may refuse; then nothing has been changed yet
            set_config_dropout(copy.deepcopy(config), p)
    twins = twins_of(model, lambda config: set_config_dropout(config, p), f"dropout {p}")
    places, missing = list(places_of(model)), _missing_dropout(model, twins, p)
    if not places and not missing:
        unknown = _unknown_dropout(model)
        raise ValueError(
            f"{type(model).__name__} has no dropout module and no dropout attribute, so its dropout cannot be set; "
            "R-Drop needs a model with dropout."
            if not unknown
            else f"The dropout of {type(model).__name__} cannot be set, because no attribute of {_some(unknown)} is "
            "known to be its probability; set it there."
        )
    for place in places:
        place.set(p)
    for path in missing:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, nn.Dropout(p).train(getattr(owner, name).training))
    for config in configs:
        set_config_dropout(config, p)
    _warn_of_exceptions(model, twins, p)


def set_config_dropout(config: Any, p: float) -> None:
    """Set every dropout entry of a configuration and of its nested configurations, in place; None stays None.

    Args:
        config: of transformers, of PEFT, a dict, or any other object; one without entries stays as it is.
        p: probability of zeroing an element.
    """
    for owner, key, path in config_entries(config, CONFIG_NAME):
        try:
            if isinstance(owner, dict):
                owner[key] = p
            else:
                setattr(owner, key, p)
        except Exception as error:  # strict configurations raise their own error types
            raise ValueError(f"{type(config).__name__} does not take {path}={p}: {error}") from error


def dropout_settings(config: Any) -> dict[str, float]:
    """The dropout entries of a configuration and of its nested configurations, by name, without those of None."""
    return {path: entries(owner)[key] for owner, key, path in config_entries(config, CONFIG_NAME)}


# ---- What is missing, and what was not set ----


def _missing_dropout(model: nn.Module, twins: dict[str, PreTrainedModel], p: float) -> list[str]:
    """Paths of identities that would be dropout modules if the model had been built with dropout.

    The twin shows which these are. An adapter has no counterpart there, nor has a class that is not built from its
    configuration alone; then the name decides.
    """
    missing = []
    for path in [path for path, module in model.named_modules() if type(module) is nn.Identity]:
        owner, _, name = path.rpartition(".")
        if isinstance(model.get_submodule(owner), nn.ModuleDict):  # adapters by name
            owner, _, name = owner.rpartition(".")
        twin = counterpart(path, twins)
        if isinstance(twin, nn.Dropout):
            missing.append(path)
        elif twin is None and DROPOUT_NAME.search(name) and not name.endswith(_ROTATIONS):
            if p > 0 and type(model.get_submodule(owner)).__name__ == "ParamWrapper":
                raise ValueError(
                    f"The LoRA adapter of {owner} is one of parameters, and these take no dropout: set the model's "
                    "dropout before the adapter is added."
                )
            missing.append(path)
    return missing


def _unknown_dropout(model: nn.Module) -> list[str]:
    """The modules that are said to be dropout, and that hold no probability in themselves or in their parts."""
    return [
        f"{path} ({type(module).__name__})"
        for path, module in model.named_modules()
        if (is_dropout(module) and next(places_of(module), None) is None)
        or (type(module) is nn.Identity and f"{_ROTATIONS}." in path)
    ]


def _warn_of_exceptions(model: nn.Module, twins: dict[str, PreTrainedModel], p: float) -> None:
    """Read everything back, and warn of what has another dropout or would have it when loaded again."""
    others = [f"{place.name} ({place.p:g})" for place in places_of(model) if place.p != p] + _unknown_dropout(model)
    if others:
        logger.warning_once(
            f"{type(model).__name__} has dropout that was not set to {p:g}, because it does not take the value or no "
            f"attribute is known to be its probability: {_some(others)}. Set it there."
        )
    lost = [
        f"{outer}.{place.name} ({place.p:g})".lstrip(".")
        for outer, twin in twins.items()
        for place in places_of(twin)
        if place.p != p
    ]
    if lost:
        logger.warning_once(
            f"No entry of the configuration stores the dropout of {_some(lost)}: it is {p:g} now, and a saved "
            f"{type(model).__name__} is loaded with the value in brackets."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
