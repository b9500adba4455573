"""The R-Drop loss of a linear output head: hidden states and weights go in, and the logits never exist as a whole.

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
from functools import cache, partial
from typing import Literal

import torch

from . import devices
from .chunked import split_passes
from .fused import Number, Terms
from .rdrop import RDropLoss, choose_fused, counts, fused, loss_and_grad_of
from .reference import IGNORE_INDEX
from .validation import check_labels, check_passes, check_settings

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
    num_items: Number,
    num_divergence_items: Number,
    mask: torch.Tensor | None,
    label_smoothing: float,
    logit_scale: float,
    softcap: float | None,
    needed: Sequence[bool],
) -> tuple[Terms, tuple[torch.Tensor | None, ...] | None]:
    """Task loss and divergence, the loss made of both, and its gradients; a `LossAndGrad`.

    Args:
        tensors: hidden states, of all passes in one tensor or one tensor per pass, then weight and bias.
        of_logits: the `loss_and_grad` of a backend, for the logits of a chunk.
        needed: which of the tensors need a gradient.
        The others: as in `chunked.loss_and_grad` and `rdrop_linear_loss`.
    """
    *hidden, weight, bias = tensors
    m, size, classes, dtype, device = num_passes, len(labels), len(weight), hidden[0].dtype, weight.device
    passes = split_passes(hidden, m)  # m of (N, H)
    chosen = None
    if mask is not None and devices.can_read(mask):  # the rows that count are picked, and no other is computed
        chosen, mask = mask.nonzero()[:, 0], None
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
        torch.mm(h, matrix.T, out=z) if offset is None else torch.addmm(offset, h, matrix.T, out=z)
        if logit_scale != 1:
            z.mul_(logit_scale)
        if softcap is not None:
            z.div_(softcap).tanh_()
            slope = 1 - z.square() if with_grad else None
            z.mul_(softcap)
        share, _ = of_logits(
            (z,),
            task_scale,
            divergence_scale,
            with_grad,
            labels=labels[at],
            num_passes=m,
            num_items=num_items,
            num_divergence_items=num_divergence_items,
            mask=mask if mask is None else mask[at],
            label_smoothing=label_smoothing,
            overwrite=True,
        )
        sums += torch.stack(share)
        if not with_grad:
            continue
        if softcap is not None:
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


def rdrop_linear_loss(
    hidden: torch.Tensor | Sequence[torch.Tensor],
    weight: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    bias: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    alpha: float,
    num_passes: int = 2,
    mask: torch.Tensor | None = None,
    num_items: int | float | torch.Tensor | None = None,
    num_divergence_items: int | float | torch.Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
    implementation: Literal["auto", "chunked", "triton"] = "auto",
) -> RDropLoss:
    """`rdrop_loss` of `logits = hidden @ weight.T + bias`, with gradients for all three.

    Besides the gradients it takes the memory of some rows of logits, whatever the number of items: 256, on a GPU 256
    MiB (or 768 rows, if those are more).

    Args:
        hidden: (m·N, H), or m of (N, H), as the logits of `rdrop_loss`. Its type is that of the matrix products:
            float32, float64, bfloat16 or float16. (In float16 the gradient is computed in the backward pass, when the
            loss scale is known, which costs one more product.)
        weight: (C, H), of any floating type; its gradient is summed up in float32 at least.
        labels: (N,) integers, -100 for an unlabeled item; None: no item has a label.
        bias: (C,). None: no bias.
        logit_scale: factor on the logits, bias included.
        softcap: c, for logits c * tanh(logits / c), after the scale. None: no cap.
        alpha: as in `rdrop_loss`, but a number.
        num_passes: m, as in `rdrop_loss`.
        mask: (N,) booleans: the items that count. None: all count.
        num_items: what the summed task loss is divided by. Default: the labeled items that count.
        num_divergence_items: what the summed divergence is divided by; defaults as in `rdrop_loss`.
        reduction: "mean" or "sum" of the divergence over items.
        label_smoothing: in [0, 1).
        implementation: how the loss of a chunk is computed, as in `rdrop_loss`.

    Returns:
        `RDropLoss(loss, task_loss, divergence)`.

    Raises:
        ValueError: as `rdrop_loss`, and for a weight or bias whose shape does not fit, or an alpha with a gradient.

    Examples:
        >>> import torch
        >>> hidden = torch.tensor([[1.0, 0.0], [0.5, 0.5]])  # one item, two passes
        >>> weight = torch.eye(3, 2)  # three classes
        >>> round(rdrop_linear_loss(hidden, weight, torch.tensor([0]), alpha=4.0).loss.item(), 4)
        0.9368

    Source: the loss as in `rdrop_loss`; soft-capping as in Gemma 2 (Gemma Team, 2024, section 2).
    """
    hidden = (hidden,) if isinstance(hidden, torch.Tensor) else tuple(hidden)
    if implementation == "reference":
        raise ValueError(
            "implementation='reference' computes logits as a whole: use rdrop_loss(hidden @ weight.T, ...)."
        )
    check_settings(alpha, num_passes, "single_label", reduction, label_smoothing, implementation)
    if isinstance(alpha, torch.Tensor) and alpha.requires_grad:
        raise ValueError(f"alpha must be a number, got {alpha}: rdrop_loss alone has a gradient for it.")
    size = check_passes("hidden", hidden, num_passes)
    classes = _check_head(hidden[0], weight, bias, softcap)
    check_labels(labels, mask, "single_label", size, classes)
    labels = torch.full((size,), IGNORE_INDEX, device=weight.device) if labels is None else labels.long()
    num_items, num_divergence_items = counts(size, labels, mask, reduction, num_items, num_divergence_items)
    tensors = (*hidden, weight, bias)
    of_tensors = partial(
        loss_and_grad,
        of_logits=loss_and_grad_of(
            choose_fused(implementation, hidden[0]), torch.promote_types(hidden[0].dtype, torch.float32)
        ),
        labels=labels,
        num_passes=num_passes,
        num_items=num_items,
        num_divergence_items=num_divergence_items,
        mask=mask,
        label_smoothing=label_smoothing,
        logit_scale=logit_scale,
        softcap=softcap,
        needed=[t is not None and t.requires_grad for t in tensors],
    )
    return fused(of_tensors, tensors, num_passes, alpha)


def _check_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> int:
    """Check weight and bias for these hidden states, (..., H), and the soft cap; returns C."""
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight must have shape (C, {hidden.shape[1]}) for hidden states {tuple(hidden.shape)}, got "
            f"{tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(bias.shape)}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be more than 0, got {softcap}.")
    return len(weight)
