"""`rdrop_linear_loss`: the R-Drop loss of a linear output head, whose logits never exist as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from .backends import choose_fused, loss_and_grad_of
from .linear_chunks import loss_and_grad
from .rdrop import RDropLoss, counts, fused_loss
from .reference import IGNORE_INDEX
from .validation import check_labels, check_passes, check_settings


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
    of_logits = partial(
        loss_and_grad_of(choose_fused(implementation, hidden[0]), torch.promote_types(hidden[0].dtype, torch.float32)),
        num_passes=num_passes,
        num_items=num_items,
        num_divergence_items=num_divergence_items,
        label_smoothing=label_smoothing,
    )
    of_tensors = partial(
        loss_and_grad,
        of_logits=of_logits,
        labels=labels,
        num_passes=num_passes,
        mask=mask,
        logit_scale=logit_scale,
        softcap=softcap,
        needed=[t is not None and t.requires_grad for t in tensors],
    )
    return fused_loss(of_tensors, tensors, num_passes, alpha)


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
