"""Checks of the arguments of the losses. A wrong one raises a `ValueError` that says what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from . import devices
from .reference import IGNORE_INDEX

Problem = Literal["single_label", "multi_label", "regression"]
PROBLEMS = ("single_label", "multi_label", "regression")
REDUCTIONS = ("mean", "sum")
IMPLEMENTATIONS = ("auto", "reference", "chunked", "triton")


def check_settings(alpha, num_passes, problem, reduction, label_smoothing, implementation) -> None:
    """Check the settings, which do not depend on the tensors."""
    for name, value, choices in (
        ("problem", problem, PROBLEMS),
        ("reduction", reduction, REDUCTIONS),
        ("implementation", implementation, IMPLEMENTATIONS),
    ):
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


def check_passes(name: str, passes: Sequence[torch.Tensor], num_passes: int) -> int:
    """Check the logits or hidden states of all passes, in one tensor (m·N, C) or m of (N, C); returns N."""
    if not passes:
        raise ValueError(f"{name} must be one tensor or {num_passes}, got an empty sequence.")
    first, shapes = passes[0], [tuple(z.shape) for z in passes]
    if not first.is_floating_point() or any(z.dtype != first.dtype for z in passes):
        raise ValueError(f"{name} must have one floating type, got {', '.join(str(z.dtype) for z in passes)}.")
    if len(passes) not in (1, num_passes) or first.dim() != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"{name} must be one tensor of shape (num_passes * N, C) or {num_passes} of (N, C), with "
            f"num_passes={num_passes}, got {', '.join(map(str, shapes))}."
        )
    if len(passes) == num_passes:
        return first.shape[0]
    if first.shape[0] % num_passes:
        raise ValueError(
            f"{name} must have shape (num_passes * N, C) with num_passes={num_passes}, got {shapes[0]}; "
            "stack the passes one after the other along dimension 0 and flatten tokens into it."
        )
    return first.shape[0] // num_passes


def check_labels(
    labels: torch.Tensor | None,
    mask: torch.Tensor | None,
    problem: str,
    size: int,
    classes: int,
    probabilities: bool = False,
) -> None:
    """Check labels and mask of N = size items; `probabilities`: the labels of "single_label" may be (N, C) floats."""
    masks = [(size,)] if problem == "single_label" else [(size,), (size, classes)]
    if mask is not None and (tuple(mask.shape) not in masks or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be booleans of shape {' or '.join(map(str, masks))}, got {mask.dtype} of {tuple(mask.shape)}."
        )
    if labels is None:
        return
    soft = probabilities and problem == "single_label" and labels.is_floating_point() and labels.dim() == 2
    expected: list[tuple[int, ...]] = [(size,)] if problem == "single_label" and not soft else [(size, classes)]
    if problem == "regression" and classes == 1:
        expected.append((size,))
    if tuple(labels.shape) not in expected:
        raise ValueError(
            f"labels must have shape {' or '.join(map(str, expected))} for problem={problem!r} with {size} items of "
            f"{classes} classes, got {tuple(labels.shape)}: labels are those of one pass and are not repeated."
        )
    if problem != "single_label" or soft:
        return
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers for problem='single_label', got {labels.dtype}.")
    if devices.can_read(labels):  # a device reports a wrong index itself
        wrong = (labels.long() != IGNORE_INDEX) & ((labels < 0) | (labels >= classes))
        outside = labels[wrong if mask is None else wrong & mask]
        if len(outside):
            raise ValueError(f"labels must be {IGNORE_INDEX} or in [0, {classes}), got {outside[0].item()}.")
