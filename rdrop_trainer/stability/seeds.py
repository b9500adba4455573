"""Stability across seeds: how much models that were trained with different seeds differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..losses.validation import Problem
from ..objective.heads import PredictionHead
from .measure import Stability, differ, divergence_of


def seed_stability(logits: Sequence[Any], problem: Problem = "single_label") -> Stability:
    """How much the predictions of models of different seeds differ for the same rows ("churn").

    Args:
        logits: of each model, (N, C), for the same N rows.
        problem: "single_label", "multi_label" or "regression".

    Returns:
        Per row, over all pairs of models: `flips`, the share that predict different labels (NaN for a regression), and
        `divergence`, the mean symmetric KL.

    Raises:
        InputError: fewer than two models, or logits of different shapes.

    Examples:
        >>> seed_stability([[[2.0, 0.0], [0.5, 0.0]], [[3.0, 0.0], [0.0, 0.5]]]).flips
        array([0., 1.])
    """
    stacked = [torch.as_tensor(np.asarray(z), dtype=torch.float64) for z in logits]
    shapes = [tuple(z.shape) for z in stacked]
    if len(stacked) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise InputError(f"logits: expected (N, C) of at least two models for the same rows, got {shapes}")
    head = PredictionHead("rows", problem)
    flips = np.mean([differ(head, a, b) for a, b in combinations(stacked, 2)], axis=0)
    return Stability(flips, divergence_of(head, torch.stack(stacked)), np.ones(len(flips), dtype=int))
