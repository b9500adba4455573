"""`rdrop_loss`: checks its arguments, asks a backend for the loss of every item, and normalises."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

from . import reference
from .fused import FusedLoss, Walk

Problem = Literal["single_label", "multi_label", "regression"]
PROBLEMS = ("single_label", "multi_label", "regression")
REDUCTIONS = ("mean", "sum")
IMPLEMENTATIONS = ("auto", "reference", "chunked", "triton")
# From so many logits on the closed form is faster than autograd through the formulas
CHUNKED_FROM = 2**13
# Up to so many the work is done in float64: at that size it costs next to nothing, and the difference of two nearly
# equal distributions keeps its digits. Larger inputs use float32, where half precision was measured 9 % low.
FLOAT64_UP_TO = 2**20


class RDropLoss(NamedTuple):
    """The R-Drop loss and its two terms; all scalars in float32 (float64 for float64 logits).

    `loss = task_loss + alpha / 2 * divergence`.
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
            sequence of m tensors (N, C), one per pass, which saves putting them together. The arithmetic is done in
            float32 at least. A class whose logit is -inf in all passes contributes 0; in some passes only, the
            divergence is not finite.
        labels: for "single_label" (N,) integers, where -100 marks an unlabelled item: no task loss, but its divergence
            counts; for "multi_label" (N, C) in [0, 1]; for "regression" (N,) or (N, C). None: no item has a label.
        alpha: weight of the divergence, at least 0; the paper's alpha.
        num_passes: m, the number of passes. 1 gives the plain task loss and a divergence of 0.
        problem: "single_label" (cross-entropy and categorical KL), "multi_label" (binary cross-entropy, mean over
            classes, and Bernoulli KL, summed over classes) or "regression" (squared error and squared difference, means
            over output dimensions).
        mask: (N,) booleans: the items that count. The others add nothing and get a gradient of 0, whatever their labels
            and logits. None: all count.
        num_items: what the summed task loss is divided by. Default: the labelled items that count. With gradient
            accumulation or several processes, pass the count of the whole batch, and every micro-batch adds its exact
            share.
        num_divergence_items: what the summed divergence is divided by. Default: all items that count for
            `reduction="mean"`, 1 for `reduction="sum"`.
        reduction: "mean" or "sum" of the divergence over items; the task loss is a mean either way.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in [0, 1); only for "single_label".
        implementation: "reference" (the formulas as they are written, with autograd; float64 where that costs nothing),
            or, for "single_label", with gradients in closed form and next to no memory beside them: "chunked" (any
            device) and "triton" (one kernel, on a CUDA device). "auto" takes the fastest for shape and device. Only the
            reference has a gradient for a tensor alpha and second derivatives.

    Returns:
        `RDropLoss(loss, task_loss, divergence)`. With no labelled item the task loss is 0. A gradient through `loss` is
        the cheapest; through `task_loss` or `divergence` the fused implementations compute it in a round of their own.

    Raises:
        ValueError: shapes that do not fit, an unknown problem, reduction or implementation, one that is not available,
            alpha or label smoothing out of range.

    Source: Liang et al., "R-Drop: Regularized Dropout for Neural Networks", NeurIPS 2021, section 2, equations 1-4, and
    appendix A.4 for regression.
    """
    logits = (logits,) if isinstance(logits, torch.Tensor) else tuple(logits)
    _check(logits, labels, mask, alpha, num_passes, problem, reduction, label_smoothing, implementation)
    device = logits[0].device
    size = logits[0].shape[0] // (num_passes if len(logits) == 1 else 1)
    if labels is None and problem == "single_label":
        labels = torch.full((size,), reference.IGNORE_INDEX, device=device)

    counted = size if mask is None else mask.sum()
    if num_items is None and problem == "single_label":
        labelled = labels != reference.IGNORE_INDEX
        num_items = (labelled if mask is None else labelled & mask).sum()
    elif num_items is None:
        num_items = counted
    if num_divergence_items is None:
        num_divergence_items = counted if reduction == "mean" else 1

    backend = _choose(implementation, logits, problem, alpha)
    if backend == "reference":
        task, divergence = _by_reference(logits, labels, mask, num_passes, problem, label_smoothing)
        task_weight, divergence_weight = _one_over(num_items, task), _one_over(num_divergence_items, task)
        loss = task_weight * task
        if divergence is None:
            divergence = torch.zeros_like(task)
        else:
            loss = loss + alpha / 2 * (divergence_weight * divergence)
    else:
        dtype = working_dtype(_size(logits), logits[0]) if backend == "chunked" else torch.float32
        one = torch.ones((), dtype=dtype, device=device)
        task_weight, divergence_weight = _one_over(num_items, one), _one_over(num_divergence_items, one)
        walk = partial(
            _walk_of(backend),
            labels=labels.long(),
            num_passes=num_passes,
            mask=mask,
            label_smoothing=label_smoothing,
        )
        # Without a weight in the loss the divergence is still reported, and may have a gradient of its own
        in_loss = divergence_weight * (alpha / 2) if num_passes > 1 and alpha > 0 else None
        with torch.autocast(device.type, enabled=False):
            loss, task, divergence = FusedLoss.apply(walk, task_weight, in_loss, *logits)
    result_dtype = torch.promote_types(logits[0].dtype, torch.float32)
    return RDropLoss(*(term.to(result_dtype) for term in (loss, task_weight * task, divergence_weight * divergence)))


def _by_reference(logits, labels, mask, num_passes, problem, label_smoothing):
    """Sums of task loss and divergence over the items that count; the divergence of a single pass is None."""
    z = logits[0].unflatten(0, (num_passes, -1)) if len(logits) == 1 else torch.stack(logits)  # (m, N, C)
    z = z.to(working_dtype(z.numel(), z))
    if mask is not None:
        z, labels = z[:, mask], None if labels is None else labels[mask]
    if problem == "single_label":
        task, divergence = reference.single_label(z, labels.long(), label_smoothing)
    else:
        backend = reference.multi_label if problem == "multi_label" else reference.regression
        targets = z.new_zeros(z.shape[1:]) if labels is None else labels.reshape(z.shape[1:])
        task, divergence = backend(z, targets)
        if labels is None:
            task = torch.zeros_like(task)
    return task.sum(), None if divergence is None else divergence.sum()


def _choose(implementation: str, logits: tuple[torch.Tensor, ...], problem: Problem, alpha) -> str:
    """The backend for these logits.

    Raises:
        ValueError: an implementation that does not do this problem, or that this device does not have.
    """
    closed_form = problem == "single_label" and not (isinstance(alpha, torch.Tensor) and alpha.requires_grad)
    if implementation == "triton" and not _triton_fits(logits):
        raise ValueError(
            "implementation='triton' needs logits on a CUDA device, in float32, bfloat16 or float16, and the package "
            f"triton (it comes with torch for CUDA); got {logits[0].dtype} on {logits[0].device}. Use 'auto'."
        )
    if implementation in ("chunked", "triton") and not closed_form:
        raise ValueError(
            f"implementation={implementation!r} computes problem='single_label' with a number for alpha, got "
            f"{problem!r} and alpha={alpha!r}. Use 'auto' or 'reference'."
        )
    if implementation != "auto":
        return implementation
    # A compiler fuses the formulas by itself, better than it could look into an autograd Function
    if not closed_form or torch.compiler.is_compiling():
        return "reference"
    if logits[0].is_cuda and _triton_fits(logits):
        return "triton"
    return "chunked" if _size(logits) >= CHUNKED_FROM else "reference"


def _one_over(count: int | float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """1 / count as a scalar like another, and 1 where nothing was counted, without asking the device."""
    if isinstance(count, torch.Tensor):
        return 1 / count.where(count > 0, 1).to(like)
    return torch.full((), 1 / count if count > 0 else 1.0, dtype=like.dtype, device=like.device)


def working_dtype(size: int, logits: torch.Tensor) -> torch.dtype:
    """The type the loss of so many logits is computed in: float64 where the device has it and there are few of them."""
    if logits.dtype == torch.float64:
        return torch.float64
    return torch.float64 if size <= FLOAT64_UP_TO and logits.device.type in ("cpu", "cuda") else torch.float32


def _size(logits: Sequence[torch.Tensor]) -> int:
    return sum(z.numel() for z in logits)


def _triton_fits(logits: tuple[torch.Tensor, ...]) -> bool:
    """Whether the kernel can run on these logits: on a CUDA device, or anywhere in Triton's interpreter."""
    there = logits[0].is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return there and logits[0].dtype != torch.float64 and find_spec("triton") is not None


def _walk_of(backend: str) -> Walk:
    # Triton is there on some machines only, and slow to import
    return import_module(f".{backend}", __package__).walk


def _check(logits, labels, mask, alpha, num_passes, problem, reduction, label_smoothing, implementation) -> None:
    known = {"problem": PROBLEMS, "reduction": REDUCTIONS, "implementation": IMPLEMENTATIONS}
    for (name, choices), value in zip(known.items(), (problem, reduction, implementation), strict=True):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown; expected one of {', '.join(choices)}.")
    if not (isinstance(alpha, torch.Tensor) or (math.isfinite(alpha) and alpha >= 0)):
        raise ValueError(f"alpha must be a finite number of at least 0, got {alpha}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
    if label_smoothing and problem != "single_label":
        raise ValueError(f"label_smoothing={label_smoothing} only fits problem='single_label', got {problem!r}.")
    if num_passes < 1:
        raise ValueError(f"num_passes must be at least 1, got {num_passes}.")
    first, shapes = logits[0], [tuple(z.shape) for z in logits]
    if not first.is_floating_point() or any(z.dtype != first.dtype for z in logits):
        raise ValueError(f"logits must have one floating type, got {', '.join(str(z.dtype) for z in logits)}.")
    if len(logits) not in (1, num_passes) or first.dim() != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"logits must be one tensor of shape (num_passes * N, C) or {num_passes} of (N, C), with "
            f"num_passes={num_passes}, got {', '.join(map(str, shapes))}."
        )
    if len(logits) == 1 and first.shape[0] % num_passes:
        raise ValueError(
            f"logits must have shape (num_passes * N, C) with num_passes={num_passes}, got {shapes[0]}; "
            "stack the passes one after the other along dimension 0 and flatten tokens into it."
        )
    size, classes = first.shape[0] // (num_passes if len(logits) == 1 else 1), first.shape[1]
    if mask is not None and (tuple(mask.shape) != (size,) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be booleans of shape ({size},), got {mask.dtype} of {tuple(mask.shape)}.")
    if labels is None:
        return
    expected = {"single_label": [(size,)], "multi_label": [(size, classes)], "regression": [(size, classes)]}[problem]
    if problem == "regression" and classes == 1:
        expected.append((size,))
    if tuple(labels.shape) not in expected:
        raise ValueError(
            f"labels must have shape {' or '.join(map(str, expected))} for problem={problem!r} with logits "
            f"{shapes[0]} and num_passes={num_passes}, got {tuple(labels.shape)}: labels are those of one "
            "pass and are not repeated."
        )
    if problem != "single_label":
        return
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers for problem='single_label', got {labels.dtype}.")
    # On other devices the check would wait for the device, which reports the index itself
    if labels.device.type == "cpu":
        wrong = (labels.long() != reference.IGNORE_INDEX) & ((labels < 0) | (labels >= classes))
        outside = labels[wrong if mask is None else wrong & mask]
        if len(outside):
            raise ValueError(f"labels must be {reference.IGNORE_INDEX} or in [0, {classes}), got {outside[0].item()}.")
