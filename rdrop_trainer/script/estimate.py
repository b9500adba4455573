"""What a training would take, from the first batches of a dry run: seconds, and bytes on the disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# `--measure full` predicts every evaluation row so often: eight times under dropout, and with each edit
_PREDICTIONS = 20
# `--measure quick` takes so many seconds for one of the training
_SHARE = 0.2
# A checkpoint has so many bytes for one of the weights: Adam keeps two numbers for a weight
_CHECKPOINT = 3


@dataclass(frozen=True)
class Cost:
    """About what a run takes: `seconds`, and `bytes` on the disk when it has ended."""

    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, {size(self.bytes)}"


@dataclass(frozen=True)
class Workload:
    """What a training is made of.

    Attributes:
        steps: those that are to come.
        step_seconds: of one of them.
        evaluations: how often the validation rows are scored while it trains.
        checkpoints: bytes of those that are on the disk at its end.
        weights: bytes of the model, or of its adapter.
    """

    steps: int
    step_seconds: float
    evaluations: int
    checkpoints: int
    weights: int

    def cost(self, load: float, evaluation: float, measure: str) -> Cost:
        """The cost of the whole run."""
        evaluations = self.evaluations + 1 + (_PREDICTIONS if measure == "full" else 0)
        training = self.steps * self.step_seconds * (1 + (_SHARE if measure == "quick" else 0))
        seconds = load + training + evaluations * evaluation
        return Cost(seconds, self.weights + self.checkpoints)


def workload_of(trainer: Any, state: Any, batch: Any) -> Workload:
    """What a training is made of, when all is ready for its first step. Its gradients are thrown away."""
    args, model = trainer.args, trainer.model_wrapped

    def forward_and_backward() -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)
        trainer.accelerator.backward(loss)
        model.zero_grad(set_to_none=True)

    forward_and_backward()  # the first one takes longer
    micro = seconds_of(forward_and_backward, args.device)
    is_adapter = hasattr(trainer.model, "get_base_model")  # which is saved without its base model
    saved = [p for p in trainer.model.parameters() if p.requires_grad or not is_adapter]
    weights = sum(p.numel() * p.element_size() for p in saved)
    evaluations = _times(args.eval_strategy.value, state.eval_steps, state)
    saves = (
        evaluations if args.save_strategy.value == "best" else _times(args.save_strategy.value, state.save_steps, state)
    )
    limit = args.save_total_limit or saves
    kept = min(saves, max(limit, 2) if args.load_best_model_at_end else limit)
    return Workload(
        steps=state.max_steps - state.global_step,
        step_seconds=micro * args.gradient_accumulation_steps,
        evaluations=evaluations,
        checkpoints=kept * weights * (1 if args.save_only_model else _CHECKPOINT),
        weights=weights,
    )


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """The seconds that a call takes, its work on a GPU included."""
    start = time.perf_counter()
    function()
    if device.type in ("cuda", "mps"):
        torch.get_device_module(device).synchronize()
    return time.perf_counter() - start


def _times(strategy: str, every: int | None, state: Any) -> int:
    """How often a training does what it does at every epoch or after so many steps."""
    if strategy == "no":
        return 0
    return state.num_train_epochs if strategy == "epoch" else max(1, state.max_steps // max(1, int(every or 1)))


def duration(seconds: float) -> str:
    """A time for people: in seconds, minutes, hours or days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """A number of bytes for people, in units of 1000."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.1f} {unit}" if number < 10 * length else f"{number / length:.0f} {unit}"
    return f"{number:.0f} bytes"
