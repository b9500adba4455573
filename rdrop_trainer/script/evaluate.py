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
    """Scores and costs, with the prefix of their split; and the `split` and what `measure_stability` found of it."""

    metrics: Mapping[str, float] = {}
    stability: Mapping[str, Any] | None = None


def evaluate(config: RunConfig, prepared: Prepared) -> Evaluated:
    """Evaluate the model on all validation splits."""
    if not config.training.do_eval:
        return Evaluated()
    trainer, splits = prepared.trainer, prepared.splits("validation")
    measures = config.data.measure != "none"
    metrics: dict[str, float] = {}
    predicted: list[EvalPrediction] = []  # of the main split
    with prepared.clock("eval"):
        for split in splits:
            compute = prepared.compute_metrics(split)
            keeps = measures and split == splits[0] and config.task.head in ("sequence", "choice")
            trainer.compute_metrics = _keeping(predicted, compute) if keeps else compute
            metrics |= trainer.evaluate(prepared.features[split], metric_key_prefix=score_prefix(split))
    if not measures:
        return Evaluated(metrics)
    with prepared.clock("stability"):
        found = measure_stability(config, prepared, splits[0], *predicted)
    return Evaluated(metrics, {"split": splits[0], **found})


def _keeping(kept: list[EvalPrediction], compute: Callable | None) -> Callable:
    """A `compute_metrics` that also keeps what was predicted, so that nothing is predicted twice."""

    def keep(prediction: EvalPrediction) -> dict[str, float]:
        kept.append(prediction)
        return compute(prediction) if compute else {}

    return keep
