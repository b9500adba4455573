"""The reliability diagram: how often predictions are right, by how confident they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._extras import import_optional
from ..stability.calibration import confidence_bins
from .figures import figure_of, finish, label, looks
from .runs import FinishedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
_FEWEST = 20  # predictions in a bin; the share of fewer says nothing


class Reliability(NamedTuple):
    """Predictions in bins of confidence of equal width, (BINS,) each.

    Attributes:
        confidence: mean probability of the predicted class, in %; NaN in an empty bin.
        accuracy: predictions that are right, in %; NaN in an empty bin.
        rows: number of predictions.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    rows: np.ndarray


def reliability_of(runs: Sequence[FinishedRun]) -> Reliability | None:
    """The evaluation rows of some runs, pooled; None unless all have logits (N, C) and labels (N,) of classes."""
    if not runs or not all(_are_classified(run) for run in runs):
        return None
    softmax = import_optional("scipy.special", extra="report").softmax
    found = [confidence_bins(softmax(np.asarray(run.logits, dtype=float), axis=1), run.labels, BINS) for run in runs]
    rows, confidence, right = (np.sum(parts, axis=0) for parts in zip(*found, strict=True))
    with np.errstate(invalid="ignore"):
        return Reliability(100 * confidence / rows, 100 * right / rows, rows)


def _are_classified(run: FinishedRun) -> bool:
    logits = run.class_logits
    if logits is None or run.labels is None:
        return False
    labels = np.asarray(run.labels)
    return labels.dtype.kind in "iu" and bool((labels != -100).any()) and labels.shape == logits.shape[:1]


def draw_reliability(arms: Mapping[str, Sequence[FinishedRun]], title: str) -> Figure | None:
    """Accuracy by confidence, and how many predictions have it, of the arms whose logits are known."""
    found = {arm: bins for arm, runs in arms.items() if (bins := reliability_of(runs)) is not None}
    if not found:
        return None
    figure, (left, right) = figure_of(2, 3.4)
    left.plot([0, 100], [0, 100], color="#999999", linewidth=1, label="calibrated")
    edges = np.linspace(0, 100, BINS + 1)
    for arm, bins in found.items():
        look = looks(arms)[arm]
        shown = bins.rows >= min(_FEWEST, bins.rows.max())
        left.plot(bins.confidence[shown], bins.accuracy[shown], label=label(arm), markersize=6, linewidth=1.5, **look)
        share = 100 * bins.rows / bins.rows.sum()
        right.stairs(share, edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.8, baseline=None)
    lowest = min(edges[np.flatnonzero(bins.rows)[0]] for bins in found.values())
    left.set(xlim=(lowest - 2, 101), ylim=(0, 102), xlabel="confidence (%)", ylabel="right (%)")
    right.set(xlim=(lowest - 2, 101), ylim=(0, None), xlabel="confidence (%)", ylabel="share of predictions (%)")
    return finish(figure, left, title)
