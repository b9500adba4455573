"""The loss of a linear output head, and its gradients, by chunks of rows.

With vocabularies of 30,000 to 250,000 classes the logits of a batch, their log-probabilities and their gradient take
more memory than the rest of the training step. Here the logits exist for a chunk of rows at a time. For rows h of
hidden states, weight W, bias β, scale s and soft cap c (without a cap, z = a and dz/da = 1),

    a = s (h Wᵀ + β),    z = c tanh(a / c),    dz/da = 1 - (z / c)²,

and with the gradient g = dloss/dz of `chunked` or `triton`, g' = s g dz/da, the chunk adds

    dloss/dh = g' W,    dloss/dW = Σ g'ᵀ h,    dloss/dβ = Σ g'.

The arithmetic is that of the unfused step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from .chunked import rows_that_count, split_passes
from .fused import Number, Terms

# Rows of all passes in a chunk. On a CPU enough that reading the weights, and adding to their gradient, costs little
# beside multiplying by them. On a device at least as many that the product takes as long as adding to the gradient:
# to read and write an entry of float32 takes an H100 or H200 as long as some 800 rows of bfloat16 (8 bytes at 4 TB/s,
# two operations a row at 800 TFLOP/s). More where the logits stay within a quarter of a gigabyte.
ROWS_ON_CPU, ROWS_ON_DEVICE = 256, 768
BYTES_ON_DEVICE = 2**28


def loss_and_grad(
    tensors: Sequence[torch.Tensor | None],
    task_scale: Number,
    divergence_scale: Number | None,
    with_grad: bool,
    *,
    of_logits: Callable,
    labels: torch.Tensor,
    num_passes: int,
    mask: torch.Tensor | None,
    logit_scale: float,
    softcap: float | None,
    needed: Sequence[bool],
) -> tuple[Terms, tuple[torch.Tensor | None, ...] | None]:
    """Task loss and divergence, the loss made of both, and its gradients; a `LossAndGrad`.

    Args:
        tensors: hidden states, of all passes in one tensor or one tensor per pass, then weight and bias.
        of_logits: the `loss_and_grad` of a backend, of the logits, labels and mask of a chunk.
        needed: which of the tensors need a gradient.
        The others: as in `chunked.loss_and_grad` and `rdrop_linear_loss`.
    """
    *hidden, weight, bias = tensors
    m, size, classes, dtype, device = num_passes, len(labels), len(weight), hidden[0].dtype, weight.device
    passes = split_passes(hidden, m)  # m of (N, H)
    chosen, mask = rows_that_count(mask)
    if chosen is not None:
        size = len(chosen)
    matrix = weight.to(dtype)  # (C, H)
    offset = None if bias is None else bias.to(dtype)

    grad_hidden = grad_weight = grad_bias = None
    if with_grad:
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        if any(needed[: len(hidden)]):
            new = torch.empty if chosen is None else torch.zeros
            grad_hidden = new((m, *passes[0].shape), dtype=dtype, device=device)
        if needed[-2]:
            grad_weight = torch.empty_like(weight, dtype=sum_dtype) if size else torch.zeros_like(weight)
        if needed[-1]:
            grad_bias = torch.zeros_like(bias, dtype=sum_dtype)

    rows = max(1, _rows_of_a_chunk(m * size, classes, dtype, device) // m)
    # A row has a multiple of 16 entries: with an odd vocabulary matrix products and kernels are slow otherwise
    logits = torch.empty((m * rows, classes + -classes % 16), dtype=dtype, device=device)
    sums = torch.zeros(3, dtype=torch.promote_types(dtype, torch.float32), device=device)
    for start in range(0, size, rows):
        here = slice(start, min(start + rows, size))
        at = here if chosen is None else chosen[here]
        h = torch.cat([z[at] for z in passes])  # (m·r, H)
        if mask is not None:  # rows that do not count may hold anything, and NaN times 0 is NaN
            h.masked_fill_(~mask[at].repeat(m).unsqueeze(-1), 0)
        z = logits[: len(h), :classes]
        slope = _fill_logits(z, h, matrix, offset, logit_scale, softcap, with_grad)
        mask_here = None if mask is None else mask[at]
        share, _ = of_logits(
            (z,), task_scale, divergence_scale, with_grad, labels=labels[at], mask=mask_here, overwrite=True
        )
        sums += torch.stack(share)
        if not with_grad:
            continue
        if slope is not None:  # z holds the gradient now
            z.mul_(slope)
        if logit_scale != 1:
            z.mul_(logit_scale)
        if grad_hidden is not None:
            grad_hidden[:, at] = (z @ matrix).unflatten(0, (m, -1))
        if grad_weight is not None:
            _add_product(grad_weight, z.T, h, beta=0 if start == 0 else 1)
        if grad_bias is not None:
            grad_bias.add_(z.sum(0))
    terms = sums[0].clone(), sums[1].clone(), sums[2].clone()
    if not with_grad:
        return terms, None
    del logits  # before the gradients in the type of the weights
    grad_passes: Sequence[torch.Tensor | None]
    if grad_hidden is None:
        grad_passes = [None] * len(hidden)
    else:
        grad_passes = (grad_hidden.flatten(0, 1),) if len(hidden) == 1 else grad_hidden.unbind()
    grad_head = (None if g is None else g.to(t.dtype) for g, t in ((grad_weight, weight), (grad_bias, bias)))
    return terms, (*grad_passes, *grad_head)


def _fill_logits(
    z: torch.Tensor,
    h: torch.Tensor,
    matrix: torch.Tensor,
    offset: torch.Tensor | None,
    logit_scale: float,
    softcap: float | None,
    with_slope: bool,
) -> torch.Tensor | None:
    """Write the logits of hidden states h to z; returns dz/da where it is asked for, and not 1."""
    torch.mm(h, matrix.T, out=z) if offset is None else torch.addmm(offset, h, matrix.T, out=z)
    if logit_scale != 1:
        z.mul_(logit_scale)
    if softcap is None:
        return None
    z.div_(softcap).tanh_()
    slope = 1 - z.square() if with_slope else None
    z.mul_(softcap)
    return slope


def _rows_of_a_chunk(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of all passes are computed together."""
    most = ROWS_ON_CPU
    if device.type != "cpu":
        most = max(ROWS_ON_DEVICE, BYTES_ON_DEVICE // (classes * dtype.itemsize))
    return min(rows, most)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: int) -> None:
    """total = beta * total + a @ b, where `total` may be of a wider type."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    elif _adds_into(total.dtype, a.dtype, a.device):
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)
    elif beta == 0:
        total.copy_(a @ b)
    else:
        total.add_(a @ b)


@cache
def _adds_into(wide: torch.dtype, narrow: torch.dtype, device: torch.device) -> bool:
    """Whether torch can add a product to a matrix of a wider type without making it first: on CUDA, from some version
    on."""
    total, factor = torch.zeros((16, 16), dtype=wide, device=device), torch.zeros((16, 16), dtype=narrow, device=device)
    try:
        torch.addmm(total, factor, factor, out_dtype=wide, out=total)
    except (TypeError, RuntimeError):  # NotImplementedError is one
        return False
    return True
