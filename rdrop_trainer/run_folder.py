"""What a run of the script leaves: the names of its files, their formats, and how runs are compared by them."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.utils.sha import sha_fileobj

from .errors import InputError

RESULTS = "all_results.json"
SETTINGS = "run_settings.json"
STATE = "trainer_state.json"  # written by transformers
EDITS_FILE = "edits.csv"
LOGITS_FILE = "eval_logits.npz"
ARMS_FILE = "arms.json"  # in a comparison's folder: its arms, and how much longer "plain_longer" trains
PROGRESS = "progress.json"  # how far a run is that has not ended
LOG = "run.log"  # what a run prints that another process started

CONTENTS = "contents of "  # before the name of a setting that names a file: what was in it
ROWS_EVALUATED = frozenset({"max_eval_samples", f"{CONTENTS}validation_file"})
ROWS_SCORED = ROWS_EVALUATED | {"max_predict_samples"}
# Changing these between an interrupted run and its continuation does not change what is trained
FREE_TO_CHANGE = ROWS_SCORED | frozenset(
    "output_dir resume_from_checkpoint overwrite_output_dir dry_run do_train do_eval do_predict disable_tqdm report_to "
    "run_name logging_steps logging_first_step logging_strategy log_level save_steps save_strategy save_total_limit "
    "cache_dir push_to_hub hub_model_id hub_strategy hub_private_repo dataloader_num_workers "
    "per_device_eval_batch_size eval_accumulation_steps eval_steps measure".split()
)
# These may differ between a run and its baseline, beside R-Drop's own; scores of other rows cannot be compared
_UNLABELED = {"unlabeled_file", f"{CONTENTS}unlabeled_file", "max_unlabeled_samples"}
_FREE_FOR_A_BASELINE = FREE_TO_CHANGE - ROWS_SCORED | _UNLABELED

_WAITS = (0.02, 0.08, 0.3, 0.6)  # seconds between tries to replace a file
_SAY_NOTHING = frozenset("train training data dataset".split())  # names of training files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to. When the block ends without an error, the file there takes the place of `path`.

    A reader finds the old file or the new one, never a part. The folder is made where it is missing. Windows replaces
    no file that another process has open, as a virus scanner does for a moment, so there it is tried for a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    for wait in _WAITS if sys.platform == "win32" else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(wait)
    os.replace(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text as `replacing` does: in UTF-8, with line feeds on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as `write_text` does; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")


def read_results(folder: str | Path) -> dict[str, Any]:
    """What `all_results.json` holds in the folder of a finished run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(folder) / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(results, dict):
            raise TypeError(f"expected a mapping, got a {type(results).__name__}")
    except (OSError, ValueError, TypeError) as error:
        raise not_finished(path, error) from error
    return results


def read_arms(path: Path) -> dict[str, Any]:
    """The names of the `arms` of a comparison, the one to compare with first, and the ratio of `longer`.

    Raises:
        InputError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"arms": [str(name) for name in found["arms"]], "longer": found["longer"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete it, and the comparison writes it anew") from error


def not_finished(path: Path, error: Exception) -> InputError:
    """The error for a file of a run that is missing or damaged."""
    reason = "there is none" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
    return InputError(f"{path}: is not that of a finished run ({reason})")


def plain(value: Any) -> Any:
    """A value as JSON holds it: lists for tuples and sets, None for NaN and infinities, text for other objects."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)


def settings_of(*arguments: Any) -> dict[str, Any]:
    """All settings of some dataclasses of arguments as plain values; tokens left out."""
    settings: dict[str, Any] = {}
    for group in arguments:
        values = group.to_dict() if hasattr(group, "to_dict") else vars(group)
        settings |= {k: v for k, v in values.items() if not k.endswith("token")}
    return plain(settings)


def contents_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The beginning of a hash of each file that is learned from or evaluated on: the same path may hold other rows
    later.
    """
    named = {name: settings.get(name) for name in ("train_file", "validation_file", "unlabeled_file")}
    paths = {name: Path(path).absolute() for name, path in named.items() if path is not None}
    return {CONTENTS + name: _hash(path, path.stat().st_mtime_ns) for name, path in paths.items() if path.is_file()}


@lru_cache
def _hash(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()[:12]


class BestCheckpoint(NamedTuple):
    """The checkpoint with the best score while a run trained.

    Attributes:
        name: of its folder in the run's.
        step: after which it was saved.
        metric: the score, without "eval_".
        score: the best there was; None where it is not known.
        is_loaded: whether it was loaded at the end, so that it is what is scored and saved in the run's folder.
    """

    name: str
    step: int
    metric: str
    score: float | None
    is_loaded: bool


def best_checkpoint(state: Mapping[str, Any], settings: Mapping[str, Any]) -> BestCheckpoint | None:
    """The best checkpoint of a run; None where none was chosen."""
    name = Path(state.get("best_model_checkpoint") or "").name
    step = name.removeprefix("checkpoint-")
    if not step.isdecimal():
        return None
    metric = str(settings.get("metric_for_best_model") or "loss").removeprefix("eval_")
    return BestCheckpoint(
        name, int(step), metric, state.get("best_metric"), bool(settings.get("load_best_model_at_end"))
    )


def name_of_data(results: Mapping[str, Any]) -> str:
    """What a run was trained on, for people: the task, or the name of a user's file (of "train.csv": of its folder)."""
    file = results["settings"].get("train_file")
    if results["task"] != "custom" or not file:
        return str(results["task"])
    path = Path(file).absolute()
    return path.parent.name if path.stem.lower() in _SAY_NOTHING and path.parent.name else path.stem


def how_to_load(source: str | Path, pipeline: str | None) -> list[tuple[str, str]]:
    """Python that loads a model, with this package and, where it has a pipeline, with transformers alone.

    Args:
        source: a run's folder, or a repository's name.
        pipeline: the name of the pipeline; None where there is none.

    Returns:
        An import and a line, for each way.
    """
    name = json.dumps(str(source), ensure_ascii=False)  # Python's own quotes are single where they can be
    ways = [
        ("from rdrop_trainer.hub import load_checkpoint", f"model, tokenizer, settings = load_checkpoint({name})"),
        ("from transformers import pipeline", f'predict = pipeline("{pipeline}", {name})'),
    ]
    return ways if pipeline else ways[:1]


def lines_to_load(source: str | Path, pipeline: str | None) -> list[str]:
    """The same for the terminal, a line for each way."""
    ways = ("; ".join(way) for way in how_to_load(source, pipeline))
    return [f"{word:<10}{way}" for word, way in zip(("load", "or"), ways, strict=False)]


class Change(NamedTuple):
    """A setting that differs between two runs."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        if self.name.startswith(CONTENTS):
            return f"the {self.name.removeprefix(CONTENTS)} was edited since"
        return f"{self.name} was {self.before!r}, now {self.now!r}"


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = FREE_TO_CHANGE
) -> list[Change]:
    """What differs between the settings of two runs, in the order of `now`.

    Args:
        before: settings of the first run; one that it lacks counts as None, unless it is what was in a file.
        now: settings of the second run; all of them are compared.

    >>> print(*changed_settings({"seed": 1, "log_level": "info"}, {"seed": 2, "log_level": "error"}))
    seed was 1, now 2
    """
    changed = [
        Change(name, before.get(name), value)
        for name, value in plain(now).items()
        if name not in free and before.get(name, value if name.startswith(CONTENTS) else None) != value
    ]
    other_files = {CONTENTS + change.name for change in changed}
    return [change for change in changed if change.name not in other_files]


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run and its baseline must have in common: all that decide a score, except R-Drop's own."""
    return plain(
        {
            name: value
            for name, value in settings.items()
            if name not in _FREE_FOR_A_BASELINE and not name.startswith(("rdrop_", "hub_", "push_"))
        }
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    packages = ("torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "rdrop-trainer")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a clone that was not installed; a finished run must not end over it
        return "not installed"
