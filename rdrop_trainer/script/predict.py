"""The predictions of a run for its test splits: leaderboard files, and scores where the answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..glue.submission import Submission, write_submission
from .config import RunConfig
from .cost import Clock
from .prepare import Prepared
from .program import logger


@dataclass(frozen=True)
class Predicted:
    """What a prediction left.

    Attributes:
        metrics: scores of the splits that have labels, with the split's name before them.
        files: that were written, on the main process.
        seconds: by part.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Submission] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def predict(config: RunConfig, prepared: Prepared) -> Predicted:
    """Predict all test splits."""
    if not config.training.do_predict:
        return Predicted()
    clock, files = Clock(), []
    metrics: dict[str, float] = {}
    with clock("predict"):
        for split in prepared.splits("test"):
            written, scores = _predict(config, prepared, split)
            metrics |= scores
            files += [written] if written else []
    return Predicted(metrics, files, clock.seconds)


def _predict(config: RunConfig, prepared: Prepared, split: str) -> tuple[Submission | None, dict[str, float]]:
    """Predict one split: the leaderboard file (of the main process), and the scores of a labeled split."""
    task, trainer, processor = config.task, prepared.trainer, prepared.processor
    features, rows = prepared.features[split], prepared.data[split]
    if split == "test_public":
        trainer.compute_metrics = prepared.compute_metrics(split)
        return None, trainer.predict(features, metric_key_prefix="test_public").metrics
    trainer.compute_metrics = None
    predicted = trainer.predict(prepared.features_without_labels(split), metric_key_prefix=split).predictions
    if not trainer.is_world_process_zero():
        return None, {}
    answers = processor.answers(predicted, features, rows)
    texts = rows["text"] if task.head == "tokens" else None
    written = write_submission(task, split, list(rows["idx"]), answers, config.output_dir, texts=texts)
    if not written.complete:
        logger.warning(
            f"{written.path} holds {written.rows:,} rows where the leaderboard expects {written.expected_rows:,}: it "
            "is no valid submission."
        )
    scores = processor.scores(answers, rows) if processor.has_answers(rows) else {}
    return written, {f"{split}_{key}": value for key, value in scores.items()}
