"""Resuming a training that was killed: from the last whole checkpoint, never from a half-written one."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .._mixin_base import MixinBase

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
_SAVED_BY_TORCH = (".pt", ".pth", ".bin")
_OPTIMIZER = ("optimizer", "global_step")  # the second is DeepSpeed's folder
_NO_OPTIMIZER = "it has no optimizer.pt (save_only_model=True leaves that out)"


def checkpoint_fault(checkpoint: str | os.PathLike, needs_optimizer: bool = True) -> str | None:
    """Why a training cannot resume from a checkpoint of `Trainer`.

    `Trainer` writes `trainer_state.json` last, so a checkpoint without it was cut short. A full disk or a power failure
    may have cut the other files. They are opened but not read through: a file of tensors states its own length.
    Without the optimizer's state `Trainer` would go on with a fresh one, and say nothing.

    Args:
        checkpoint: its folder.
        needs_optimizer: to have no optimizer's state is a fault.

    Returns:
        The fault, in words; None for a whole checkpoint.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such folder"
    if fault := _state_fault(checkpoint):
        return fault
    if needs_optimizer and not _has_optimizer(checkpoint):
        return _NO_OPTIMIZER
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if path.suffix in (".json", ".safetensors", *_SAVED_BY_TORCH) and _is_cut(path):
            return f"its {path.relative_to(checkpoint)} is cut short"
    return None


def _state_fault(checkpoint: Path) -> str | None:
    try:
        _step_of(checkpoint)
    except FileNotFoundError:
        return f"it has no {_STATE}, which is written last"
    except (ValueError, KeyError, TypeError):
        return f"its {_STATE} is cut short"
    except OSError as error:
        return f"its {_STATE} cannot be read ({error.strerror})"
    return None


def _has_optimizer(checkpoint: Path) -> bool:
    return any(path.name.startswith(_OPTIMIZER) for path in checkpoint.iterdir())


def _step_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["global_step"]


def _is_cut(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        return True
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return False
        except SafetensorError:
            return True
    return path.suffix in _SAVED_BY_TORCH and start == b"PK" and not zipfile.is_zipfile(path)


def last_whole_checkpoint(folder: str | os.PathLike, warn: bool = False, needs_optimizer: bool = True) -> Path | None:
    """The whole checkpoint of the latest step.

    Args:
        folder: where the checkpoints are.
        warn: log a warning that names the later checkpoints and what they lack.
        needs_optimizer: one without the optimizer's state is not whole.

    Returns:
        Its folder; None if no checkpoint is whole.
    """
    passed_over = []
    found = None
    for path in _checkpoints_in(Path(folder)):
        fault = checkpoint_fault(path, needs_optimizer)
        if fault is None:
            found = path
            break
        passed_over.append(f"{path} is not whole: {fault}")
    if passed_over and warn:
        where = f"going on from {found}" if found else "and there is no earlier one"
        logger.warning("; ".join(passed_over) + f"; {where}.")
    return found


def _checkpoints_in(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, the latest step first."""
    steps = {path: _NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*")}
    return sorted((path for path, match in steps.items() if match), key=lambda path: -int(steps[path][1]))


def _clear_half_written(new: Path) -> None:
    """Delete unfinished checkpoints next to a new one, before `Trainer` deletes the oldest.

    `Trainer` would count them among the checkpoints to keep. Where folders have no times (a mounted object store), it
    would also take an unfinished one of a later step for the newest, and delete all others.
    """
    for path in _checkpoints_in(new.parent):
        if path != new and _state_fault(path):
            shutil.rmtree(path, ignore_errors=True)


class ResumingMixin(MixinBase):
    """The part of `RDropMixin` that resumes from whole checkpoints only, and marks none as whole too early."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        checkpoint, fault = self._find_checkpoint(resume_from_checkpoint)
        step = -1 if checkpoint is None or fault else _step_of(checkpoint)
        steps = self.accelerator.gather(torch.tensor([step], device=self.args.device)).tolist()
        if len(set(steps)) > 1:  # the processes would wait for each other forever
            found = ", ".join("none" if step < 0 else f"that of step {step}" for step in steps)
            raise ValueError(
                f"The processes find different checkpoints to resume from ({found}): {self.args.output_dir} must be a "
                "folder that all machines share."
            )
        if fault:
            raise ValueError(fault)
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def _find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> tuple[Path | None, str | None]:
        """The checkpoint to resume from, and what stands against it, which begins as `Trainer`'s messages do."""
        if not resume_from_checkpoint:
            return None, None
        needs_optimizer = not self.args.save_only_model  # which leaves it out on purpose
        if resume_from_checkpoint is True:
            found = last_whole_checkpoint(self.args.output_dir, warn=True, needs_optimizer=needs_optimizer)
            if found is None:
                return None, (
                    f"No valid checkpoint found in output directory ({self.args.output_dir}), where none is whole; "
                    "start with resume_from_checkpoint=None, or name another folder's checkpoint."
                )
        else:
            found = Path(resume_from_checkpoint)
            if fault := checkpoint_fault(found, needs_optimizer):
                # By its name: from a command line resume_from_checkpoint=True comes as the name of a folder
                whole = last_whole_checkpoint(self.args.output_dir, needs_optimizer=needs_optimizer)
                return found, (
                    f"Can't find a valid checkpoint at {found}: {fault}. "
                    + (f"The last whole one is {whole}." if whole else f"{self.args.output_dir} has no whole one.")
                )
        if not _has_optimizer(found):
            logger.warning(
                f"{found}: {_NO_OPTIMIZER}, so the optimizer starts afresh: the run does not end as one that was never "
                "interrupted."
            )
        return found, None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        counts_steps = isinstance(schedule, LRScheduler) and not isinstance(schedule, ReduceLROnPlateau)
        if checkpoint is None or not counts_steps or _has_optimizer(Path(checkpoint)):
            return
        with warnings.catch_warnings():  # torch's, that no step of the optimizer came before
            warnings.simplefilter("ignore")
            for _ in range(schedule.last_epoch, _step_of(Path(checkpoint))):
                schedule.step()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # The state file of an earlier run would mark a mixture of both runs as whole
            (checkpoint / _STATE).unlink(missing_ok=True)
            if self.args.save_total_limit:
                _clear_half_written(checkpoint)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # `trainer_state.json` comes next, and must not come before the last process has written its part
        self.accelerator.wait_for_everyone()
