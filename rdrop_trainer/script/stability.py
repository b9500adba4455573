"""`--measure`: how stable and how well calibrated the predictions of a trained model are."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..dropout import active_dropout
from ..run_folder import EDITS_FILE, LOGITS_FILE
from ..stability import (
    EditedText,
    Stability,
    dropout_stability,
    expected_calibration_error,
    mean_confidence,
    perturbation_stability,
)
from .extent import even_share, extent_of
from .prepare import Prepared
from .resolve import RunConfig


def measure_stability(
    config: RunConfig, prepared: Prepared, split: str, predicted: EvalPrediction | None, is_broken: bool
) -> dict[str, Any]:
    """Measure a trained model on the labeled rows of a split, as far as `--measure` goes; every process does it all.

    The main process writes the edits to the run's folder (`edits.csv`), and the logits and labels of all rows
    (`eval_logits.npz`), as far as the head has them.

    Args:
        predicted: logits (N, C) and labels (N,) of its N rows, which the evaluation left; None for the heads that have
            several predictions a row.
        is_broken: its logits are NaN, so that there is nothing to measure.

    Returns:
        `rows`, how many of the features were measured, and `of_rows`, how many there are; `dropout` (`num_samples`,
        `flip_rate`, its `flip_interval`, `divergence`), None without active dropout; `edits` (the same, `edited`,
        `unseen`, and `by_kind` all of these), for sequence classification and regression; both None where there is no
        row to measure; `calibration` (`expected_calibration_error`, `mean_confidence`) of all rows, for classification
        of rows.
    """
    task, trainer, processor = config.task, prepared.trainer, prepared.processor
    extent, every = extent_of(config, prepared), prepared.features[split]
    found: dict[str, Any] = {"rows": extent.rows, "of_rows": len(every)}
    found |= {"dropout": None, "edits": None, "calibration": None}
    # The logits of a language model are as many as its words, for every token and every prediction
    batch_size = 1 if task.is_language_model else trainer.args.per_device_eval_batch_size
    if is_broken:
        return found | {"rows": 0}
    logits: Any = None if predicted is None else predicted.predictions
    own = even_share(logits, extent.rows) if task.head == "sequence" and logits is not None else None
    if extent.rows and active_dropout(trainer.model):
        stability = dropout_stability(
            trainer.model,
            even_share(every, extent.rows),
            extent.repeats,
            logits=own,
            data_collator=processor.collator(),
            batch_size=batch_size,
        )
        found["dropout"] = {"num_samples": extent.repeats, **_rates(stability)}
    if extent.rows and task.head == "sequence":
        edited = perturbation_stability(
            trainer.model,
            even_share(prepared.data[split], extent.rows),
            processor.tokenizer,
            text_columns=task.text_columns,
            num_edits=extent.repeats,
            logits=own,
            batch_size=batch_size,
            max_length=processor.max_length,
        )
        unseen = edited.unseen
        by_kind = {kind: _edited(stability, unseen[kind]) for kind, stability in edited.by_kind.items()}
        by_kind = {kind: rates for kind, rates in by_kind.items() if rates["edited"] or rates["unseen"]}
        found["edits"] = {**_edited(edited.overall, sum(unseen.values())), "by_kind": by_kind}
        if trainer.is_world_process_zero():
            with open(config.output_dir / EDITS_FILE, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([EditedText._fields, *edited.edits])
    if logits is not None:  # kept to compare models of several seeds
        labels = np.asarray(predicted.label_ids)
        if trainer.is_world_process_zero():
            np.savez_compressed(config.output_dir / LOGITS_FILE, logits=logits.astype(np.float32), labels=labels)
        if not task.is_regression and (labels != -100).any():
            probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
            found["calibration"] = {
                "expected_calibration_error": expected_calibration_error(probabilities, labels),
                "mean_confidence": mean_confidence(probabilities, labels),
            }
    return found


def stability_for_card(found: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures for a model card, by name."""
    found = found or {}
    dropout, edits, calibration = (found.get(key) or {} for key in ("dropout", "edits", "calibration"))
    part = f" ({found['rows']:,} of {found['of_rows']:,} rows)" if found and found["rows"] < found["of_rows"] else ""
    figures = {
        f"predictions that dropout flips{part}": dropout.get("flip_rate"),
        f"divergence under dropout (nats){part}": dropout.get("divergence"),
        f"predictions that a small edit of the text flips{part}": edits.get("flip_rate"),
        f"divergence under small edits (nats){part}": edits.get("divergence"),
        "expected calibration error": calibration.get("expected_calibration_error"),
        "mean confidence": calibration.get("mean_confidence"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _rates(stability: Stability) -> dict[str, Any]:
    rate, divergence = stability.flip_rate, stability.mean_divergence
    return {
        "flip_rate": None if math.isnan(rate) else rate,
        "flip_interval": None if math.isnan(rate) else list(stability.flip_interval),
        "divergence": None if math.isnan(divergence) else divergence,
    }


def _edited(stability: Stability, unseen: int) -> dict[str, Any]:
    return {**_rates(stability), "edited": int(stability.items.sum()), "unseen": unseen}
