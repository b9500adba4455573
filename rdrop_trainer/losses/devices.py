"""What may be asked of values that a device is still computing."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch._subclasses.fake_tensor import FakeTensor


def can_read(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be read at once. Those of a device cannot: the program would wait for it, and
    the device then for the program."""
    return tensor.device.type == "cpu"


def has_triton(tensor: torch.Tensor) -> bool:
    """Whether a Triton kernel can run on a tensor; without a GPU, in Triton's interpreter. ROCm, which torch calls cuda
    too, does not know the kernels' assembly."""
    has_device = (tensor.is_cuda and torch.version.hip is None) or os.environ.get("TRITON_INTERPRET") == "1"
    if isinstance(tensor, FakeTensor):  # of a tracer: no kernel can read it
        return False
    return has_device and _is_installed("triton") and _launches(tensor.device, tensor.dtype)


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


@cache
def _launches(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton compiles and launches a kernel here: the smallest one is tried, on one number.

    That takes a C compiler, a folder for what is compiled, and a Triton that knows the device and the type.
    """
    try:
        number = torch.ones(1, dtype=dtype, device=device)
        import_module(".triton", __package__).scale_(number, torch.ones((), device=device))
    except Exception as error:  # whatever is missing, the loss can be computed without
        if "out of memory" in str(error):  # which says nothing about Triton
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}: {reason}): the loss is computed in chunks instead, "
            "as right and slower. Triton needs a C compiler (gcc) and a folder to write to (TRITON_CACHE_DIR).",
            stacklevel=2,
        )
        return False
    return True


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
