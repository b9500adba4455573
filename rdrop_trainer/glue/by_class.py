"""How well each class is predicted, and what it is taken for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def scores_by_class(labels: Sequence[str], predictions: Sequence[int], references: Sequence[int]) -> dict[str, Any]:
    """Scores of each class, and the confusion matrix.

    Args:
        labels: names, in the order of their ids.
        predictions, references: ids, (N,) each; a reference below 0 does not count.

    Returns:
        `scores`: name -> `rows` with this label, `precision`, `recall` and `f1`, 0 where they are not defined.
        `confusion`: name of the label -> name of the prediction -> number of rows, as far as there are any.

    >>> scores_by_class(["no", "yes"], predictions=[1, 1, 0], references=[1, 0, 0])["confusion"]
    {'no': {'no': 1, 'yes': 1}, 'yes': {'yes': 1}}
    """
    predicted, expected = np.asarray(predictions, dtype=int), np.asarray(references, dtype=int)
    predicted, expected = predicted[expected >= 0], expected[expected >= 0]
    counts = np.zeros((len(labels), len(labels)), dtype=int)  # (label, prediction)
    np.add.at(counts, (expected, predicted), 1)
    right, rows, answers = counts.diagonal(), counts.sum(1), counts.sum(0)
    scores = {
        name: {
            "rows": int(rows[i]),
            "precision": float(right[i] / max(answers[i], 1)),
            "recall": float(right[i] / max(rows[i], 1)),
            "f1": float(2 * right[i] / max(rows[i] + answers[i], 1)),
        }
        for i, name in enumerate(labels)
    }
    confusion = {
        name: {other: int(count) for other, count in zip(labels, counts[i], strict=True) if count}
        for i, name in enumerate(labels)
    }
    return {"scores": scores, "confusion": {name: found for name, found in confusion.items() if found}}
