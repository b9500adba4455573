"""Models of transformers built a second time, to see what another dropout would have made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def twins_of(model: nn.Module, change: Callable[[PretrainedConfig], None], what: str) -> dict[str, PreTrainedModel]:
    """Twins, on the meta device, of the outermost models of transformers: of the model itself, or of those that a
    wrapper or PEFT has inside.

    Args:
        change: applied in place to a copy of each configuration.
        what: the change in words, for the error: "dropout 0.3".

    Returns:
        Twins by path; without those whose class needs more than a configuration.

    Raises:
        ValueError: a class refuses the changed configuration, but takes the present one.
    """
    twins: dict[str, PreTrainedModel] = {}
    outer: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(_is_inside(path, other) for other in outer):
            outer.append(path)
            twin = _twin(module, change, what)
            if twin is not None:
                twins[path] = twin
    return twins


def counterpart(path: str, twins: dict[str, PreTrainedModel]) -> nn.Module | None:
    """The module of a twin that stands for the module at a path of the model; None without one."""
    for outer, twin in twins.items():
        if _is_inside(path, outer):
            try:
                return twin.get_submodule(path[len(outer) :].lstrip("."))
            except AttributeError:
                return None
    return None


def _twin(model: PreTrainedModel, change: Callable[[PretrainedConfig], None], what: str) -> PreTrainedModel | None:
    changed = copy.deepcopy(model.config)
    change(changed)
    try:
        return _build(model, changed)
    except Exception as error:
        try:
            _build(model, copy.deepcopy(model.config))
        except Exception:
            return None
        raise ValueError(f"{type(model).__name__} cannot be built with {what}: {error}") from error


def _build(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return type(model)(config)


def _is_inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")
