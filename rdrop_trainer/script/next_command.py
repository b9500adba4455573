"""The command to run after this one."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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
            return shlex.join([*program.words(), "--help"])
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
    return shlex.join([*program.words(processes), *words])


def without_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """The words of a command line without some of its flags and their values."""
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=")[0].lstrip("-").replace("-", "_") in names
        if not skipping:
            kept.append(word)
    return kept
