"""How well each class is predicted, and what it is taken for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._extras import import_optional


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
    sklearn, ids = import_optional("sklearn.metrics"), range(len(labels))
    columns = sklearn.precision_recall_fscore_support(expected, predicted, labels=ids, zero_division=0.0)
    scores = {
        name: {"rows": int(rows), "precision": float(precision), "recall": float(recall), "f1": float(f1)}
        for name, precision, recall, f1, rows in zip(labels, *columns, strict=True)
    }
    counts = sklearn.confusion_matrix(expected, predicted, labels=ids)  # (label, prediction)
    confusion = {
        name: {other: int(count) for other, count in zip(labels, row, strict=True) if count}
        for name, row in zip(labels, counts, strict=True)
    }
    return {"scores": scores, "confusion": {name: found for name, found in confusion.items() if found}}
