"""The scores of a run on its validation splits, and with `--measure` how stable its predictions are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import EvalPrediction

from .card import score_prefix
from .prepare import Prepared
from .resolve import RunConfig
from .stability import measure_stability


class Evaluated(NamedTuple):
    """What was found of the validation splits.

    Attributes:
        metrics: scores and costs, with the prefix of their split.
        by_class: split -> what `scores_by_class` returns, for classification of rows.
        stability: the `split` and what `measure_stability` found of it.
    """

    metrics: Mapping[str, float] = {}
    by_class: Mapping[str, Mapping[str, Any]] = {}
    stability: Mapping[str, Any] | None = None


def evaluate(config: RunConfig, prepared: Prepared) -> Evaluated:
    """Evaluate the model on all validation splits."""
    if not config.training.do_eval:
        return Evaluated()
    trainer, processor, splits = prepared.trainer, prepared.processor, prepared.splits("validation")
    metrics: dict[str, float] = {}
    by_class: dict[str, Any] = {}
    predicted: dict[str, EvalPrediction] = {}
    broken: set[str] = set()
    with prepared.clock("eval"):
        for split in splits:
            features, rows = prepared.features[split], prepared.data[split]
            trainer.compute_metrics = _keeping(predicted, split, prepared.compute_metrics(split))
            metrics |= trainer.evaluate(features, metric_key_prefix=score_prefix(split))
            if split in predicted and processor.broke_down(predicted[split].predictions):
                broken.add(split)
            elif split in predicted and processor.has_classes:
                answers = processor.answers(predicted[split].predictions, features, rows)
                by_class[split] = processor.by_class(answers, rows)
    if config.data.measure == "none":
        return Evaluated(metrics, by_class)
    known = predicted.get(splits[0]) if config.task.head in ("sequence", "choice") else None
    with prepared.clock("stability"):
        found = measure_stability(config, prepared, splits[0], known, splits[0] in broken)
    return Evaluated(metrics, by_class, {"split": splits[0], **found})


def _keeping(kept: dict[str, EvalPrediction], split: str, compute: Callable | None) -> Callable | None:
    """A `compute_metrics` that also keeps what was predicted, so that nothing is predicted twice."""

    def keep(prediction: EvalPrediction) -> dict[str, float]:
        kept[split] = prediction
        return compute(prediction)

    return keep if compute else None
