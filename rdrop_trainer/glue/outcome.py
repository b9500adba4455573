"""What a run leaves behind: guarding its folder, the results file, the summary, and the command to run next."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import InputError
from .tasks import Task

# Flags of a run that its counterpart does not repeat
REPLACED_FLAGS = ("rdrop_alpha", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "token")
RESULTS = "all_results.json"
SETTINGS = "run_settings.json"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "rdrop-trainer")
# Changing these between an interrupted run and its continuation does not change what is trained
FREE_TO_CHANGE = frozenset(
    "output_dir resume_from_checkpoint overwrite_output_dir do_train do_eval do_predict disable_tqdm report_to "
    "run_name logging_steps logging_first_step logging_strategy log_level save_steps save_strategy save_total_limit "
    "cache_dir push_to_hub hub_model_id hub_strategy hub_private_repo dataloader_num_workers max_eval_samples "
    "max_predict_samples per_device_eval_batch_size eval_accumulation_steps eval_steps".split()
)


def prepare_output_dir(
    output_dir: Path, settings: Mapping[str, Any], resume: str | None, overwrite: bool
) -> str | None:
    """Make sure that a run may write to its folder, and find the checkpoint it goes on from.

    Args:
        output_dir: the run's folder.
        settings: all settings of the run, as plain values; they are compared with those of an interrupted run.
        resume: "auto", "none" or the path of a checkpoint.
        overwrite: delete what an earlier run left.

    Returns:
        The checkpoint to resume from, or None.

    Raises:
        InputError: the folder holds a finished run, or an interrupted run with other settings; nothing is deleted.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir}: output_dir is a file, expected a folder")
    if resume not in (None, "auto", "none"):
        if not _is_whole(Path(resume)):
            raise InputError(f"{resume}: no checkpoint to resume from; expected auto, none or a checkpoint folder")
        return resume
    if overwrite:
        for path in [*output_dir.glob("checkpoint-*"), output_dir / RESULTS, output_dir / SETTINGS]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return None
    if (output_dir / RESULTS).exists():
        raise InputError(
            f"{output_dir}: holds a finished run ({RESULTS}); choose another --output_dir, or add "
            "--overwrite_output_dir to delete it."
        )
    checkpoints = sorted((p for p in output_dir.glob("checkpoint-*") if _is_whole(p)), key=_step)
    if not checkpoints:
        return None
    if resume == "none":
        raise InputError(
            f"{output_dir}: holds checkpoints of an unfinished run; with --resume_from_checkpoint none, choose another "
            "--output_dir, or add --overwrite_output_dir to delete them."
        )
    _check_same_settings(output_dir, settings)
    return str(checkpoints[-1])


def _check_same_settings(output_dir: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads((output_dir / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    changed = [
        f"{name} was {before.get(name)!r}, now {value!r}"
        for name, value in json.loads(json.dumps(settings)).items()
        if name not in FREE_TO_CHANGE and before.get(name) != value
    ]
    if changed:
        raise InputError(
            f"{output_dir}: holds an unfinished run with other settings ({'; '.join(changed[:5])}); repeat those to go "
            "on, choose another --output_dir, or add --overwrite_output_dir to delete it."
        )


def _is_whole(checkpoint: Path) -> bool:
    """`trainer_state.json` is written last, so a checkpoint that has it was not cut short."""
    return (checkpoint / "trainer_state.json").is_file()


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


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
    settings = {}
    for group in arguments:
        values = group.to_dict() if hasattr(group, "to_dict") else vars(group)
        settings |= {k: v for k, v in values.items() if not k.endswith("token")}
    return _plain(settings)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def headline(task: Task, metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores to look at first, with their prefix: of the matched set, the mismatched, and a public test set."""
    prefixes = ("eval_", "eval_mm_", "test_public_")
    return {p + key: metrics[p + key] for p in prefixes for key in task.headline if p + key in metrics}


def summary(results: Mapping[str, Any], next_command: str) -> str:
    """One screen: what was run, what came out, where it is, what to run next."""
    settings, metrics = results["settings"], results["metrics"]
    alpha = settings["rdrop_alpha"]
    what = f"R-Drop with alpha {alpha:g}" if alpha else "plain fine-tuning (alpha 0)"
    lines = [f"{results['task']}: {what}, seed {settings['seed']}, {settings['model_name_or_path']}"]
    lines.append("rows      " + ", ".join(f"{name} {count:,}" for name, count in results["rows"].items()))
    if "train_loss" in metrics:
        lines.append(f"training  loss {metrics['train_loss']:.4f}, {metrics['steps']} steps")
    for name, value in results["headline"].items():
        lines.append(f"score     {name} " + ("is not defined" if math.isnan(value) else f"{value:.4f}"))
    lines += [f"written   {path}" for path in results["predictions"]]
    lines.append("seconds   " + ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items()))
    lines.append(f"results   {Path(settings['output_dir']) / RESULTS}")
    lines.append(f"next      {next_command}")
    return "\n".join(lines)


def next_command(argv: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The other run of the comparison: the baseline after R-Drop, R-Drop after the baseline.

    After a run that did not train there is nothing to compare: the command to train.
    """
    kept = _without_flags(argv, REPLACED_FLAGS)
    output_dir = settings["output_dir"].rstrip("/")
    if not settings["do_train"]:
        kept = _without_flags(kept, ("do_eval", "do_predict"))
        return _command([*kept, "--do_train", "--do_eval", "--output_dir", f"{output_dir}-trained"])
    name, alpha = ("baseline", "0") if settings["rdrop_alpha"] else ("rdrop", "4")
    return _command([*kept, "--rdrop_alpha", alpha, "--output_dir", f"{output_dir}-{name}"])


def _command(argv: Sequence[str]) -> str:
    return shlex.join(["python", "run_glue_rdrop.py", *argv])


def _without_flags(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=")[0].lstrip("-").replace("-", "_") in names
        if not skipping:
            kept.append(word)
    return kept
