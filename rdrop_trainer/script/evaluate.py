"""The scores of a run on its validation splits, and with `--measure_stability` how stable its predictions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
    trainer, splits, stability = prepared.trainer, prepared.splits("validation"), None
    metrics: dict[str, float] = {}
    with prepared.clock("eval"):
        for split in splits:
            trainer.compute_metrics = prepared.compute_metrics(split)
            metrics |= trainer.evaluate(prepared.features[split], metric_key_prefix=score_prefix(split))
    if config.data.measure_stability:
        with prepared.clock("stability"):
            stability = {"split": splits[0], **measure_stability(config, prepared, splits[0])}
    return Evaluated(metrics, stability)
