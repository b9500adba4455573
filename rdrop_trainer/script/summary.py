"""What a run prints at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..run_folder import RESULTS


def summary(results: Mapping[str, Any], next_command: str) -> str:
    """One screen: what was run, what came out, where it is, what to run next."""
    settings, metrics = results["settings"], results["metrics"]
    alpha = settings["rdrop_alpha"]
    what = f"R-Drop with alpha {alpha:g}" if alpha else "plain fine-tuning (alpha 0)"
    lines = [f"{results['task']}: {what}, seed {settings['seed']}, {settings['model_name_or_path']}"]
    lines.append("rows      " + ", ".join(f"{name} {count:,}" for name, count in results["rows"].items()))
    if results["unlabeled_ratio"]:
        lines.append(f"batches   {results['unlabeled_ratio']:g} unlabeled rows for each labeled one")
    if "steps" in metrics:
        loss = f"loss {metrics['train_loss']:.4f}, " if "train_loss" in metrics else ""
        lines.append(f"training  {loss}{metrics['steps']} steps")
    for name, value in results["headline"].items():
        lines.append(f"score     {name} " + ("is not defined" if math.isnan(value) else f"{value:.4f}"))
    stability = _stability(results["stability"] or {})
    lines += [f"steady    {stability}"] if stability else []
    lines += [f"written   {path}" for path in results["predictions"]]
    lines.append("seconds   " + ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items()))
    lines.append(f"results   {Path(settings['output_dir']) / RESULTS}")
    if results["pushed"] or results["push_error"]:
        lines.append(f"pushed    {results['pushed'] or 'NOT: ' + results['push_error']}")
    lines.append(f"next      {next_command}")
    return "\n".join(lines)


def _stability(stability: Mapping[str, Any]) -> str:
    """What was measured of a run's stability, on one line."""
    parts = []
    for part, what in (("dropout", "dropout"), ("edits", "small edits of the text")):
        found = stability.get(part)
        if found and found["flip_rate"] is None:
            parts.append(f"divergence under {what} {found['divergence']:.3g}")
        elif found:
            parts.append(f"{100 * found['flip_rate']:.1f} % of predictions flipped by {what}")
    if stability.get("calibration"):
        parts.append(f"calibration error {100 * stability['calibration']['expected_calibration_error']:.1f} %")
    return ", ".join(parts)
