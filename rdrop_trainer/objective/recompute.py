"""A forward pass that keeps nothing for the backward, and runs again there.

`torch.utils.checkpoint` does the same for a layer. For a whole pass it takes a multiple of the time for each of the
hundreds of tensors that are kept, and it gives back the random states of those devices alone that it sees among the
arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

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
    shapes: list[torch.Size] = []
    kept: dict[int, torch.Tensor] = {}
    lock = threading.RLock()  # the backward has a thread for each device

    def count(tensor: torch.Tensor) -> int:
        shapes.append(tensor.shape)
        return len(shapes) - 1

    def find(index: int) -> torch.Tensor:
        with lock:
            if index not in kept:
                kept.update(enumerate(again()))
            return kept.pop(index)  # so that memory is given back as the backward goes

    def again() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        now = Snapshot(model, device)
        start.restore()
        try:
            with autocast(), torch.enable_grad(), saved_tensors_hooks(lambda t: found.append(t.detach()), _unused):
                run()
        finally:
            now.restore()
        if [tensor.shape for tensor in found] != shapes:
            raise RuntimeError(
                f"A pass that rdrop_forward_mode='recompute' ran again in the backward kept {len(found)} tensors, and "
                f"{len(shapes)} at first, or tensors of other shapes: the model does not do the same twice. Use "
                "rdrop_forward_mode='sequential' or 'concat'."
            )
        return found

    with saved_tensors_hooks(count, find):
        return run()


def _unused(_):
    raise AssertionError("the graph of a pass that ran again has no backward")


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
