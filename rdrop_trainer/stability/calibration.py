"""Calibration: how confident a classifier is, and how far that is from how often it is right."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError


class ConfidenceBins(NamedTuple):
    """Predictions in bins of confidence of equal width from 0 to 1, (num_bins,) each.

    Attributes:
        rows: number of predictions.
        confidence: sum of the probabilities of their classes.
        right: how many are right.
    """

    rows: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def confidence_bins(probabilities: Any, labels: Any, num_bins: int) -> ConfidenceBins:
    """The labeled rows in bins; arguments and errors are those of `expected_calibration_error`."""
    confidence, right = _confidence(probabilities, labels)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    return ConfidenceBins(*(np.bincount(bins, weights, num_bins) for weights in (None, confidence, right)))


def expected_calibration_error(probabilities: Any, labels: Any, num_bins: int = 15) -> float:
    """How far a classifier's confidence is from its accuracy, over bins of confidence of equal width.

    Args:
        probabilities: (N, C), rows of which sum to 1.
        labels: (N,) class ids; rows labeled -100 are left out.
        num_bins: number of bins.

    Returns:
        The mean over examples of |accuracy - mean confidence| of their bin, in [0, 1].

    Raises:
        InputError: other shapes, rows that are not probabilities, or no row with a label.

    Examples:
        >>> round(expected_calibration_error([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1]), 3)
        0.433

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    bins = confidence_bins(probabilities, labels, num_bins)
    return float(np.abs(bins.right - bins.confidence).sum() / bins.rows.sum())


def mean_confidence(probabilities: Any, labels: Any) -> float:
    """Mean probability of the predicted class: how confident a classifier is.

    Args:
        probabilities: (N, C), rows of which sum to 1.
        labels: (N,) class ids; rows labeled -100 are left out.

    Returns:
        The mean over the labeled rows, in [1 / C, 1].

    Raises:
        InputError: other shapes, rows that are not probabilities, or no row with a label.
    """
    return float(_confidence(probabilities, labels)[0].mean())


def _confidence(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise InputError(f"expected probabilities (N, C) and labels (N,), got {probabilities.shape} and {labels.shape}")
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3) or (probabilities < 0).any():
        raise InputError("expected probabilities, rows of which sum to 1; apply softmax to logits first")
    probabilities, labels = probabilities[labels != -100], labels[labels != -100]
    if not len(labels):
        raise InputError("no row has a label, expected some to compare with")
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)
