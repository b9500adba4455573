"""What the model card of a run says about its task, its data and its baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from ..glue.task import Task
from ..hub.card_data import EvaluationSet, is_score
from ..hub.folder import CARD
from ..hub.model_card import CardFacts, with_baseline
from ..run_folder import RESULTS, comparable_settings, read_results, write_text

_LANGUAGES = {"glue": "en", "clue": "zh", "fewclue": "zh"}
_SUITES = {"glue": "GLUE", "clue": "CLUE", "fewclue": "FewCLUE"}


def card_facts(
    task: Task, pipeline: str, data: Mapping[str, datasets.Dataset], whole: Mapping[str, datasets.Dataset]
) -> CardFacts:
    """What the card says that is known before the training.

    Args:
        pipeline: the Hub's name for tasks of this kind.
        data: the splits that the run reads.
        whole: the same splits with all their rows.
    """
    splits = [split for split in data if split.startswith(("validation", "test"))]
    suite = _SUITES.get(task.suite)
    return CardFacts(
        task=pipeline,
        language=_LANGUAGES.get(task.suite),
        tags=(task.suite, task.name) if suite else (),
        evaluation_sets={
            score_prefix(split): _evaluation_set(task, split, data[split], whole[split]) for split in splits
        },
    )


def score_prefix(split: str) -> str:
    """The prefix of a split's scores."""
    if not split.startswith("validation"):
        return split
    return "eval_mm" if split.endswith("mismatched") else "eval"


def _evaluation_set(task: Task, split: str, rows: datasets.Dataset, whole: datasets.Dataset) -> EvaluationSet:
    known = EvaluationSet.of(rows)  # with its revision, where it was downloaded
    if len(rows) < len(whole):
        split = f"{split}[:{len(rows)}]"  # as `load_dataset` would take it
    if task.suite not in _SUITES:
        return replace(known, name="own data", split=split)
    title = f"{_SUITES[task.suite]} {task.folders[0] if task.suite == 'glue' else task.name}"
    where, config = task.hub or (task.name, None)
    return replace(known, name=title, type=where, config=config, split=split)


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores among the metrics of a run, with their prefix."""
    return {key: value for key, value in metrics.items() if key.startswith(("eval_", "test_")) and is_score(key)}


def find_baseline(output_dir: Path, settings: Mapping[str, Any], processes: int) -> dict[str, float] | None:
    """The scores of a finished run that differs from this one in R-Drop alone, one with the model's own dropout before
    others; None where there is none.

    Args:
        output_dir: of this run; the folders beside it are searched.
        processes: how many computed it; the size of its batches depends on them.
    """
    if settings["rdrop_alpha"] == 0:
        return None
    wanted, baselines = comparable_settings(settings), []
    for path in sorted(output_dir.absolute().parent.glob(f"*/{RESULTS}")):
        try:
            found = read_results(path.parent)
            other = found["settings"]
            same = comparable_settings(other) == wanted and found["processes"] == processes
            if other["rdrop_alpha"] == 0 and other["do_train"] and same:
                scores = scores_of({k: v for k, v in found["metrics"].items() if v is not None})
                baselines.append((other["rdrop_dropout"] is not None, scores))
        except (InputError, KeyError, TypeError, AttributeError):
            continue  # damaged, or not a run's
    return min(baselines, key=lambda each: each[0])[1] if baselines else None


def add_baseline(folder: Path) -> None:
    """Complete the card of a finished run, where its baseline ended after it."""
    found, path = read_results(folder), folder / CARD
    baseline = find_baseline(folder, found["settings"], found["processes"])
    if baseline and path.is_file():
        scores = {name: math.nan if value is None else value for name, value in found["metrics"].items()}
        text = path.read_text(encoding="utf-8")
        if (whole := with_baseline(text, scores_of(scores), baseline)) != text:
            write_text(path, whole)
