"""How much predictions for the same examples differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..losses import reference
from ..objective.heads import PredictionHead

_Z = 1.959964  # the normal quantile of a 95 % interval


@dataclass(frozen=True)
class Stability:
    """How much predictions for the same examples differ; each array has one value per example.

    Attributes:
        flips: (N,) float64, the share of the predictions whose label differs from the one they are compared with: the
            model's own, without dropout and for the unedited text, or that of another seed. For a token head it is the
            mean over tokens. It is NaN for a regression.
        divergence: (N,) float64, symmetric KL in nats, as in the R-Drop loss, or squared difference for a regression.
            It is the mean over the pairs of predictions that are compared, and over the tokens of a token head.
        items: (N,) integers, what an example counts in the means below: the number of its edits or tokens, else 1.
    """

    flips: np.ndarray
    divergence: np.ndarray
    items: np.ndarray

    @property
    def flip_rate(self) -> float:
        """Mean of `flips` over all items."""
        return self._mean(self.flips)

    @property
    def flip_interval(self) -> tuple[float, float]:
        """A 95 % interval of `flip_rate` over other examples of the same kind, Wilson's.

        Every example counts as one trial, however many of its predictions are compared: those of one example are
        alike. So the interval is rather too wide than too narrow. (NaN, NaN) where there is no rate.
        """
        rate, n = self.flip_rate, int((self.items > 0).sum())
        if math.isnan(rate):
            return math.nan, math.nan
        middle, margin = rate + _Z**2 / (2 * n), _Z * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
        low, high = ((middle + side) / (1 + _Z**2 / n) for side in (-margin, margin))
        return max(low, 0.0), min(high, 1.0)

    @property
    def mean_divergence(self) -> float:
        """Mean of `divergence` over all items."""
        return self._mean(self.divergence)

    def _mean(self, values: np.ndarray) -> float:
        counted = self.items > 0
        return float(np.average(values[counted], weights=self.items[counted])) if counted.any() else float("nan")


def compare(
    head: PredictionHead, batch: Mapping[str, Any], own: list[torch.Tensor], samples: list[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(flips, divergence, items) per row. Each part of the head has its `own` logits (n, C) and `samples` (m, n, C)."""
    rows, size = head.rows_of_items(batch)
    rows = rows.cpu().numpy()
    items, parts = np.bincount(rows, minlength=size), []
    for z, drawn in zip(own, samples, strict=True):
        flips = np.mean([differ(head, z, sample) for sample in drawn], axis=0)
        parts.append([mean_by(rows, values, items) for values in (flips, divergence_of(head, drawn))])
    flips, divergence = np.mean(parts, axis=0)
    return flips, divergence, items


def divergence_of(head: PredictionHead, logits: torch.Tensor) -> np.ndarray:
    """Divergence per item, (n,): the mean over pairs of the m predictions (m, n, C)."""
    problem = head.problem_of(logits)
    if problem == "single_label":
        none = torch.full(logits.shape[1:2], reference.IGNORE_INDEX, device=logits.device)
        return reference.single_label(logits, none, 0.0)[1].cpu().numpy()
    function = reference.multi_label if problem == "multi_label" else reference.regression
    return function(logits, torch.zeros_like(logits[0]))[1].cpu().numpy()


def differ(head: PredictionHead, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Whether two predictions (n, C) differ: 1, 0, or NaN for a regression."""
    problem = head.problem_of(a)
    if problem == "regression":
        return np.full(len(a), np.nan)
    if problem == "multi_label":
        return ((a > 0) != (b > 0)).any(-1).cpu().double().numpy()
    return (a.argmax(-1) != b.argmax(-1)).cpu().double().numpy()


def mean_by(rows: np.ndarray, values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Mean of the values of each row's items; NaN for a row without items."""
    sums = np.bincount(rows, weights=values, minlength=len(items))
    return np.divide(sums, items, out=np.full(len(items), np.nan), where=items > 0)
