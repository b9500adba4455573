"""`rdrop_loss`: checks its arguments, asks a backend for the loss of every item, and normalises."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from . import reference

Problem = Literal["single_label", "multi_label", "regression"]
PROBLEMS = ("single_label", "multi_label", "regression")
REDUCTIONS = ("mean", "sum")


class RDropLoss(NamedTuple):
    """The R-Drop loss and its two terms; all scalars in float32 (float64 for float64 logits).

    `loss = task_loss + alpha / 2 * divergence`.
    """

    loss: torch.Tensor
    task_loss: torch.Tensor
    divergence: torch.Tensor


def rdrop_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    alpha: float,
    num_passes: int = 2,
    problem: Problem = "single_label",
    num_items: int | float | torch.Tensor | None = None,
    num_divergence_items: int | float | torch.Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
) -> RDropLoss:
    """Task loss plus the weighted symmetric KL between several passes over the same items.

        loss = task_loss + alpha / 2 * divergence

    `task_loss` is the mean over items and passes of the task's own loss; `divergence` the mean over items and pairs of
    passes of the symmetric KL ½[KL(p_a‖p_b) + KL(p_b‖p_a)]. Every pass receives a gradient. With two passes this is one
    half of the paper's objective, so alpha has the paper's meaning and the loss keeps the scale of plain fine-tuning.

    Args:
        logits: (m·N, C), any floating type: all N items of the first pass, then all of the second, and so on. The
            arithmetic is done in float32 at least. A class whose logit is -inf in all passes contributes 0; in some
            passes only, the divergence is not finite.
        labels: for "single_label" (N,) integers, where -100 marks an unlabelled item: no task loss, but its divergence
            counts; for "multi_label" (N, C) in [0, 1]; for "regression" (N,) or (N, C). None: no item has a label.
        alpha: weight of the divergence, at least 0; the paper's alpha.
        num_passes: m, the number of passes. 1 gives the plain task loss and a divergence of 0.
        problem: "single_label" (cross-entropy and categorical KL), "multi_label" (binary cross-entropy, mean over
            classes, and Bernoulli KL, summed over classes) or "regression" (squared error and squared difference, means
            over output dimensions).
        num_items: what the summed task loss is divided by. Default: the labelled items. With gradient accumulation or
            several processes, pass the count of the whole batch, and every micro-batch adds its exact share.
        num_divergence_items: what the summed divergence is divided by. Default: all N items for `reduction="mean"`,
            1 for `reduction="sum"`.
        reduction: "mean" or "sum" of the divergence over items; the task loss is a mean either way.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in [0, 1); only for "single_label".

    Returns:
        `RDropLoss(loss, task_loss, divergence)`. With no labelled item the task loss is 0.

    Raises:
        ValueError: shapes that do not fit, an unknown problem or reduction, alpha or label smoothing out of range.

    Source: Liang et al., "R-Drop: Regularized Dropout for Neural Networks", NeurIPS 2021, section 2, equations 1-4, and
    appendix A.4 for regression.
    """
    _check(logits, labels, alpha, num_passes, problem, reduction, label_smoothing)
    result_dtype = torch.promote_types(logits.dtype, torch.float32)
    size = logits.shape[0] // num_passes
    z = logits.to(reference.working_dtype(logits)).reshape(num_passes, size, logits.shape[1])  # (m, N, C)

    if problem == "single_label":
        if labels is None:
            labels = torch.full((size,), reference.IGNORE_INDEX, device=logits.device)
        task, divergence = reference.single_label(z, labels.long(), label_smoothing)
        labelled = (labels != reference.IGNORE_INDEX).sum()
    else:
        backend = reference.multi_label if problem == "multi_label" else reference.regression
        targets = z.new_zeros(z.shape[1:]) if labels is None else labels.reshape(z.shape[1:])
        task, divergence = backend(z, targets)
        labelled = size
        if labels is None:
            task, labelled = torch.zeros_like(task), 0

    task_loss = _divide(task.sum(), labelled if num_items is None else num_items)
    if divergence is None:
        divergence_term = torch.zeros_like(task_loss)
        loss = task_loss
    else:
        if num_divergence_items is None:
            num_divergence_items = size if reduction == "mean" else 1
        divergence_term = _divide(divergence.sum(), num_divergence_items)
        loss = task_loss + alpha / 2 * divergence_term
    return RDropLoss(loss.to(result_dtype), task_loss.to(result_dtype), divergence_term.to(result_dtype))


def _divide(total: torch.Tensor, count: int | float | torch.Tensor) -> torch.Tensor:
    """total / count, and 0 (still attached to the graph) where nothing was counted, without asking the device."""
    count = torch.as_tensor(count, device=total.device, dtype=total.dtype)
    return total / count.where(count > 0, 1)


def _check(logits, labels, alpha, num_passes, problem, reduction, label_smoothing) -> None:
    if problem not in PROBLEMS:
        raise ValueError(f"problem={problem!r} is unknown; expected one of {', '.join(PROBLEMS)}.")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is unknown; expected one of {', '.join(REDUCTIONS)}.")
    if not (isinstance(alpha, torch.Tensor) or (math.isfinite(alpha) and alpha >= 0)):
        raise ValueError(f"alpha must be a finite number of at least 0, got {alpha}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
    if label_smoothing and problem != "single_label":
        raise ValueError(f"label_smoothing={label_smoothing} only fits problem='single_label', got {problem!r}.")
    if num_passes < 1:
        raise ValueError(f"num_passes must be at least 1, got {num_passes}.")
    if not logits.is_floating_point():
        raise ValueError(f"logits must have a floating type, got {logits.dtype}.")
    if logits.dim() != 2 or logits.shape[0] % num_passes:
        raise ValueError(
            f"logits must have shape (num_passes * N, C) with num_passes={num_passes}, got {tuple(logits.shape)}; "
            "stack the passes one after the other along dimension 0 and flatten tokens into it."
        )
    if labels is None:
        return
    size, classes = logits.shape[0] // num_passes, logits.shape[1]
    shapes = {"single_label": [(size,)], "multi_label": [(size, classes)], "regression": [(size, classes)]}[problem]
    if problem == "regression" and classes == 1:
        shapes.append((size,))
    if tuple(labels.shape) not in shapes:
        raise ValueError(
            f"labels must have shape {' or '.join(map(str, shapes))} for problem={problem!r} with logits "
            f"{tuple(logits.shape)} and num_passes={num_passes}, got {tuple(labels.shape)}: labels are those of one "
            "pass and are not repeated."
        )
    if problem != "single_label":
        return
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers for problem='single_label', got {labels.dtype}.")
    # On other devices the check would wait for the device, which reports the index itself
    if labels.device.type == "cpu":
        outside = labels[(labels.long() != reference.IGNORE_INDEX) & ((labels < 0) | (labels >= classes))]
        if len(outside):
            raise ValueError(f"labels must be {reference.IGNORE_INDEX} or in [0, {classes}), got {outside[0].item()}.")
