"""The metadata of model cards: the R-Drop settings and the scores, as other programs read them back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..training_args import RDropArguments
from .origin import origin_of

TAG = "r-drop"
BLOCK = "r_drop"
_PREFIX = "rdrop_"
# Settings of how a run was computed, which do not change what was trained
_NOT_OF_THE_MODEL = ("rdrop_fused_head", "rdrop_allow_deterministic", "rdrop_allow_nonfinite")
# A card's `dropout` is what the model has, place by place, set by this or not
_DROPOUT = "rdrop_dropout"
# Names of scores -> the Hub's names of metrics, where they differ
_METRIC_TYPES = {
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "macro_f1": "f1",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
}
_NO_SCORES = re.compile(
    r"(^|_)(loss|epoch|runtime|(samples|steps)_per_second|model_preparation_time|jit_compilation_time|mem_[a-z_]+)$"
)


@dataclass(frozen=True)
class EvaluationSet:
    """The data that scores were computed on.

    Attributes:
        name: for people, such as "GLUE MRPC".
        type: name on the Hub, such as "nyu-mll/glue"; "unknown" for other data.
        config: configuration of the Hub's data set.
        split: such as "validation".
        revision: commit of the Hub's data set.
    """

    name: str = "unknown"
    type: str = "unknown"
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, dataset: Any) -> EvaluationSet:
        """The origin of a `datasets.Dataset`; unknown for local files and for anything else."""
        origin = origin_of(dataset)
        if origin is None:
            return cls()
        config = None if dataset.info.config_name == "default" else dataset.info.config_name
        name = origin.repo_id.split("/")[-1] + (f" {config}" if config else "")
        split = None if dataset.split is None else str(dataset.split)
        return cls(name, origin.repo_id, config, split, origin.revision)


def settings_block(
    settings: RDropArguments, dropout: Mapping[str, float], version: str, with_unlabeled: bool = False
) -> dict[str, Any]:
    """The `r_drop` entry of a card's metadata.

    Args:
        settings: of the training.
        dropout: the model's dropout probabilities by the name of their setting.
        version: of this package.
        with_unlabeled: whether unlabeled rows were trained on.

    Returns:
        alpha, num_passes, every_n_steps, row_share, warmup_steps, forward_mode, reduction and, with unlabeled rows,
        unlabeled_ratio, and problem and heads (their JSON) where they are set, as in `RDropArguments`; dropout and
        version.
    """
    left_out = (*_NOT_OF_THE_MODEL, _DROPOUT, "rdrop_heads") + (() if with_unlabeled else ("rdrop_unlabeled_ratio",))
    left_out += ("rdrop_problem",) if settings.rdrop_problem == "auto" else ()
    kept = [f.name for f in fields(RDropArguments) if f.name.startswith(_PREFIX) and f.name not in left_out]
    values = {name.removeprefix(_PREFIX): getattr(settings, name) for name in kept}
    if settings.rdrop_heads is not None:
        values["heads"] = json.dumps(settings.rdrop_heads)
    return {**values, "dropout": dict(dropout), "version": version}


def settings_from_block(block: Any) -> RDropArguments | None:
    """The settings in an `r_drop` entry, which anybody may have written; None if they are not valid."""
    if not isinstance(block, Mapping):
        return None
    names = {f.name for f in fields(RDropArguments)} - {_DROPOUT}
    given = {_PREFIX + str(key): value for key, value in block.items() if _PREFIX + str(key) in names}
    # An error shows the value, and references in YAML can make one billions of characters long
    if "rdrop_alpha" not in given or not all(isinstance(value, (int, float, str)) for value in given.values()):
        return None
    try:
        return RDropArguments(**given)
    except (ValueError, TypeError, OverflowError):
        return None


def scores_now(log_history: Iterable[Mapping[str, Any]], step: int, best_step: int | None) -> dict[str, float]:
    """The scores of the weights that a trainer's model has now, from its log.

    Scores that were logged during training belong to the weights of their step. Scores that were logged afterwards
    belong to the final weights.

    Args:
        log_history: `trainer.state.log_history`.
        step: the last optimizer step.
        best_step: the step of the checkpoint that was loaded when training ended; None where none was.

    Returns:
        Scores with their prefix, such as "eval_accuracy", without losses, times and counts.
    """
    entries = list(log_history)
    ends = [i for i, entry in enumerate(entries) if "train_runtime" in entry and "total_flos" in entry]
    end = ends[-1] if ends else len(entries)
    model_step = best_step if ends and best_step is not None else step
    current = [entry for entry in entries[:end] if entry.get("step") == model_step] + entries[end + 1 :]
    scores: dict[str, float] = {}
    for entry in current:
        prefix = next((key.removesuffix("runtime") for key in entry if key.endswith("_runtime")), None)
        if prefix is not None:
            scores |= {key: value for key, value in entry.items() if key.startswith(prefix) and is_score(key)}
    return scores


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Scores as single numbers. Those of a mapping or a list, one a class say, get its keys or their places as names.

    >>> numbers({"eval_f1": 0.5, "eval_LOC": {"f1": 0.25}, "eval_recall": [0.5, 1.0], "eval_note": "good"})
    {'eval_f1': 0.5, 'eval_LOC_f1': 0.25, 'eval_recall_0': 0.5, 'eval_recall_1': 1.0}
    """
    found: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found |= numbers({f"{name}_{key}": entry for key, entry in value.items()})
        elif isinstance(value, (int, float)):
            found[name] = value
    return found


def is_score(key: str) -> bool:
    """Whether a logged figure, with or without its prefix, says how good a model is."""
    return not _NO_SCORES.search(key)


def set_of(key: str, sets: Mapping[str, EvaluationSet]) -> tuple[str, EvaluationSet]:
    """The name of a score without its prefix, and the data of that prefix. The longest known prefix counts."""
    known = sorted((p for p in sets if key.startswith(f"{p}_")), key=len, reverse=True)
    prefix = known[0] if known else key.split("_")[0]
    return key.removeprefix(f"{prefix}_"), sets.get(prefix, EvaluationSet())


def eval_results(scores: Mapping[str, float], sets: Mapping[str, EvaluationSet], task: str | None) -> list[EvalResult]:
    """The entries of a model-index; scores that are not defined (NaN) cannot be in one and are left out."""
    results = []
    for key, value in scores.items():
        name, data = set_of(key, sets)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        results.append(
            EvalResult(
                task_type=task or "other",
                dataset_type=data.type,
                dataset_name=data.name,
                dataset_config=data.config,
                dataset_split=data.split,
                dataset_revision=data.revision,
                metric_type="f1" if name.startswith("f1_") else _METRIC_TYPES.get(name, name),
                metric_name=name,
                metric_value=float(value),
            )
        )
    return results


def is_hub_name(name: Any) -> bool:
    """Whether a model's name is valid on the Hub, and not a local path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str) and not Path(name).exists()
