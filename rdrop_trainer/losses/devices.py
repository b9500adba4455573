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
    """Whether a Triton kernel can run on a tensor; without a GPU, in Triton's interpreter. ROCm, which torch calls cuda
    too, does not know the kernels' assembly."""
    return (
        (tensor.is_cuda and torch.version.hip is None) or os.environ.get("TRITON_INTERPRET") == "1"
    ) and _is_installed("triton")


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def require(holds: torch.Tensor, message: str, wait: bool = False) -> None:
    """Refuse values for which something does not hold.

    A CUDA device stops at the value and prints the message, so that nothing computed of it is ever used; the program
    gets an error when it next waits.

    Args:
        holds: a scalar boolean.
        message: at most 250 characters.
        wait: for the device, to raise here and now.

    Raises:
        ValueError: it does not hold.
    """
    if wait or can_read(holds) or holds.device.type not in ("cpu", "cuda"):
        if not holds:
            raise ValueError(message)
    else:
        torch._assert_async(holds, message)
