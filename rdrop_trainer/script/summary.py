"""What a run prints at its end, and the command to run next."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._console import typed
from ..run_folder import RESULTS, lines_to_load, name_of_data
from . import program

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


def summary(argv: Sequence[str], results: Mapping[str, Any]) -> str:
    """One screen: what was run, what came out, where it is, what to run next."""
    settings, metrics = results["settings"], results["metrics"]
    alpha = settings["rdrop_alpha"]
    what = f"R-Drop with alpha {alpha:g}" if alpha else "plain fine-tuning (alpha 0)"
    lines = [f"{name_of_data(results)}: {what}, seed {settings['seed']}, {settings['model_name_or_path']}"]
    lines.append(f"processes {results['processes']}")
    lines.append("rows      " + ", ".join(f"{name} {count:,}" for name, count in results["rows"].items()))
    lines += [f"columns   {columns_line(results['columns'])}"] if results["columns"] else []
    if results["unlabeled_ratio"]:
        lines.append(f"batches   {results['unlabeled_ratio']:g} unlabeled rows for each labeled one")
    if "steps" in metrics:
        loss = f"loss {metrics['train_loss']:.4f}, " if "train_loss" in metrics else ""
        lines.append(f"training  {loss}{metrics['steps']} steps")
        lines.append(f"noise     {'; '.join(results['noise']) or 'none'}")
        if adapter := results["adapter"]:
            lines.append("adapter   {trained:,} of {weights:,} weights train, over {base}".format(**adapter))
    for name, value in results["headline"].items():
        lines.append(f"score     {name} " + ("is not defined" if math.isnan(value) else f"{value:.4f}"))
    lines += [f"classes   {_classes(found)} ({split})" for split, found in results["by_class"].items()]
    stability = results["stability"] or {}
    lines += [f"stable    {said}"] if (said := _stability(stability)) else []
    lines += [f"measured  {_measured(stability, settings, results['seconds'])}"] if stability else []
    lines += [f"written   {path}" for path in results["predictions"]]
    lines.append("seconds   " + ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items()))
    lines.append(f"results   {Path(settings['output_dir']) / RESULTS}")
    lines += _model(results) if settings["do_train"] else []
    if results["pushed"] or results["push_error"]:
        lines.append(f"pushed    {results['pushed'] or 'NOT: ' + results['push_error']}")
    lines.append(f"next      {_next_command(argv, results)}")
    return "\n".join(lines)


def score_names(metric: str | None, headline: Iterable[str]) -> list[str]:
    """The names of the scores to show of a run while it goes on and beside others: that of the validation rows by which
    its best model is chosen (None: by none), then those of its headline.
    """
    chosen = [] if metric is None else [f"eval_{metric.removeprefix('eval_')}"]
    return list(dict.fromkeys([*chosen, *headline]))


def scores_to_show(results: Mapping[str, Any], metric: str | None) -> dict[str, float | None]:
    """These scores of a finished run, as far as it has them."""
    found = results["metrics"] | results["headline"]
    return {name: found[name] for name in score_names(metric, results["headline"]) if name in found}


def columns_line(columns: Mapping[str, Sequence[str]]) -> str:
    """Which columns of the user's own files are read as what."""
    return "; ".join(f"{what}: {' and '.join(names)}" for what, names in columns.items() if names)


def _classes(found: Mapping[str, Any]) -> str:
    """The F1 of each class, or of the worst where there are many."""
    scores = sorted(found["scores"].items(), key=lambda entry: entry[1]["f1"])
    shown = ", ".join(f"{name} {score['f1']:.4f}" for name, score in scores[:6])
    return f"F1 {shown}" + (f", and {len(scores) - 6} that are no worse" if len(scores) > 6 else "")


def weights_in_words(results: Mapping[str, Any]) -> str | None:
    """Which weights a run ended with, and scored; None where it trained nothing."""
    if "steps" not in results["metrics"]:
        return None
    best, end = results["best_checkpoint"], f"the end of the training (step {results['metrics']['steps']})"
    if not best:
        return end
    score = "" if best["score"] is None else f" {best['score']:.4f}"
    found = f"{best['name']}, the best of the training by {best['metric']}{score}"
    return found if best["is_loaded"] else f"{end}; {found} lies beside them"


def _model(results: Mapping[str, Any]) -> list[str]:
    """Where the model lies, which weights it has, and the lines that load it."""
    folder = results["settings"]["output_dir"]
    weights = f"model     {folder}: the weights of {weights_in_words(results)}"
    return [weights, *lines_to_load(folder, results["pipeline"])]


def _stability(stability: Mapping[str, Any]) -> str:
    """What was measured of a run's stability, on one line."""
    parts = []
    for part, what in (("dropout", "dropout"), ("edits", "small edits of the text")):
        found = stability.get(part)
        if found and found["flip_rate"] is not None:
            low, high = (100 * end for end in found["flip_interval"])
            parts.append(f"{100 * found['flip_rate']:.1f} % of predictions ({low:.1f} to {high:.1f}) flipped by {what}")
        elif found and found["divergence"] is not None:
            parts.append(f"divergence under {what} {found['divergence']:.3g}")
    if stability.get("calibration"):
        parts.append(f"calibration error {100 * stability['calibration']['expected_calibration_error']:.1f} %")
    return ", ".join(parts)


def _measured(stability: Mapping[str, Any], settings: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """How much was measured, and what that cost."""
    dropout, edits = stability["dropout"], stability["edits"]
    parts = [f"{stability['rows']:,} of {stability['of_rows']:,} rows (--measure {settings['measure']})"]
    parts += [f"{dropout['num_samples']} predictions of each under dropout"] if dropout else []
    parts += [f"{edits['edited']:,} edits and {edits['unseen']:,} that the model cannot see"] if edits else []
    cost = seconds.get("probe", 0.0) + seconds["stability"]
    share = f", {100 * cost / seconds['train']:.0f} % of the training's" if seconds.get("train") else ""
    return f"{', '.join(parts)}: {cost:.1f} s{share}"


def _next_command(argv: Sequence[str], results: Mapping[str, Any]) -> str:
    """After training, the other run of the comparison (R-Drop or its baseline, in a folder of its own), and after that
    another seed; after an evaluation, the prediction; else how to train.
    """
    settings, found = results["settings"], results["splits_found"]
    changes: dict[str, str | None] = dict.fromkeys(_NOT_REPEATED)
    output_dir = settings["output_dir"].rstrip("/" + os.sep)
    name, alpha = ("baseline", "0") if settings["rdrop_alpha"] else ("rdrop", "4")
    if settings["do_train"] and output_dir.endswith(("-baseline", "-rdrop")):
        # The comparison is complete: another seed says whether it holds
        seed = str(settings["seed"] + 1)
        changes |= {"seed": seed, "output_dir": f"{output_dir}-seed{seed}"}
    elif settings["do_train"]:
        changes |= {"rdrop_alpha": alpha, "output_dir": f"{output_dir}-{name}"}
        if alpha != "0" and not results["noise"]:
            changes["dropout"] = "0.1"
    else:
        changes |= dict.fromkeys(("do_train", "do_eval", "do_predict", "measure"))
        if not settings["do_predict"] and any(split.startswith("test") for split in found):
            changes |= {"do_predict": "True", "output_dir": f"{output_dir}-predict"}
        elif "train" in found:
            has_validation = any(split.startswith("validation") for split in found)
            changes |= {"do_train": "True", "do_eval": str(has_validation), "output_dir": f"{output_dir}-trained"}
        else:
            return typed([*program.words(), "--help"])
    if argv and not argv[0].startswith("-"):
        # A recipe cannot be taken out of the command, so what it says is overruled
        changes |= {name: value for name, value in _NOT_REPEATED.items() if name in results["given"]}
    return _command(argv, changes, results["processes"])


def command_without_dry_run(argv: Sequence[str], processes: int) -> str:
    """The command of a dry run without `--dry_run`, and without tokens."""
    in_recipe = _without_flags(argv, ["dry_run"]) == list(argv)  # where it has to be overruled
    return _command(argv, {"hub_token": None, "token": None, "dry_run": "False" if in_recipe else None}, processes)


def _command(argv: Sequence[str], changes: Mapping[str, str | None], processes: int) -> str:
    """The command line with some flags given another value, or left out where that is None."""
    words = _without_flags(argv, changes)
    for name, value in changes.items():
        words += [] if value is None else [f"--{name}", value]
    return typed([*program.words(processes), *words])


def _without_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """The words of a command line without some of its flags and their values."""
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=")[0].lstrip("-").replace("-", "_") in names
        if not skipping:
            kept.append(word)
    return kept
