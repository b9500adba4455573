"""What a model returns, whatever its form: a dictionary, an output of transformers, a tuple, a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

# Transformers fixes the order of these. A user's own names may stand in any order
_IN_ORDER = ("logits", "start_logits", "end_logits")


def by_name(outputs: Any, names: Sequence[str]) -> dict[str, Any]:
    """Outputs by name. The entries of a plain tuple behind its loss are called "0", "1", ..., and by those of `names`
    whose order is fixed.
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, torch.Tensor):
        return {"logits": outputs}
    if hasattr(outputs, "_asdict"):
        return outputs._asdict()
    entries = list(outputs)
    found = {"loss": entries.pop(0)} if begins_with_loss(entries) else {}
    found |= {name: value for name, value in zip(names, entries, strict=False) if name in _IN_ORDER}
    return found | {str(i): value for i, value in enumerate(entries)}


def begins_with_loss(entries: Sequence[Any]) -> bool:
    """Whether a tuple begins with a loss, a single number."""
    first = entries[0] if entries else None
    return isinstance(first, torch.Tensor) and (first.dim() == 0 or (first.shape == (1,) and len(entries) > 1))


def entry_at(value: Any, path: Sequence[str]) -> Any:
    """What stands at a path of names and positions within an output; None if there is no such."""
    for step in path:
        if isinstance(value, Mapping):
            value = value.get(step)
        else:
            is_there = isinstance(value, (tuple, list)) and step.isdigit() and int(step) < len(value)
            value = value[int(step)] if is_there else None
    return value


def tensors_in(value: Any, name: str) -> dict[str, torch.Tensor]:
    """The tensors in an output, itself or its entries, by name."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, (tuple, list)):
        entries = enumerate(value)
    inner = {f"{name}.{key}": inside for key, inside in entries}
    return {key: v for key, v in {name: value, **inner}.items() if isinstance(v, torch.Tensor)}


def kept(outputs: Any, names: Sequence[str] | None) -> Any:
    """Outputs without all but losses and those of some names; None: all of them."""
    if names is None or not isinstance(outputs, Mapping):
        return outputs
    keys = {name.split(".")[0] for name in names}
    if any(outputs.get(key) is None for key in keys):
        return outputs
    return {key: value for key, value in outputs.items() if key in keys or key.endswith("loss")}


def with_loss(output: Any, loss: torch.Tensor, has_loss: bool) -> Any:
    """An output in its own type (a dataclass as a dictionary), with a loss in front, in the place of its own where it
    has one.
    """
    if isinstance(output, Mapping):
        merged = {"loss": loss, **{k: v for k, v in output.items() if k != "loss"}}
        takes_loss = not is_dataclass(output) or "loss" in {field.name for field in fields(output)}
        return type(output)(**merged) if takes_loss else merged
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(loss=loss) if has_loss else (loss, *output)
    if is_dataclass(output):
        return {"loss": loss, **{k: v for k, v in by_name(output, ()).items() if k != "loss"}}
    rest = output if isinstance(output, tuple) else (output,)
    return (loss, *(rest[1:] if has_loss else rest))
