"""The accumulation window: what the micro-batches of one optimizer step hold together, and the terms to log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..losses import RDropLoss
from .heads import PredictionHead


@dataclass
class Window:
    """The micro-batches of one optimizer step.

    Attributes:
        head: says what an item is.
        task_items, divergence_items: counts over all micro-batches and all processes that share them, for each part of
            the head; (parts,).
        micro_batches: on this process.
        processes: how many share the counts. Their gradients are averaged, so an item weighs processes / items.
    """

    head: PredictionHead
    task_items: torch.Tensor
    divergence_items: torch.Tensor
    micro_batches: int
    processes: int = 1

    @classmethod
    def count(
        cls,
        head: PredictionHead,
        batches: list[Mapping[str, Any]],
        device: torch.device,
        processes: int = 1,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Window:
        """Count the items of some micro-batches, over several processes where they share the normalisation."""
        counts = torch.stack([head.count(batch) for batch in batches]).sum(0).to(device)
        if processes > 1:
            counts = sum_over_processes(counts)
        return cls(head, counts[:, 0], counts[:, 1], len(batches), processes)

    @property
    def is_one_batch(self) -> bool:
        """One micro-batch on one process: a mean over it is a mean over the window."""
        return self.micro_batches == 1 and self.processes == 1

    def share(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The weight that a mean over the items of one micro-batch has in the mean over the window; a scalar."""
        items = self.head.count(batch)[:, 0].to(self.task_items.device)
        return (items * self.processes / self.task_items.clamp(min=1)).mean()


class LoggedTerms:
    """Sums of task loss and divergence over R-Drop steps, kept on the device: reading each step's would stall it."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(2, device=device)
        self._steps = 0
        self._window = torch.zeros(2, device=device)
        self._window_step: int | None = None
        self._last_step = 0

    def start_window(self, step: int) -> None:
        """Begin the window of an optimizer step.

        After running out of memory a step, or the whole training, may begin again; what it had added is forgotten.
        """
        if step < self._last_step:
            self._sums, self._steps = torch.zeros_like(self._sums), 0
        elif self._window_step != step:
            self._close_window()
        self._last_step = step
        self._window = torch.zeros_like(self._sums)
        self._window_step = None

    def add(self, terms: RDropLoss, step: int) -> None:
        """Add a micro-batch's share of an optimizer step."""
        self._window += torch.stack([terms.task_loss, terms.divergence]).detach()
        self._window_step = step

    def take(self, mean_over_processes: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The averages since the last call, empty if there was no R-Drop step, and start again."""
        self._close_window()
        if self._steps == 0:
            return {}
        task_loss, divergence = (mean_over_processes(self._sums) / self._steps).tolist()
        self._sums, self._steps = torch.zeros_like(self._sums), 0
        return {"task_loss": task_loss, "divergence": divergence}

    def _close_window(self) -> None:
        if self._window_step is not None:
            self._sums += self._window
            self._steps += 1
            self._window, self._window_step = torch.zeros_like(self._sums), None
