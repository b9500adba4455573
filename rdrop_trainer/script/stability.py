"""`--measure_stability`: how stable and how well calibrated the predictions of a trained model are."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from transformers import Trainer

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
from .prepare import Prepared
from .resolve import RunConfig

NUM_SAMPLES = 8


def measure_stability(config: RunConfig, prepared: Prepared, split: str) -> dict[str, Any]:
    """Measure a trained model on the labeled rows of a split; every process does all of it.

    The main process writes the edits to the run's folder (`edits.csv`), and the logits and labels of the rows
    (`eval_logits.npz`), as far as the head has them.

    Returns:
        `rows`, their number; `dropout` (`num_samples`, `flip_rate`, `divergence`), None without active dropout; `edits`
        (`flip_rate`, `divergence`, `edited`, and `by_kind` the same), for sequence classification and regression;
        `calibration` (`expected_calibration_error`, `mean_confidence`), for classification of rows.
    """
    task, trainer, processor = config.task, prepared.trainer, prepared.processor
    features, rows = prepared.features[split], prepared.data[split]
    batch_size = trainer.args.per_device_eval_batch_size
    found: dict[str, Any] = {"rows": len(rows), "dropout": None, "edits": None, "calibration": None}
    if active_dropout(trainer.model):
        stability = dropout_stability(
            trainer.model, features, NUM_SAMPLES, data_collator=processor.collator(), batch_size=batch_size
        )
        found["dropout"] = {"num_samples": NUM_SAMPLES, **_rates(stability)}
    if task.head == "sequence":
        edited = perturbation_stability(
            trainer.model,
            rows,
            processor.tokenizer,
            text_columns=task.text_columns,
            batch_size=batch_size,
            max_length=processor.max_length,
        )
        by_kind = {kind: _edited(stability) for kind, stability in edited.by_kind.items() if stability.items.any()}
        found["edits"] = {**_edited(edited.overall), "by_kind": by_kind}
        if trainer.is_world_process_zero():
            with open(config.output_dir / EDITS_FILE, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([EditedText._fields, *edited.edits])
    if task.head in ("sequence", "choice"):  # one row of logits each, kept to compare models of several seeds
        logits, labels = _logits_and_labels(trainer, features)
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
    dropout, edits, calibration = ((found or {}).get(part) or {} for part in ("dropout", "edits", "calibration"))
    figures = {
        "predictions that dropout flips": dropout.get("flip_rate"),
        "divergence under dropout (nats)": dropout.get("divergence"),
        "predictions that a small edit of the text flips": edits.get("flip_rate"),
        "divergence under small edits (nats)": edits.get("divergence"),
        "expected calibration error": calibration.get("expected_calibration_error"),
        "mean confidence": calibration.get("mean_confidence"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _rates(stability: Stability) -> dict[str, float | None]:
    flips = stability.flip_rate
    return {"flip_rate": None if math.isnan(flips) else flips, "divergence": stability.mean_divergence}


def _edited(stability: Stability) -> dict[str, float | None]:
    return {**_rates(stability), "edited": int(stability.items.sum())}


def _logits_and_labels(trainer: Trainer, features: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and labels (N,)."""
    scorer, trainer.compute_metrics = trainer.compute_metrics, None
    try:
        predicted = trainer.predict(features)
    finally:
        trainer.compute_metrics = scorer
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    return logits, np.asarray(predicted.label_ids)
