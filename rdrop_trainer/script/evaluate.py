"""The scores of a run on its validation splits, and with `--measure_stability` how stable its predictions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import RunConfig
from .cost import Clock
from .prepare import Prepared
from .stability import measure_stability


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        metrics: scores and costs, with the prefix of their split.
        stability: what `measure_stability` returns, and the `split` it is of; None where it was not measured.
        seconds: by part.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    stability: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def evaluate(config: RunConfig, prepared: Prepared) -> Evaluated:
    """Evaluate the model on all validation splits."""
    if not config.training.do_eval:
        return Evaluated()
    trainer, clock, stability = prepared.trainer, Clock(), None
    metrics: dict[str, float] = {}
    splits = prepared.splits("validation")
    with clock("eval"):
        for split in splits:
            prefix = "eval_mm" if split.endswith("mismatched") else "eval"
            trainer.compute_metrics = prepared.compute_metrics(split)
            metrics |= trainer.evaluate(prepared.features[split], metric_key_prefix=prefix)
    if config.data.measure_stability:
        split = splits[0]
        with clock("stability"):
            found = measure_stability(
                trainer, prepared.processor, prepared.features[split], prepared.data[split], config.output_dir
            )
        stability = {"split": split, **found}
    return Evaluated(metrics, stability, clock.seconds)
