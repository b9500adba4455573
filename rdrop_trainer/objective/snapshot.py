"""What moves in a forward pass besides its outputs, and is put back: random numbers, buffers, training modes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import nn


class Snapshot:
    """The states of all random generators and of a model's buffers, to be put back.

    Dropout draws from the generator of its device, SpecAugment from NumPy, word dropout often from `random`; BatchNorm
    and memory banks keep buffers.

    Args:
        model: whose buffers.
        device: of the pass; all devices of its kind have generators, of which a model on several of them uses some.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self._owners, self._device = [module._buffers for module in model.modules()], device
        self._take()

    def again(self) -> Snapshot:
        """Another of the same model, without a look for its modules."""
        other = copy(self)
        other._take()
        return other

    def _take(self) -> None:
        self._numpy, self._python, self._torch = np.random.get_state(), random.getstate(), torch.get_rng_state()
        self._devices = [(set_state, get_state()) for get_state, set_state in _generators(self._device)]
        self._buffers = [
            (owner, name, buffer, buffer.detach().clone())
            for owner in self._owners
            for name, buffer in owner.items()
            if buffer is not None and _may_move(buffer)
        ]
        self._addresses = {_address(buffer) for *_, buffer, _ in self._buffers} - {0}

    def restore(self) -> None:
        """Put everything back, unseen by autograd, which may hold a buffer for a backward."""
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        for set_state, state in self._devices:
            set_state(state)
        for owner, name, buffer, before in self._buffers:
            owner[name] = buffer  # a forward may put another tensor in its place
            buffer.data.copy_(before)

    def changes(self, tensor: torch.Tensor) -> bool:
        """Whether `restore` writes to the memory of a tensor."""
        return bool(self._addresses) and _address(tensor) in self._addresses


@contextmanager
def same_noise(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Gives all random states and the model's buffers back as they were: what follows draws the same noise."""
    before = Snapshot(model, device)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Gives every module's training mode back as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _generators(device: torch.device) -> list[tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], None]]]:
    """How to get and to set the state of each generator of the devices of this kind, the CPU's aside."""
    if device.type in ("cpu", "meta"):
        return []
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # XLA has none: what a pass draws there cannot be drawn again, which `check_repeats` sees
        return []
    if device.type == "mps":  # which is one device
        return [(module.get_rng_state, module.set_rng_state)]
    devices = range(module.device_count())
    return [(partial(module.get_rng_state, d), partial(module.set_rng_state, device=d)) for d in devices]


def _address(tensor: torch.Tensor) -> int:
    """Of a tensor's memory; 0 where it has none of its own, as that of a subclass or a sparse one."""
    is_plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if is_plain else 0


def _may_move(buffer: torch.Tensor) -> bool:
    """Whether a forward may write to a buffer. Quantised weights (integers) and expanded tensors are not for that."""
    is_expanded = any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
    return (buffer.is_floating_point() or buffer.numel() <= 1024) and not is_expanded
