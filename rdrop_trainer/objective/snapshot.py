"""What moves in a forward pass besides its outputs, and is put back: random numbers, buffers, training modes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


class Snapshot:
    """The state of NumPy's and Python's generators and of a model's buffers, to be put back.

    SpecAugment draws from NumPy, word dropout often from `random`; BatchNorm and memory banks keep buffers. torch's
    generators are left to `torch.random.fork_rng` and to `torch.utils.checkpoint`.
    """

    def __init__(self, model: nn.Module):
        self._numpy, self._python = np.random.get_state(), random.getstate()
        self._buffers = [
            (module._buffers, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and _may_move(buffer)
        ]

    def restore(self) -> None:
        """Put everything back, unseen by autograd, which may hold a buffer for a backward."""
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        for owner, name, buffer, before in self._buffers:
            owner[name] = buffer  # a forward may put another tensor in its place
            buffer.data.copy_(before)


@contextmanager
def same_noise(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Gives all random states and the model's buffers back as they were: what follows draws the same noise."""
    before = Snapshot(model)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
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


def _may_move(buffer: torch.Tensor) -> bool:
    """Whether a forward may write to a buffer. Quantised weights (integers) and expanded tensors are not for that."""
    is_expanded = any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
    return (buffer.is_floating_point() or buffer.numel() <= 1024) and not is_expanded
