"""The scores of a run on its validation splits, and with `--measure_stability` how stable its predictions are."""

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
    trainer, splits, stability = prepared.trainer, prepared.splits("validation"), None
    metrics: dict[str, float] = {}
    by_class: dict[str, Any] = {}
    with prepared.clock("eval"):
        for split in splits:
            features, rows = prepared.features[split], prepared.data[split]
            scored: list[Any] = []
            trainer.compute_metrics = _keeping(prepared.compute_metrics(split), scored)
            metrics |= trainer.evaluate(features, metric_key_prefix=score_prefix(split))
            if scored and prepared.processor.has_classes:
                answers = prepared.processor.answers(scored[-1], features, rows)
                by_class[split] = prepared.processor.by_class(answers, rows)
    if config.data.measure_stability:
        with prepared.clock("stability"):
            stability = {"split": splits[0], **measure_stability(config, prepared, splits[0])}
    return Evaluated(metrics, by_class, stability)


def _keeping(scorer: Callable | None, kept: list[Any]) -> Callable | None:
    """A `compute_metrics` that also keeps the predictions it scores."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        kept.append(prediction.predictions)
        return scorer(prediction)

    return compute if scorer else None
