"""A forward pass that keeps nothing for the backward, and runs again there.

`torch.utils.checkpoint` does the same for a layer. For a whole pass it takes a multiple of the time for each of the
hundreds of tensors that are kept, and it gives back the random states of those devices alone that it sees among the
arguments.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from .snapshot import Snapshot


def recomputed(run: Callable[[], Any], model: nn.Module, device: torch.device) -> Any:
    """What `run` returns, with a graph that holds none of its tensors: the backward runs it again.

    Args:
        run: a forward pass, which must do the same each time with the same random states and buffers.
        model: whose buffers are given back when it runs again, and after that.
        device: of the pass.

    Raises:
        RuntimeError: in the backward, if `run` then does something else.
    """
    start, autocast = Snapshot(model, device), _autocast_of(device)
    places: list[weakref.ref[_Place]] = []
    forms: list[tuple[Any, ...]] = []
    hooks: list[RemovableHandle] = []
    lock = threading.RLock()  # the backward has a thread for each device

    def mark(tensor: torch.Tensor) -> _Place:
        place = _Place()
        places.append(weakref.ref(place))
        forms.append(_form(tensor))
        return place

    def find(place: _Place) -> torch.Tensor | None:
        with lock:
            if place.tensor is None:
                again()
            return place.tensor

    def fill(tensors: Iterable[torch.Tensor | None]) -> None:
        for reference, tensor in zip(places, tensors, strict=False):
            if (place := reference()) is not None:
                place.tensor = tensor

    def again() -> None:
        found: list[torch.Tensor] = []
        now = Snapshot(model, device)

        def keep(tensor: torch.Tensor) -> int:
            tensor = tensor.detach()
            found.append(tensor.clone() if now.changes(tensor) else tensor)
            return len(found) - 1

        start.restore()
        try:
            with autocast(), torch.enable_grad(), saved_tensors_hooks(keep, found.__getitem__):
                run()
        finally:
            now.restore()
        if [_form(tensor) for tensor in found[: len(forms)]] != forms:
            raise RuntimeError(
                f"A pass that rdrop_forward_mode='recompute' ran again in the backward kept {len(found)} tensors, and "
                f"{len(forms)} at first, or tensors of other shapes or types: the model does not do the same twice. "
                "Use rdrop_forward_mode='sequential' or 'concat'."
            )
        fill(found)
        found.clear()  # a model may hold its last outputs, and the graph behind them this list

    def begin(_: torch.Tensor) -> None:
        with lock:
            while hooks:  # an output may be held for longer than this pass
                hooks.pop().remove()
            if any((place := reference()) is not None and place.tensor is None for reference in places):
                again()

    with saved_tensors_hooks(mark, find):
        outputs = run()
    fill(repeat(None))  # where the pass took gradients itself
    # Before the backward enters the first module: DeepSpeed's ZeRO-3 gathers a module's weights there, and would let go
    # of them where the forward leaves it
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:  # a weight would keep the hook for ever
            hooks.append(tensor.register_hook(begin))
    return outputs


class _Place:
    """Stands for a tensor in the graph, which lets go of it as the backward goes: its tensor goes with it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self) -> None:
        self.tensor: torch.Tensor | None = None


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _autocast_of(device: torch.device) -> Callable[[], Any]:
    """Makes contexts of mixed precision as it is now, which a thread of the backward does not know."""
    settings: list[dict[str, Any]] = [
        {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        for kind in {"cpu", device.type}
        if torch.amp.is_autocast_available(kind)
    ]

    @contextmanager
    def autocast() -> Iterator[None]:
        with ExitStack() as stack:
            for each in settings:
                stack.enter_context(torch.autocast(**each))
            yield

    return autocast
