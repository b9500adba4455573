"""The predictions of a run for its test splits: leaderboard files, and scores where the answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..glue.submission import Submission, write_submission
from .prepare import Prepared
from .program import logger
from .resolve import RunConfig


class Predicted(NamedTuple):
    """Scores of the splits that have labels, with the split's name before them; and the files of the main process."""

    metrics: Mapping[str, float] = {}
    files: Sequence[Submission] = ()


def predict(config: RunConfig, prepared: Prepared) -> Predicted:
    """Predict all test splits."""
    if not config.training.do_predict:
        return Predicted()
    metrics: dict[str, float] = {}
    files: list[Submission] = []
    with prepared.clock("predict"):
        for split in prepared.splits("test"):
            scores, written = _predict(config, prepared, split)
            metrics |= scores
            files += written
    return Predicted(metrics, files)


def _predict(config: RunConfig, prepared: Prepared, split: str) -> Predicted:
    """Predict one split."""
    task, trainer, processor = config.task, prepared.trainer, prepared.processor
    features, rows = prepared.features[split], prepared.data[split]
    if split == "test_public":
        trainer.compute_metrics = prepared.compute_metrics(split)
        return Predicted(trainer.predict(features, metric_key_prefix=split).metrics)
    trainer.compute_metrics = None
    predicted = trainer.predict(prepared.features_without_labels(split), metric_key_prefix=split).predictions
    if not trainer.is_world_process_zero():
        return Predicted()
    answers = processor.answers(predicted, features, rows)
    texts = rows["text"] if task.head == "tokens" else None
    written = write_submission(task, split, list(rows["idx"]), answers, config.output_dir, texts=texts)
    if not written.complete:
        logger.warning(
            f"{written.path} holds {written.rows:,} rows where the leaderboard expects {written.expected_rows:,}: it "
            "is no valid submission."
        )
    scores = processor.scores(answers, rows) if processor.has_answers(rows) else {}
    return Predicted({f"{split}_{key}": value for key, value in scores.items()}, [written])
