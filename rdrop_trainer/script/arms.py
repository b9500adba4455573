"""The arms of a comparison: what each trains with, on the same seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..report.arms import DROPOUT, LONGER, PLAIN, RDROP
from ..training_args import RDropTrainingArguments
from .command_line import CommandLine, read_flags

# The settings of plain fine-tuning: no divergence, and the dropout that the model has
_PLAIN: Mapping[str, Any] = {"rdrop_alpha": 0.0, "rdrop_dropout": None}
_NOT_OF_AN_ARM = frozenset(
    "seed output_dir arms seeds compare_baseline tune tune_metric parallel engine demo dry_run load_best_model_at_end "
    "metric_for_best_model greater_is_better".split()
)


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: also of its runs' folders, NAME-seedSEED.
        changes: the settings that are its own; None leaves a setting out.
    """

    name: str
    changes: Mapping[str, Any]


def arms_of(command: CommandLine) -> list[Arm]:
    """The arms that a command asks for; plain, rdrop, and then the others."""
    arms = [_arm(word, command) for word in command.several.arms]
    names = [arm.name for arm in arms]
    if len({name.lower() for name in names}) < len(names):  # of folders, whose case macOS and Windows ignore
        raise InputError(f"--arms {' '.join(command.several.arms)}: an arm is there twice; give each a name of its own")
    if not {PLAIN, RDROP} <= set(names):
        raise InputError(
            f"--arms {' '.join(command.several.arms)}: expected plain and rdrop, with which the others are compared"
        )
    return sorted(arms, key=lambda arm: [PLAIN, RDROP, arm.name].index(arm.name))


def stretched(arm: Arm, ratio: float, args: RDropTrainingArguments) -> Arm:
    """An arm that makes `ratio` times as many steps, its schedule stretched."""
    if args.max_steps > 0:
        return replace(arm, changes={**arm.changes, "max_steps": round(ratio * args.max_steps)})
    return replace(arm, changes={**arm.changes, "num_train_epochs": round(ratio * args.num_train_epochs, 3)})


def _arm(word: str, command: CommandLine) -> Arm:
    name, colon, overrides = word.partition(":")
    alpha, dropout = command.training.rdrop_alpha, command.training.rdrop_dropout
    if not colon:
        if name == DROPOUT and dropout is None:
            raise InputError("--arms dropout is plain fine-tuning at R-Drop's dropout: give that with --dropout")
        own = {PLAIN: _PLAIN, LONGER: _PLAIN, DROPOUT: {"rdrop_alpha": 0.0}, RDROP: {"rdrop_alpha": alpha}}
        if name not in own:
            raise InputError(
                f"--arms {word}: expected {', '.join(own)}, or an arm of your own as NAME:FLAG=VALUE[,FLAG=VALUE], "
                "such as strong:rdrop_alpha=16"
            )
        return Arm(name, own[name])
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name) or name.lower() in (PLAIN, RDROP, LONGER, DROPOUT):
        raise InputError(f"--arms {word}: {name!r} cannot be the name of your own arm; use letters, digits and _")
    try:
        given = dict(read_flags([f"--{pair}" for pair in overrides.split(",")]).given)
    except InputError as error:
        raise InputError(f"--arms {word}: {error}") from error
    if wrong := sorted(given.keys() & _NOT_OF_AN_ARM):
        raise InputError(f"--arms {word}: {wrong[0]} is the same for all arms")
    return Arm(name, {"rdrop_alpha": alpha} | given)
