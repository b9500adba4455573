"""The two terms of the R-Drop loss, as a training logs them beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import TrainerCallback

from .losses import RDropLoss


class LoggedTerms(TrainerCallback):
    """Sums of task loss and divergence over R-Drop steps. They stay on the device: to read one would wait for it.

    Of each micro-batch the first loss counts: an adversarial training step computes another of disturbed weights.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start again, as a training does."""
        self._sums: torch.Tensor | None = None  # over the steps that are done; (2,)
        self._steps = 0
        self._window: torch.Tensor | None = None  # over the micro-batches of the step that is not; (2,)
        self._step = 0
        self._has_micro_batch = False

    def start_window(self, step: int) -> None:
        """Begin the window of an optimizer step.

        After running out of memory a step, or the whole training, may begin again; what it had added is forgotten.
        """
        if step < self._step:
            self.forget()
        elif step > self._step:
            self._close_window()
        self._window, self._step, self._has_micro_batch = None, step, False

    def add(self, terms: RDropLoss) -> None:
        """Add a micro-batch's share of the optimizer step; another one before its end is left out."""
        if self._has_micro_batch:
            return
        self._has_micro_batch = True
        self._window = _sum(self._window, torch.stack([terms.task_loss, terms.divergence]).detach())

    def on_substep_end(self, *args, **kwargs) -> None:
        """A micro-batch ends: what is added next is of another."""
        self._has_micro_batch = False

    def take(self, mean_over_processes: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The averages since the last call, empty if there was no R-Drop step, and start again."""
        self._close_window()
        if self._sums is None:
            return {}
        task_loss, divergence = (mean_over_processes(self._sums) / self._steps).tolist()
        self._sums, self._steps = None, 0
        return {"task_loss": task_loss, "divergence": divergence}

    def _close_window(self) -> None:
        if self._window is not None:
            self._sums, self._steps, self._window = _sum(self._sums, self._window), self._steps + 1, None


def _sum(so_far: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    return more if so_far is None else so_far + more
