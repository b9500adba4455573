"""`rdrop_loss`: checks its arguments, asks a backend for the sums over items, and normalises them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch

from . import reference
from .backends import choose, loss_and_grad_of, working_dtype
from .fused import FusedLoss, LossAndGrad, Number, one_over
from .validation import Problem, check_labels, check_passes, check_settings


class RDropLoss(NamedTuple):
    """The R-Drop loss and its two terms; all scalars in float32 (float64 for float64 logits).

    Attributes:
        loss: `task_loss + alpha / 2 * divergence`.
        task_loss: the task's own loss, mean over items and passes.
        divergence: symmetric KL between passes in nats, or squared difference for a regression; not yet weighted.

    Examples:
        >>> import torch
        >>> logits = torch.zeros(4, 3)  # two passes that agree
        >>> loss, task_loss, divergence = rdrop_loss(logits, torch.tensor([0, 2]), alpha=4.0)
        >>> round(task_loss.item(), 4), divergence.item(), bool(loss == task_loss)
        (1.0986, 0.0, True)
    """

    loss: torch.Tensor
    task_loss: torch.Tensor
    divergence: torch.Tensor


def rdrop_loss(
    logits: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor | None,
    *,
    alpha: float,
    num_passes: int = 2,
    problem: Problem = "single_label",
    mask: torch.Tensor | None = None,
    num_items: int | float | torch.Tensor | None = None,
    num_divergence_items: int | float | torch.Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
    implementation: Literal["auto", "reference", "chunked", "triton"] = "auto",
) -> RDropLoss:
    """Task loss plus the weighted symmetric KL between several passes over the same items.

        loss = task_loss + alpha / 2 * divergence

    `task_loss` is the mean over items and passes of the task's own loss; `divergence` the mean over items and pairs of
    passes of the symmetric KL ½[KL(p_a‖p_b) + KL(p_b‖p_a)]. Every pass receives a gradient. With two passes this is one
    half of the paper's objective, so alpha has the paper's meaning and the loss keeps the scale of plain fine-tuning.

    Args:
        logits: (m·N, C), any floating type: all N items of the first pass, then all of the second, and so on; or a
            sequence of m tensors (N, C), one per pass, which saves a copy. The arithmetic is done in float32 at least.
            A class whose logit is -inf in all passes contributes 0; if it is -inf in some passes only, the divergence
            is not finite. For "multi_label" and "regression" an entry below -1e8 in all passes does not count, unless
            all entries of its item are.
        labels: for "single_label" (N,) integers, where -100 marks an unlabeled item: no task loss, but its divergence
            counts; or, as `cross_entropy` takes them, (N, C) probabilities. For "multi_label" (N, C) in [0, 1], where
            -100 marks a class that counts neither in the task loss nor in the divergence of its item. For "regression"
            (N,) or (N, C). None: no item has a label.
        alpha: weight of the divergence, at least 0; the paper's alpha.
        num_passes: m, the number of passes. 1 gives the plain task loss and a divergence of 0.
        problem: "single_label" (cross-entropy and categorical KL), "multi_label" (binary cross-entropy, mean over
            classes, and Bernoulli KL, summed over classes) or "regression" (squared error and squared difference, means
            over output dimensions).
        mask: (N,) booleans: the items that count. The others add nothing and get a gradient of 0, whatever their labels
            and logits. For "multi_label" and "regression" also (N, C): the entries that count; the means over classes
            and dimensions are over those, and an item without any does not count. None: all count.
        num_items: what the summed task loss is divided by. Default: the labeled items that count. With gradient
            accumulation or several processes, pass the count of the whole batch, and every micro-batch adds its exact
            share.
        num_divergence_items: what the summed divergence is divided by. Default: all items that count for
            `reduction="mean"`, 1 for `reduction="sum"`.
        reduction: "mean" or "sum" of the divergence over items; the task loss is a mean either way.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in [0, 1); only for "single_label".
        implementation: "reference" computes the formulas as they are written, with autograd, in float64 where that
            costs nothing. For "single_label" there are two with gradients in closed form, which take next to no memory
            besides them: "chunked" (any device) and "triton" (one kernel, on a CUDA device). "auto" takes the fastest
            for shape and device. Only the reference has second derivatives, a gradient for a tensor alpha, and
            labels that are probabilities.

    Returns:
        `RDropLoss(loss, task_loss, divergence)`. With no labeled item the task loss is 0. Call `backward` on `loss`:
        a gradient through `task_loss` or `divergence` costs "chunked" and "triton" another computation.

    Raises:
        ValueError: shapes that do not fit, an unknown problem, reduction or implementation, one that is not available,
            alpha or label smoothing out of range.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])  # 2 items, 2 passes
        >>> terms = rdrop_loss(logits, torch.tensor([0, 1]), alpha=4.0)
        >>> {name: round(term.item(), 4) for name, term in terms._asdict().items()}
        {'loss': 0.3698, 'task_loss': 0.2201, 'divergence': 0.0749}

    Source: Liang et al., "R-Drop: Regularized Dropout for Neural Networks", NeurIPS 2021, section 2, equations 1-4, and
    appendix A.4 for regression.
    """
    logits = (logits,) if isinstance(logits, torch.Tensor) else tuple(logits)
    check_settings(alpha, num_passes, problem, reduction, label_smoothing, implementation)
    size = check_passes("logits", logits, num_passes)
    check_labels(labels, mask, problem, size, logits[0].shape[1], probabilities=True)
    if labels is None and problem == "single_label":
        labels = torch.full((size,), reference.IGNORE_INDEX, device=logits[0].device)

    are_probabilities = problem == "single_label" and labels.dim() == 2
    are_classes = problem == "single_label" and not are_probabilities
    backend = choose(implementation, logits, problem, alpha, are_probabilities)
    if backend == "triton":  # counts by itself
        if num_divergence_items is None and (reduction == "sum" or mask is None):
            num_divergence_items = 1 if reduction == "sum" else size
    else:
        classes, of_items = labels if are_classes else None, _items_that_count(mask, labels, problem)
        num_items, num_divergence_items = counts(size, classes, of_items, reduction, num_items, num_divergence_items)
    if backend != "reference":
        loss_and_grad = partial(
            loss_and_grad_of(backend, working_dtype(logits)),
            labels=labels.long(),
            num_passes=num_passes,
            num_items=num_items,
            num_divergence_items=num_divergence_items,
            mask=mask,
            label_smoothing=label_smoothing,
        )
        return fused_loss(loss_and_grad, logits, num_passes, alpha)
    task, divergence = _by_reference(logits, labels, mask, num_passes, problem, label_smoothing)
    task_loss = one_over(num_items, task.dtype, task.device) * task
    if divergence is None:
        return _result(task_loss, task_loss, torch.zeros_like(task_loss), logits[0].dtype)
    divergence = one_over(num_divergence_items, task.dtype, task.device) * divergence
    return _result(task_loss + alpha / 2 * divergence, task_loss, divergence, logits[0].dtype)


def _items_that_count(mask: torch.Tensor | None, labels: torch.Tensor | None, problem: Problem) -> torch.Tensor | None:
    """(N,) booleans: the items with an entry that counts; None: all."""
    if problem == "multi_label" and labels is not None:
        entries = labels != reference.IGNORE_INDEX  # (N, C)
        return (entries if mask is None else entries & (mask if mask.dim() == 2 else mask[:, None])).any(-1)
    return mask if mask is None or mask.dim() == 1 else mask.any(-1)


def fused_loss(
    loss_and_grad: LossAndGrad, tensors: Sequence[torch.Tensor | None], num_passes: int, alpha: float | torch.Tensor
) -> RDropLoss:
    """`rdrop_loss` by a `loss_and_grad` of some tensors."""
    alpha = float(alpha)
    if not torch.is_grad_enabled():  # a Function sees which tensors require gradients, not that none are wanted
        tensors = [None if t is None else t.detach() for t in tensors]
    # With alpha 0 the divergence is still reported, and may have a gradient of its own
    in_loss = None if num_passes > 1 and alpha == 0 else alpha / 2
    loss, task_loss, divergence = FusedLoss.apply(loss_and_grad, in_loss, *tensors)
    return _result(loss, task_loss, divergence, tensors[0].dtype)


def counts(
    size: int,
    labels: torch.Tensor | None,
    mask: torch.Tensor | None,
    reduction: str,
    num_items: Number | None,
    num_divergence_items: Number | None,
) -> tuple[Number, Number]:
    """What the sums over items are divided by: the caller's counts, else the defaults of `rdrop_loss`.

    Args:
        size: N.
        labels: (N,), where -100 marks an item without a task loss; None: all have one.
        mask: (N,) booleans, the items that count; None: all.
        reduction: of the divergence.
        num_items, num_divergence_items: the caller's; None: the default.
    """
    counted = size if mask is None else mask.sum()
    if num_items is None and labels is not None:
        labeled = labels != reference.IGNORE_INDEX
        num_items = (labeled if mask is None else labeled & mask).sum()
    if num_divergence_items is None:
        num_divergence_items = counted if reduction == "mean" else 1
    return counted if num_items is None else num_items, num_divergence_items


def _result(loss: torch.Tensor, task_loss: torch.Tensor, divergence: torch.Tensor, dtype: torch.dtype) -> RDropLoss:
    dtype = dtype if dtype == torch.float64 else torch.float32
    return RDropLoss(loss.to(dtype), task_loss.to(dtype), divergence.to(dtype))


def _by_reference(logits, labels, mask, num_passes, problem, label_smoothing):
    """Sums of task loss and divergence over the items that count; the divergence of a single pass is None."""
    z = logits[0].unflatten(0, (num_passes, -1)) if len(logits) == 1 else torch.stack(logits)  # (m, N, C)
    z = z.to(working_dtype(logits))
    entries = mask[:, None] if mask is not None and mask.dim() == 1 else mask  # (N, 1) or (N, C)
    if problem == "single_label":
        targets = labels if labels.is_floating_point() else labels.long()
        if entries is not None:  # to pick rows would wait for the device; these add nothing, as all passes are alike
            z = z.masked_fill(~entries, 0)
            unlabeled = 0 if labels.is_floating_point() else reference.IGNORE_INDEX
            targets = targets.where(mask if targets.dim() == 1 else entries, unlabeled)
        task, divergence = reference.single_label(z, targets, label_smoothing)
    else:
        backend = reference.multi_label if problem == "multi_label" else reference.regression
        targets = z.new_zeros(z.shape[1:]) if labels is None else labels.reshape(z.shape[1:])
        task, divergence = backend(z, targets, entries)
        if labels is None:
            task = task.masked_fill(torch.ones_like(task, dtype=torch.bool), 0)  # keeps a graph, with a gradient of 0
    return task.sum(), None if divergence is None else divergence.sum()
