"""`--measure`: how much a run measures beside its scores, so that it costs at most a fifth of the training."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import datasets
import numpy as np

from .prepare import Prepared
from .resolve import RunConfig

Rows = TypeVar("Rows", datasets.Dataset, np.ndarray)
_MOST_REPEATS, _LEAST_REPEATS = 8, 2  # there are 8 kinds of edits; and one prediction alone has no divergence
_MOST_PROBED, _LEAST_PROBED = 100, 4  # training rows
_MOST_POINTS, _LEAST_POINTS = 20, 4
# A step of plain training costs as much as some three predictions of its rows: one pass forward, and two backward
_PREDICTIONS_PER_ROW = 3
_OF_STABILITY, _OF_PROBE = 0.15, 0.05  # of the training


class Extent(NamedTuple):
    """How much of a run is measured.

    Attributes:
        probe_rows, probe_points: training rows whose divergence is followed, and how often beside the start; no rows,
            no curve.
        rows: of the features of the main validation split.
        repeats: predictions of each under dropout, and at most as many edits of its text.
    """

    probe_rows: int
    probe_points: int
    rows: int
    repeats: int


def extent_of(config: RunConfig, prepared: Prepared) -> Extent:
    """How much a run measures.

    It is counted in predictions of one row, not in seconds: so it is the same on every machine, and in R-Drop and its
    baseline, whose training costs less.
    """
    features = prepared.features
    training = len(features.get("train", ()))
    splits = prepared.splits("validation")
    evaluation = len(features[splits[0]]) if splits else 0
    if config.data.measure == "none":
        return Extent(0, 0, 0, 0)
    if config.data.measure == "full":
        return Extent(min(_MOST_PROBED, training), _MOST_POINTS, evaluation, _MOST_REPEATS)
    return quick_extent(_rows_trained(config, training), training, evaluation, edits=config.task.head == "sequence")


def quick_extent(rows_trained: float, training: int, evaluation: int, *, edits: bool) -> Extent:
    """What a fifth of a plain training pays for.

    Args:
        rows_trained: rows that a process trains on, over all epochs.
        training, evaluation: how many rows there are.
        edits: whether edits of the text are measured. The scores then come with the model's own predictions; else these
            cost one more prediction of each row.
    """
    affordable = int(rows_trained * _PREDICTIONS_PER_ROW * _OF_PROBE) // 2  # by pairs
    points = min(max(affordable // 32 - 1, _LEAST_POINTS), _MOST_POINTS)
    probed = min(affordable // (points + 1), _MOST_PROBED, training)
    affordable = int(rows_trained * _PREDICTIONS_PER_ROW * _OF_STABILITY)
    parts, own = (2, 0) if edits else (1, 1)
    repeats = min(max((affordable // max(evaluation, 1) - own) // parts, _LEAST_REPEATS), _MOST_REPEATS)
    rows = min(affordable // (parts * repeats + own), evaluation)
    return Extent(probed if probed >= _LEAST_PROBED else 0, points, rows, repeats)


def even_share(rows: Rows, size: int) -> Rows:
    """So many of the rows, at even distances, because files are often sorted by label."""
    chosen = [i * len(rows) // size for i in range(size)]
    return rows[chosen] if isinstance(rows, np.ndarray) else rows.select(chosen)


def _rows_trained(config: RunConfig, training: int) -> float:
    """Labeled rows that one process trains on."""
    args = config.training
    if args.max_steps > 0:
        return args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    return args.num_train_epochs * training / args.world_size
