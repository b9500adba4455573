"""Forward passes that serve to find something out, and what several processes must agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .heads import base_model
from .passes import Passes, call_model, run_passes

if TYPE_CHECKING:
    from accelerate import Accelerator


class Probe:
    """Runs a model aside: it draws the random numbers that the training draws again, so that nothing else changes.

    Attributes:
        model: what trains, without `DistributedDataParallel`.
        unwrapped: without other wrappers of distributed training.
        base: without PEFT's adapters.
        device: where it trains.
        processes: how many train.
        forwards: how many forward passes were run so far.

    Args:
        model: see above.
        accelerator: that of the training; None: one process, without mixed precision.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self.model = model
        self.unwrapped = model if accelerator is None else accelerator.unwrap_model(model)
        self.base = base_model(self.unwrapped)
        self.device = next(model.parameters()).device if accelerator is None else accelerator.device
        self.processes = 1 if accelerator is None else accelerator.num_processes
        self.forwards = 0

    @contextmanager
    def aside(self, forwards: int = 1, with_gradient: bool = False):
        """Within it, so many forward passes leave the random state as it was."""
        self.forwards += forwards
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.set_grad_enabled(with_gradient), torch.random.fork_rng(devices=devices):
            yield

    def run(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        call: Callable[..., Any] = call_model,
        with_gradient: bool = False,
    ) -> Passes:
        """One pass over some inputs."""
        with self.aside(with_gradient=with_gradient):
            return run_passes(model, inputs, 1, "sequential", call)

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes; a collective."""
        return tensor if self.accelerator is None else self.accelerator.reduce(tensor)

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a result of this dtype was computed: mixed precision rounds, and returns float32."""
        mixed = self.accelerator is not None and self.accelerator.mixed_precision != "no"
        return torch.bfloat16 if mixed else dtype
