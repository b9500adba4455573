"""Which backend computes a loss, and in which type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch

from . import devices
from .validation import Problem

# From this many logits on, the closed form is faster than autograd through the formulas
CHUNKED_FROM = 2**13
# Up to this many logits the arithmetic is float64: it costs next to nothing there, and the difference of two nearly
# equal distributions keeps its digits. Larger inputs use float32; half precision was measured 9 % low.
FLOAT64_UP_TO = 2**20


def choose(implementation: str, logits: tuple[torch.Tensor, ...], problem: Problem, alpha, soft: bool) -> str:
    """The backend for these logits; `soft`: the labels are probabilities.

    Raises:
        ValueError: an implementation that does not compute this problem, or is not available on this device.
    """
    alpha_learns = isinstance(alpha, torch.Tensor) and alpha.requires_grad
    closed_form = problem == "single_label" and not alpha_learns and not soft
    if implementation in ("chunked", "triton") and not closed_form:
        raise ValueError(
            f"implementation={implementation!r} computes problem='single_label' with a number for alpha and integer "
            f"labels, got {problem!r}{' with probabilities' if soft else ''} and alpha={alpha!r}. Use 'auto' or "
            "'reference'."
        )
    # A compiler fuses the formulas by itself, and cannot see into an autograd Function
    unfused = not closed_form or torch.compiler.is_compiling()
    if implementation == "reference" or (implementation == "auto" and unfused):
        return "reference"
    backend = choose_fused(implementation, logits[0])
    is_small = backend == "chunked" and implementation == "auto" and _size(logits) < CHUNKED_FROM
    return "reference" if is_small else backend


def choose_fused(implementation: str, like: torch.Tensor) -> str:
    """The fused backend for logits of the type and on the device of a tensor.

    Raises:
        ValueError: Triton is asked for, and is not installed or cannot run on them.
    """
    if implementation == "chunked" or (implementation == "auto" and not like.is_cuda):
        return "chunked"
    if like.dtype != torch.float64 and devices.has_triton(like):
        return "triton"
    if implementation == "auto":
        return "chunked"
    raise ValueError(
        "implementation='triton' needs logits on a CUDA device, in float32, bfloat16 or float16, and the package "
        f"triton (it comes with torch for CUDA) in working order; got {like.dtype} on {like.device}. Use 'auto'."
    )


def working_dtype(logits: Sequence[torch.Tensor]) -> torch.dtype:
    """The type of the arithmetic: float64 where the device has it and the logits are few, else float32."""
    is_cheap = logits[0].device.type in ("cpu", "cuda") and _size(logits) <= FLOAT64_UP_TO
    return torch.float64 if is_cheap or logits[0].dtype == torch.float64 else torch.float32


def _size(logits: Sequence[torch.Tensor]) -> int:
    return sum(z.numel() for z in logits)


def loss_and_grad_of(backend: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The `loss_and_grad` of a fused backend; with its keywords bound it is a `LossAndGrad`.

    Args:
        backend: "chunked" or "triton".
        dtype: of the arithmetic; that of Triton's is float32.
    """
    # Triton is installed on some machines only, and is slow to import
    function = import_module(f".{backend}", __package__).loss_and_grad
    return partial(function, dtype=dtype) if backend == "chunked" else function
