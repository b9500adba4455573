"""What a run leaves behind: guarding its folder, the results file, the summary, and the command to run next."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..glue.tasks import Task
from ..reliability.resuming import checkpoint_fault, last_whole_checkpoint

try:
    import resource
except ImportError:  # Windows
    resource = None

RESULTS = "all_results.json"
SETTINGS = "run_settings.json"
EDITS_FILE = "edits.csv"
LOGITS_FILE = "eval_logits.npz"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "rdrop-trainer")
# Changing these between an interrupted run and its continuation does not change what is trained
FREE_TO_CHANGE = frozenset(
    "output_dir resume_from_checkpoint overwrite_output_dir dry_run do_train do_eval do_predict disable_tqdm report_to "
    "run_name logging_steps logging_first_step logging_strategy log_level save_steps save_strategy save_total_limit "
    "cache_dir push_to_hub hub_model_id hub_strategy hub_private_repo dataloader_num_workers max_eval_samples "
    "max_predict_samples per_device_eval_batch_size eval_accumulation_steps eval_steps measure_stability".split()
)


def check_output_dir(
    output_dir: Path, settings: Mapping[str, Any], resume: str | None, overwrite: bool, will_train: bool
) -> str | None:
    """Make sure that a run may write to its folder, and find the checkpoint it goes on from. Changes nothing.

    Args:
        output_dir: the run's folder.
        settings: all settings of the run, as plain values; they are compared with those of an interrupted run.
        resume: "auto" (or None), "none" or the path of a checkpoint.
        overwrite: what an earlier run left may be deleted.
        will_train: whether the run trains.

    Returns:
        The checkpoint to resume from, or None.

    Raises:
        InputError: the folder holds a finished run, or an unfinished one that this run does not continue; or it cannot
            be written to; or what the run reads lies where it deletes.
    """
    try:
        parent = next(path for path in [output_dir, *output_dir.absolute().parents] if path.exists())
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be an output_dir: {error.strerror}") from error
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir}: output_dir is a file, expected a folder")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{output_dir}: cannot be written to; choose another --output_dir")
    path = None if resume in (None, "auto", "none") else Path(resume)
    if path is not None and not will_train:
        raise InputError(f"--resume_from_checkpoint {resume}: this run does not train, so it cannot go on from there")
    if path is not None:
        # The folder of a finished run has a state as well
        named = path.name.startswith("checkpoint-")
        fault = checkpoint_fault(path) if named else "its name is not checkpoint-..."
        if fault is not None:
            raise InputError(f"{resume}: is no whole checkpoint ({fault}); expected auto, none or another checkpoint")
    if overwrite:
        _check_not_deleted(output_dir, [settings.get(name) for name in _PATHS] + [path])
        return resume if path is not None else None
    if (output_dir / RESULTS).exists():
        raise InputError(
            f"{output_dir}: holds a finished run ({RESULTS}); choose another --output_dir, or add "
            "--overwrite_output_dir to delete it"
        )
    last = last_whole_checkpoint(output_dir, warn=True)
    if last is None or (path is not None and path.resolve().parent == output_dir.resolve()):
        return resume if path is not None else None
    if resume not in (None, "auto") or not will_train:
        why = f"--resume_from_checkpoint is {resume}" if will_train else "this run does not train"
        raise InputError(
            f"{output_dir}: holds checkpoints of an unfinished run, and {why}; choose another --output_dir, or add "
            "--overwrite_output_dir to delete them"
        )
    _check_same_settings(output_dir, settings)
    return str(last)


_PATHS = "model_name_or_path tokenizer_name data_dir train_file validation_file test_file unlabeled_file".split()


def _check_not_deleted(output_dir: Path, paths: Sequence[str | Path | None]) -> None:
    """Refuse to delete, or to replace while it is read, what a run reads."""
    for path in paths:
        if path is None or not Path(path).exists():
            continue
        path = Path(path).resolve()
        chain = [path, *path.parents]
        deleted = [folder for folder in output_dir.resolve().glob("checkpoint-*") if folder in chain]
        if path == output_dir.resolve() or deleted:
            raise InputError(f"{path}: lies in {output_dir}, which --overwrite_output_dir deletes")


def clear_output_dir(output_dir: Path) -> None:
    """Delete what an earlier run of the script left: checkpoints, results, settings and leaderboard files."""
    results = output_dir / RESULTS
    try:
        predictions = json.loads(results.read_text(encoding="utf-8"))["predictions"]
    except (OSError, ValueError, KeyError, TypeError):
        predictions = []  # there are none, or the file is damaged and names none
    for path in (output_dir / Path(name).name for name in predictions):
        path.unlink(missing_ok=True)
    others = [output_dir / name for name in (SETTINGS, "trainer_state.json", EDITS_FILE, LOGITS_FILE)]
    for path in [*output_dir.glob("checkpoint-*"), *others, results]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _check_same_settings(output_dir: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads((output_dir / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{output_dir}: holds checkpoints, but no readable {SETTINGS} to say what run they are of; name one with "
            "--resume_from_checkpoint to go on from it, or choose another --output_dir"
        ) from error
    changed = [
        f"{name} was {before.get(name)!r}, now {value!r}"
        for name, value in json.loads(json.dumps(settings)).items()
        if name not in FREE_TO_CHANGE and before.get(name) != value
    ]
    if changed:
        raise InputError(
            f"{output_dir}: holds an unfinished run with other settings ({'; '.join(changed[:5])}); repeat those to go "
            "on, choose another --output_dir, or add --overwrite_output_dir to delete it"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or absent; NaN and infinities, which JSON lacks, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)


def settings_of(*arguments: Any) -> dict[str, Any]:
    """All settings of the arguments' dataclasses as plain values; tokens left out."""
    settings: dict[str, Any] = {}
    for group in arguments:
        values = group.to_dict() if hasattr(group, "to_dict") else vars(group)
        settings |= {k: v for k, v in values.items() if not k.endswith("token")}
    return _plain(settings)


def peak_memory() -> dict[str, Any] | None:
    """The most memory this process has held so far: `bytes`, `of` the CUDA allocator ("cuda") or the "process".

    None where the system does not tell.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return {"bytes": torch.cuda.max_memory_allocated(), "of": "cuda"}
    try:  # not `getrusage`, whose figure may be that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return {"bytes": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024, "of": "process"}
    except OSError:
        if resource is None:
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a clone that was not installed; a finished run must not end over it
        return "not installed"


def headline(task: Task, metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores to look at first, with their prefix: of the matched set, the mismatched, and a test set."""
    prefixes = ("eval_", "eval_mm_", "test_public_", "test_")
    return {p + key: metrics[p + key] for p in prefixes for key in task.headline if p + key in metrics}


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
    steady = _steadiness(results["stability"] or {})
    lines += [f"steady    {steady}"] if steady else []
    lines += [f"written   {path}" for path in results["predictions"]]
    lines.append("seconds   " + ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items()))
    lines.append(f"results   {Path(settings['output_dir']) / RESULTS}")
    if results["pushed"] or results["push_error"]:
        lines.append(f"pushed    {results['pushed'] or 'NOT: ' + results['push_error']}")
    lines.append(f"next      {next_command}")
    return "\n".join(lines)


def _steadiness(stability: Mapping[str, Any]) -> str:
    """What was measured of a run's stability, in short."""
    told = []
    for part, what in (("dropout", "dropout"), ("edits", "small edits of the text")):
        found = stability.get(part)
        if found and found["flip_rate"] is None:
            told.append(f"divergence under {what} {found['divergence']:.3g}")
        elif found:
            told.append(f"{100 * found['flip_rate']:.1f} % of predictions flipped by {what}")
    if stability.get("calibration"):
        told.append(f"calibration error {100 * stability['calibration']['expected_calibration_error']:.1f} %")
    return ", ".join(told)


def next_command(argv: Sequence[str], results: Mapping[str, Any]) -> str:
    """The command to run next: after training, the other run of the comparison (R-Drop or its baseline, in a folder of
    its own), and after that another seed; after an evaluation, the prediction; else how to train.

    Args:
        argv: the words of this run's command line.
        results: what this run left.
    """
    settings, found = results["settings"], results["splits_found"]
    changes: dict[str, str | None] = dict.fromkeys(_NOT_REPEATED)
    output_dir = settings["output_dir"].rstrip("/")
    name, alpha = ("baseline", "0") if settings["rdrop_alpha"] else ("rdrop", "4")
    if settings["do_train"] and output_dir.endswith(("-baseline", "-rdrop")):
        # The comparison is complete: another seed says whether it holds
        seed = str(settings["seed"] + 1)
        changes |= {"seed": seed, "output_dir": f"{output_dir}-seed{seed}"}
    elif settings["do_train"]:
        changes |= {"rdrop_alpha": alpha, "output_dir": f"{output_dir}-{name}"}
        if alpha != "0" and not results["has_dropout"]:
            changes["dropout"] = "0.1"
    else:
        changes |= dict.fromkeys(("do_train", "do_eval", "do_predict"))
        if not settings["do_predict"] and any(split.startswith("test") for split in found):
            changes |= {"do_predict": "True", "output_dir": f"{output_dir}-predict"}
        elif "train" in found:
            has_validation = any(split.startswith("validation") for split in found)
            changes |= {"do_train": "True", "do_eval": str(has_validation), "output_dir": f"{output_dir}-trained"}
        else:
            return shlex.join(["python", sys.argv[0], "--help"])
    if argv and not argv[0].startswith("-"):
        # A recipe cannot be taken out of the command, so what it says is overruled
        changes |= {name: value for name, value in _NOT_REPEATED.items() if name in results["given"]}
    return _command(argv, changes, results["processes"])


def same_command(argv: Sequence[str], processes: int, without: str) -> str:
    """The command of this run without one of its switches, and without tokens.

    Args:
        argv: the words of this run's command line.
        processes: how many run it.
        without: the switch's name; one that a recipe sets is overruled.
    """
    in_recipe = without_flags(argv, [without]) == list(argv)
    return _command(argv, {"hub_token": None, "token": None, without: "False" if in_recipe else None}, processes)


def _command(argv: Sequence[str], changes: Mapping[str, str | None], processes: int) -> str:
    """The command line with some flags given another value, or left out where that is None."""
    words = without_flags(argv, changes)
    for name, value in changes.items():
        words += [] if value is None else [f"--{name}", value]
    launcher = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    return shlex.join([*launcher, sys.argv[0], *words])


# Flags that another run must not repeat, and the value that undoes one in a recipe
_NOT_REPEATED = {
    "overwrite_output_dir": "False",
    "resume_from_checkpoint": "auto",
    "push_to_hub": "False",
    "hub_model_id": None,
    "hub_token": None,
    "token": None,
    "run_name": None,
}


def without_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=")[0].lstrip("-").replace("-", "_") in names
        if not skipping:
            kept.append(word)
    return kept
