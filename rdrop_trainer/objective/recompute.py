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
    return _Pass(run, model, device).first()


class _Pass:
    """A forward pass, the places of its tensors in the graph, and what it needs to run again.

    Attributes:
        places: of the tensors that the graph would hold, in the order in which they were kept; as weak references.
        forms: shape, type and device of each.
        hooks: of its outputs, which begin the backward.
    """

    def __init__(self, run: Callable[[], Any], model: nn.Module, device: torch.device):
        self.run, self.start, self.autocast = run, Snapshot(model, device), _autocast_of(device)
        self.places: list[weakref.ref[_Place]] = []
        self.forms: list[tuple[Any, ...]] = []
        self.hooks: list[RemovableHandle] = []
        self.lock = threading.RLock()  # the backward has a thread for each device

    def first(self) -> Any:
        """Run for the first time, and keep nothing."""
        with saved_tensors_hooks(self._mark, self._find):
            outputs = self.run()
        self._fill(repeat(None))  # where the pass took gradients itself
        # Before the backward enters the first module: DeepSpeed's ZeRO-3 gathers a module's weights there, and would
        # let go of them where the forward leaves it
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:  # a weight would keep the hook for ever
                self.hooks.append(tensor.register_hook(self._begin))
        return outputs

    def _begin(self, _: torch.Tensor) -> None:
        """The backward begins: run again, where a tensor is missing."""
        with self.lock:
            while self.hooks:  # an output may be held for longer than this pass
                self.hooks.pop().remove()
            if any((place := reference()) is not None and place.tensor is None for reference in self.places):
                self._again()

    def _mark(self, tensor: torch.Tensor) -> _Place:
        place = _Place()
        self.places.append(weakref.ref(place))
        self.forms.append(_form(tensor))
        return place

    def _find(self, place: _Place) -> torch.Tensor | None:
        with self.lock:
            if place.tensor is None:
                self._again()
            return place.tensor

    def _fill(self, tensors: Iterable[torch.Tensor | None]) -> None:
        for reference, tensor in zip(self.places, tensors, strict=False):
            if (place := reference()) is not None:
                place.tensor = tensor

    def _again(self) -> None:
        found: list[torch.Tensor] = []
        now = self.start.again()

        def keep(tensor: torch.Tensor) -> int:
            tensor = tensor.detach()
            found.append(tensor.clone() if now.changes(tensor) else tensor)
            return len(found) - 1

        self.start.restore()
        try:
            with self.autocast(), torch.enable_grad(), saved_tensors_hooks(keep, found.__getitem__):
                self.run()
        finally:
            now.restore()
        if [_form(tensor) for tensor in found[: len(self.forms)]] != self.forms:
            raise RuntimeError(
                f"A pass that rdrop_forward_mode='recompute' ran again in the backward kept {len(found)} tensors, and "
                f"{len(self.forms)} at first, or tensors of other shapes or types: the model does not do the same "
                "twice. Use rdrop_forward_mode='sequential' or 'concat'."
            )
        self._fill(found)
        found.clear()  # a model may hold its last outputs, and the graph behind them this list


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
