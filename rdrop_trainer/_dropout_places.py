"""Where a model's dropout is: the numbers that its modules read, and the entries of its configurations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from numbers import Real
from typing import Any, NamedTuple

from torch import nn

# In names of classes and attributes: dropout, hidden_dropout_prob, attn_pdrop, ... LayerDrop and stochastic depth
# (drop_path) are other kinds of noise and are not changed.
DROPOUT_NAME = re.compile(r"dropout|pdrop", re.IGNORECASE)
OTHER_NOISE = re.compile(r"layer_?drop|drop_?path", re.IGNORECASE)
# In names of a configuration's entries: also attn_drop_rate, drop_mlp_rate, ...
CONFIG_NAME = re.compile(r"dropout|pdrop|drop_(?!path|connect|block)(\w+_)?(rate|prob)", re.IGNORECASE)
# Attributes of a class whose name says dropout: p, drop_prob, rate, ...
_OF_DROPOUT = re.compile(r"^_?(p|prob|probability|rate|ratio)$|drop", re.IGNORECASE)
# Other numbers in its company: keep_prob is the opposite, num_dropouts a count
_OTHER_NUMBER = re.compile(r"keep|eps$|epsilon|scale|temperature|momentum|^num_|^n_", re.IGNORECASE)


# ---- Modules ----


class Place(NamedTuple):
    """A number that dropout reads: an attribute of a module, or one entry of a dict in an attribute.

    Attributes:
        name: path of the module if its class is a kind of dropout; else path and attribute.
        module: whose training mode says whether the place is active.
        attribute: of the module.
        entry: key in the dict; None where the attribute is the number.
    """

    name: str
    module: nn.Module
    attribute: str
    entry: str | None = None

    @property
    def p(self) -> float:
        value = getattr(self.module, self.attribute)
        return float(value if self.entry is None else value[self.entry])

    def set(self, p: float) -> None:
        if self.entry is None:
            setattr(self.module, self.attribute, p)
        else:
            getattr(self.module, self.attribute)[self.entry] = p


def places_of(model: nn.Module) -> Iterator[Place]:
    """Every place of a model, active or not, in module order."""
    for path, module in model.named_modules():
        own = _own_probabilities(module)
        for attribute, value in list(vars(module).items()):
            name = f"{path}.{attribute}".lstrip(".")
            if attribute in own:
                yield Place(path if _is_leaf(module) else name, module, attribute)
            elif not DROPOUT_NAME.search(attribute):
                continue
            elif _is_probability(attribute, value):
                yield Place(name, module, attribute)
            elif type(value) is dict:  # by adapter, in PEFT's LoHa and LoKr
                for entry in (key for key, number in value.items() if _is_probability(attribute, number)):
                    yield Place(f"{name}.{entry}", module, attribute, entry)


def _own_probabilities(module: nn.Module) -> list[str]:
    """The attributes that hold the probability of a module whose class says dropout; none for another module."""
    if not is_dropout(module):
        return []
    numbers = {name: value for name, value in vars(module).items() if _is_probability(name, value)}
    named = [name for name in numbers if _OF_DROPOUT.search(name)]
    floats = [name for name, value in numbers.items() if not isinstance(value, int)]  # an int may be a counter
    return floats if not named and _is_leaf(module) and len(floats) == 1 else named


def is_dropout(module: nn.Module) -> bool:
    """Whether the name of the module's class, or of one that it is derived from, says so."""
    return any(DROPOUT_NAME.search(cls.__name__) for cls in type(module).__mro__)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and next(module.parameters(), None) is None


def _is_probability(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real) or _OTHER_NUMBER.search(name):
        return False
    return 0 <= float(value) < 1


# ---- Configurations ----


def configs_of(model: nn.Module) -> list[Any]:
    """The configurations of the model, of its parts and of its adapters, each once."""
    found: list[Any] = []
    for module in model.modules():
        adapters = getattr(module, "peft_config", None)
        found += [getattr(module, "config", None), *(adapters.values() if isinstance(adapters, dict) else ())]
    return list({id(config): config for config in found}.values())


def config_entries(config: Any, names: re.Pattern[str], prefix: str = "") -> Iterator[tuple[Any, str, str]]:
    """(owner, key, path) of the probabilities whose key matches, also in nested configurations."""
    for key, value in list(entries(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from config_entries(value, names, f"{prefix}{key}.")
        elif isinstance(key, str) and names.search(key) and _is_probability(key, value):
            yield config, key, prefix + key


def entries(config: Any) -> dict[str, Any]:
    """The entries of a configuration by name; none for None."""
    return config if isinstance(config, dict) else getattr(config, "__dict__", {})
