"""The predictions of a run for its test splits: leaderboard files, and scores where the answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

from ..glue.submission import Submission, write_submission
from .prepare import Prepared
from .program import logger
from .resolve import RunConfig


class Predicted(NamedTuple):
    """What was predicted.

    Attributes:
        metrics: scores of the splits that have labels, with the split's name before them.
        by_class: split -> what `scores_by_class` returns, for classification of rows that have labels.
        files: of the main process.
        broken: the splits for which the model's logits are NaN or infinite, and which have no file.
    """

    metrics: Mapping[str, float] = {}
    by_class: Mapping[str, Mapping[str, Any]] = {}
    files: Sequence[Submission] = ()
    broken: Sequence[str] = ()


def predict(config: RunConfig, prepared: Prepared) -> Predicted:
    """Predict all test splits."""
    if not config.training.do_predict:
        return Predicted()
    metrics: dict[str, float] = {}
    by_class: dict[str, Mapping[str, Any]] = {}
    files: list[Submission] = []
    broken: list[str] = []
    with prepared.clock("predict"):
        for split in prepared.splits("test"):
            found = _predict(config, prepared, split)
            metrics |= found.metrics
            by_class |= found.by_class
            files += found.files
            broken += found.broken
    return Predicted(metrics, by_class, files, broken)


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
    known = processor.has_answers(rows)
    if processor.broke_down(predicted):
        logger.warning(f"{task.name}: the model's logits for {split} are NaN or infinite: no predictions are written.")
        scores = dict.fromkeys((f"{split}_{name}" for name in task.metrics), nan) if known else {}
        return Predicted(scores, broken=[split])
    answers = processor.answers(predicted, features, rows)
    tokens = rows[task.text_columns[0]] if task.head == "tokens" else None
    written = write_submission(task, split, list(rows["idx"]), answers, config.output_dir, tokens=tokens)
    if not written.complete:
        logger.warning(
            f"{written.path} holds {written.rows:,} rows where the leaderboard expects {written.expected_rows:,}: it "
            "is no valid submission."
        )
    if not known:
        return Predicted(files=[written])
    metrics = {f"{split}_{key}": value for key, value in processor.scores(answers, rows).items()}
    by_class = {split: processor.by_class(answers, rows)} if processor.has_classes else {}
    return Predicted(metrics, by_class, [written])
