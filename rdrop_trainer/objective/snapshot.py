"""What moves in a forward pass besides its outputs: random numbers that are not torch's, and buffers."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


class Snapshot:
    """The state of NumPy's and Python's generators and of a model's buffers, to be put back.

    SpecAugment draws from NumPy, word dropout often from `random`; BatchNorm and memory banks keep buffers. torch's
    generators are left to `torch.random.fork_rng` and to `torch.utils.checkpoint`.

    Args:
        model: whose buffers.
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


def _may_move(buffer: torch.Tensor) -> bool:
    """Whether a forward may write to a buffer. Quantised weights (integers) and expanded tensors are not for that."""
    is_expanded = any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
    return (buffer.is_floating_point() or buffer.numel() <= 1024) and not is_expanded
