"""What may be asked of values that a device is still computing."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch


def can_read(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be read at once. Those of a device cannot: the program would wait for it, and
    the device then for the program."""
    return tensor.device.type == "cpu"


def has_triton(tensor: torch.Tensor) -> bool:
    """Whether a Triton kernel can run on a tensor; without a GPU, in Triton's interpreter."""
    return (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and _is_installed("triton")


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def require(holds: torch.Tensor, message: str) -> None:
    """Refuse values for which something does not hold, a scalar boolean.

    A CUDA device is not waited for: it stops at the value, so that nothing computed of it is ever used, and prints the
    message; the program learns of it when it next waits.

    Args:
        holds: a scalar boolean.
        message: at most 250 characters.

    Raises:
        ValueError: it does not hold.
    """
    if holds.is_cuda:
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)
