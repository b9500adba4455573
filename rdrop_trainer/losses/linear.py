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
from functools import partial
from typing import Literal

import torch

from .chunked import split_passes
from .rdrop import RDropLoss, choose_fused, counts, fused, loss_and_grad_of
from .reference import IGNORE_INDEX
from .validation import check_labels, check_passes, check_settings

# Rows of all passes in a chunk: enough that reading the weights, and adding to their gradient, costs little beside
# multiplying by them
ROWS_ON_CPU, ROWS_ON_DEVICE = 256, 2048


def loss_and_grad(
    tensors: Sequence[torch.Tensor | None],
    task_weight: torch.Tensor,
    divergence_weight: torch.Tensor,
    with_grad: bool,
    *,
    of_logits: Callable,
    labels: torch.Tensor,
    num_passes: int,
    mask: torch.Tensor | None,
    label_smoothing: float,
    logit_scale: float,
    softcap: float | None,
    needed: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...] | None]:
    """Sums over items of task loss and divergence, and the gradients of their weighted sum.

    Args:
        tensors: hidden states, of all passes in one tensor or one tensor per pass, then weight and bias.
        of_logits: the `loss_and_grad` of a backend, for the logits of a chunk.
        needed: which of the tensors need a gradient.
        The others: as in `chunked.loss_and_grad` and `rdrop_linear_loss`.
    """
    *hidden, weight, bias = tensors
    m, dtype, device = num_passes, hidden[0].dtype, weight.device
    passes = split_passes(hidden, m)  # m of (N, H)
    chosen = torch.arange(len(labels), device=device) if mask is None else mask.nonzero()[:, 0]
    matrix = weight.to(dtype)  # (C, H)
    offset = None if bias is None else bias.to(dtype)

    grad_hidden = grad_weight = grad_bias = None
    if with_grad:
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        if any(needed[: len(hidden)]):
            grad_hidden = torch.zeros((m, *passes[0].shape), dtype=dtype, device=device)
        if needed[-2]:
            grad_weight = torch.zeros_like(weight, dtype=sum_dtype)
        if needed[-1]:
            grad_bias = torch.zeros_like(bias, dtype=sum_dtype)

    rows = max(1, (ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_DEVICE) // m)
    logits = torch.empty((m * min(rows, len(chosen)), len(weight)), dtype=dtype, device=device)
    sums = torch.zeros(2, dtype=task_weight.dtype, device=device)
    for at in chosen.split(rows) if len(chosen) else ():
        h = torch.cat([z[at] for z in passes])  # (m·r, H)
        z = logits[: len(h)]
        torch.mm(h, matrix.T, out=z) if offset is None else torch.addmm(offset, h, matrix.T, out=z)
        if logit_scale != 1:
            z.mul_(logit_scale)
        if softcap is not None:
            z.div_(softcap).tanh_()
            slope = 1 - z.square() if with_grad else None
            z.mul_(softcap)
        task, divergence, _ = of_logits(
            (z,),
            task_weight,
            divergence_weight,
            with_grad,
            labels=labels[at],
            num_passes=m,
            label_smoothing=label_smoothing,
            overwrite=True,
        )
        sums += torch.stack([task, divergence])
        if not with_grad:
            continue
        if softcap is not None:
            z.mul_(slope)
        if logit_scale != 1:
            z.mul_(logit_scale)
        if grad_hidden is not None:
            grad_hidden[:, at] = (z @ matrix).unflatten(0, (m, -1))
        if grad_weight is not None:
            grad_weight.addmm_(z.T, h) if grad_weight.dtype == dtype else grad_weight.add_(z.T @ h)
        if grad_bias is not None:
            grad_bias.add_(z.sum(0))
    total_task, total_divergence = sums.unbind()
    if not with_grad:
        return total_task, total_divergence, None
    grad_passes: Sequence[torch.Tensor | None]
    if grad_hidden is None:
        grad_passes = [None] * len(hidden)
    else:
        grad_passes = (grad_hidden.flatten(0, 1),) if len(hidden) == 1 else grad_hidden.unbind()
    grad_head = (None if g is None else g.to(t.dtype) for g, t in ((grad_weight, weight), (grad_bias, bias)))
    return total_task, total_divergence, (*grad_passes, *grad_head)


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

    Besides the gradients it takes the memory of 256 rows of logits (2,048 on a GPU), whatever the number of items.

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
    device = weight.device
    labels = torch.full((size,), IGNORE_INDEX, device=device) if labels is None else labels.long()
    num_items, num_divergence_items = counts(size, labels, mask, reduction, num_items, num_divergence_items)
    tensors = (*hidden, weight, bias)
    of_tensors = partial(
        loss_and_grad,
        of_logits=loss_and_grad_of(choose_fused(implementation, hidden[0])),
        labels=labels,
        num_passes=num_passes,
        mask=mask,
        label_smoothing=label_smoothing,
        logit_scale=logit_scale,
        softcap=softcap,
        needed=[t is not None and t.requires_grad for t in tensors],
    )
    dtype = torch.promote_types(hidden[0].dtype, torch.float32)
    return fused(of_tensors, tensors, dtype, num_passes, alpha, num_items, num_divergence_items)


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
