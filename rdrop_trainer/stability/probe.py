"""The divergence while a model trains, for a baseline too, which does not compute it by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ..errors import InputError
from ..losses import rdrop_loss
from ..objective.head_of import head_of, is_ctc
from ..objective.snapshot import same_modes
from ..objective.task_loss import promises_stock_loss
from .running import batches_of, dropout_on, items_of, seeded


class DivergenceProbe(TrainerCallback):
    """Logs the divergence of two passes of the same rows under dropout, and their task loss, during the training.

    The divergence is what R-Drop adds to the loss. The probe measures it in the same way with R-Drop and without (alpha
    0, or a plain `Trainer`), where it should rise. The training does not change: the random numbers, and so the
    weights, are those of the run without the probe. It logs `probe_divergence` (nats, or squared difference for a
    regression) and `probe_loss` (without label smoothing; not for CTC, nor for models and trainers with a loss of their
    own) before the first step and at `num_points` steps evenly over the training.

        trainer.add_callback(DivergenceProbe(trainer, train_dataset.select(range(200))))

    Args:
        trainer: the trainer that logs.
        dataset: rows with labels, such as some of the training rows.
        num_points: how often, besides the start.
        data_collator: makes batches; default: the trainer's.
        batch_size: rows per batch; default: that of the trainer's evaluation.
        seed: of the dropout, the same at every point.

    Attributes:
        seconds: the time spent on measuring so far.

    Raises:
        InputError: an empty data set, or `num_points` below 1.
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Any,
        *,
        num_points: int = 20,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ):
        if num_points < 1 or not len(dataset):
            raise InputError(f"a probe needs rows and at least 1 point, got {len(dataset)} rows and {num_points}")
        self.trainer, self.dataset, self.num_points, self.seed = trainer, dataset, num_points, seed
        self.data_collator = data_collator or trainer.data_collator
        self.batch_size = batch_size or trainer.args.per_device_eval_batch_size
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:  # a resumed run has measured it
            self._measure(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        share = state.global_step * self.num_points / state.max_steps
        # The first step at or after each point
        if int(share) > int((state.global_step - 1) * self.num_points / state.max_steps):
            is_due = control.should_log
            self._measure(model)
            control.should_log = is_due  # our log would count as the training's own log of this step

    def _measure(self, model: torch.nn.Module) -> None:
        started = time.perf_counter()
        sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
        with same_modes(model), seeded(model, self.seed):
            dropout_on(model)
            for batch in batches_of(model, self.dataset, self.data_collator, self.batch_size):
                head = head_of(model, batch)
                for (first, labels), (second, _) in zip(
                    items_of(model, head, batch), items_of(model, head, batch), strict=True
                ):
                    problem = head.problem_of(first)
                    terms = rdrop_loss(
                        (first, second), labels, alpha=0.0, problem=problem, num_items=1, num_divergence_items=1
                    )
                    sums += torch.stack([terms.task_loss, terms.divergence]).cpu()
                counts += head.count(batch).sum(0).cpu()
        loss, divergence = (sums / counts.clamp(min=1)).tolist()
        self.seconds += time.perf_counter() - started
        self.trainer.log({"probe_divergence": divergence} | ({"probe_loss": loss} if self._has_loss(model) else {}))

    def _has_loss(self, model: torch.nn.Module) -> bool:
        """Whether the training has the stock loss of the model's head, item by item."""
        definers = {cls.__module__.split(".")[0] for cls in type(self.trainer).__mro__ if "compute_loss" in vars(cls)}
        is_trainers = self.trainer.compute_loss_func is None and definers <= {"transformers", "rdrop_trainer"}
        return is_trainers and promises_stock_loss(model) and not is_ctc(model)
