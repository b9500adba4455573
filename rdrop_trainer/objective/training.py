"""What a training is, as far as its loss depends on it, and the forward passes that find out more about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .heads import PredictionHead, base_model
from .lm_head import CannotFuse
from .passes import Passes, call_model, run_passes
from .task_loss import TrainerLoss

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Training:
    """The model that trains, and what decides how its loss is made.

    Attributes:
        model: the model, without `DistributedDataParallel`.
        accelerator: None: one process, without mixed precision.
        label_smoothing: of the stock loss, in [0, 1).
        loss_function: a task loss of the user's, `function(outputs, labels, num_items_in_batch=count)`.
        trainer_loss: that of a base trainer that has its own.
        hidden_by: the setting for which the model returns no (or not all) logits once it is given labels.
        unfusable: why this training cannot fuse an output head.
        replicas: processes that see the same rows, as those of one tensor-parallel group do.
        shares_counts: the processes normalise over their items together.
        forwards: how many forward passes were run so far to find something out.
    """

    model: nn.Module
    accelerator: Accelerator | None = None
    label_smoothing: float = 0.0
    loss_function: Callable[..., torch.Tensor] | None = None
    trainer_loss: TrainerLoss | None = None
    hidden_by: str | None = None
    unfusable: CannotFuse | None = None
    replicas: int = 1
    shares_counts: bool = True
    forwards: int = field(default=0, init=False)

    def __post_init__(self):
        alone = self.accelerator is None
        # Without all wrappers of distributed training, and without PEFT's adapters
        self.unwrapped = self.model if alone else self.accelerator.unwrap_model(self.model)
        self.base = base_model(self.unwrapped)
        self.device = next(self.model.parameters()).device if alone else self.accelerator.device
        self.processes = 1 if alone else self.accelerator.num_processes
        if getattr(getattr(self.base, "config", None), "sparse_prediction", False):
            self.hidden_by = "sparse_prediction=True in the model's configuration; set it to False"

    @property
    def sharing(self) -> int:
        """How many processes with rows of their own normalise together."""
        return self.processes // self.replicas if self.shares_counts else 1

    def smoothing(self, head: PredictionHead) -> float:
        """`Trainer` smooths `labels` alone, so answers to questions are not."""
        return self.label_smoothing if head.labels == ("labels",) else 0.0

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """A collective."""
        return tensor if self.accelerator is None else self.accelerator.reduce(tensor)

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a result of this dtype was computed: mixed precision rounds, and returns float32."""
        mixed = self.accelerator is not None and self.accelerator.mixed_precision != "no"
        return torch.bfloat16 if mixed else dtype

    @contextmanager
    def aside(self, with_grad: bool = False):
        """For one forward pass that draws the random numbers which the training draws again."""
        self.forwards += 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.set_grad_enabled(with_grad), torch.random.fork_rng(devices=devices):
            yield

    def probe(self, model: nn.Module, inputs: Mapping[str, Any], call=call_model, with_grad: bool = False) -> Passes:
        """One pass over some inputs, `aside`."""
        with self.aside(with_grad):
            return run_passes(model, inputs, 1, "sequential", call)
