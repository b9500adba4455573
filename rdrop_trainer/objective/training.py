"""What a training is, as far as its loss depends on it, and the forward passes that find out more about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._dropout_places import places_of
from ..head import Head
from .head_of import base_model, config_value
from .heads import PredictionHead
from .lm_head import is_compiled
from .loss_comparison import LossComparison
from .passes import Passes, run_passes
from .snapshot import same_noise
from .task_loss import FunctionLoss, ModelLoss, StockLoss, TaskLoss, TrainerLoss, promises_stock_loss

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
        is_sharded: FSDP shards the weights over processes.
        is_compiled: the model is compiled as a whole.
        problem: what the model predicts, and so the divergence: "single_label", "multi_label" or "regression"; "auto":
            what its configuration, its class and the labels say.
        heads: of the model, as its user names them; empty: one head, as found.
        label_names: `Trainer`'s; a single one other than "labels" names the labels of the head that is found.
        replicas: processes that see the same rows, as those of one tensor-parallel group do.
        shares_counts: the processes normalise over their items together.
    """

    model: nn.Module
    accelerator: Accelerator | None = None
    label_smoothing: float = 0.0
    loss_function: Callable[..., torch.Tensor] | None = None
    trainer_loss: TrainerLoss | None = None
    hidden_by: str | None = None
    is_sharded: bool = False
    is_compiled: bool = False
    problem: str = "auto"
    heads: Sequence[Head] = ()
    label_names: Sequence[str] = ()
    replicas: int = 1
    shares_counts: bool = True

    def __post_init__(self):
        if self.heads and self.problem != "auto":
            raise ValueError(f"problem={self.problem!r} is for a head that is found; set it in each of the heads.")
        alone = self.accelerator is None
        # Without all wrappers of distributed training, and without PEFT's adapters
        self.unwrapped = self.model if alone else self.accelerator.unwrap_model(self.model)
        self.base = base_model(self.unwrapped)
        # Now, as the first forward of a model of transformers writes what it took
        self.states_problem = config_value(self.base, "problem_type") is not None
        self.device = next(self.model.parameters()).device if alone else self.accelerator.device
        self.processes = 1 if alone else self.accelerator.num_processes
        self.is_compiled = self.is_compiled or any(map(is_compiled, (self.model, self.base)))
        mixed = not alone and self.accelerator.mixed_precision != "no"
        half = (p.is_floating_point() and p.dtype.itemsize < 4 for p in self.base.parameters())
        self._is_half = mixed or any(half)
        if config_value(self.base, "sparse_prediction"):
            self.hidden_by = "sparse_prediction=True in the model's configuration; set it to False"

    @property
    def model_name(self) -> str:
        """The name of the model's class, for messages."""
        return type(self.base).__name__

    @property
    def sharing(self) -> int:
        """How many processes with rows of their own normalise together."""
        return self.processes // self.replicas if self.shares_counts else 1

    @cached_property
    def own_loss(self) -> bool:
        """The task loss is not the stock one of the model's class."""
        if self.loss_function is not None or self.trainer_loss is not None:
            return True
        return not self.label_smoothing and not promises_stock_loss(self.base)

    def task_loss(self, head: PredictionHead) -> TaskLoss:
        """Where the task loss comes from, by settings and the model's class."""
        if self.loss_function is not None:
            return FunctionLoss(self.base, self.loss_function)
        return self.trainer_loss or self.loss_of_model(head)

    def loss_of_model(self, head: PredictionHead) -> StockLoss | ModelLoss:
        """The loss of a model that is left to itself: the stock loss of its head, or its own.

        Raises:
            ValueError: a loss of its own is to be kept, which comes without logits.
        """
        if self.smoothing(head):  # `Trainer` puts the smoothed stock loss in the place of every other
            return StockLoss(self.base)
        if promises_stock_loss(self.base) and head.stock is None:
            # The model's own code does not take probabilities as labels
            return StockLoss(self.base, comparison=None if self.hidden_by or head.soft else LossComparison())
        if self.hidden_by:
            raise ValueError(
                f"R-Drop keeps the own loss of {self.model_name}, and needs its logits too, which it leaves "
                f"out with {self.hidden_by}."
            )
        return ModelLoss(self.base)

    def smoothing(self, head: PredictionHead) -> float:
        """`Trainer` smooths `labels` alone, so answers to questions are not."""
        return self.label_smoothing if head.labels == ("labels",) else 0.0

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """A collective."""
        return tensor if self.accelerator is None else self.accelerator.reduce(tensor)

    def on_any_process(self, flags: Any) -> Any:
        """Whether something holds on some process, for a boolean or (lists of) several of them; a collective."""
        flags = torch.as_tensor(flags, device=self.device).float()
        return self.sum_over_processes(flags).bool().tolist()

    def tolerance(self, *results: torch.Tensor, by_products: bool = False) -> float:
        """How far two results may differ, relative, that are the same but for rounding.

        Their type does not tell: mixed precision hands back float32, although under CUDA's autocast even
        `cross_entropy` rounds every item to the type of the logits, and a model with half-precision weights may do so.

        Args:
            *results: the results, or what they were computed from.
            by_products: they come from matrix products of their own, which round once more; TF32 does as well.
        """
        of_half = any(result.dtype.itemsize < 4 for result in results)
        if of_half and self.device.type != "cuda":
            return 2**-5  # other devices add up in half precision, too
        half = self._is_half or of_half
        # Not `allow_tf32`, which fails where TF32 was asked for in this newer way, as `Trainer`'s tf32=True does
        tf32 = by_products and self.device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
        if half or tf32:
            return 2e-2 if by_products else 2**-7  # an item and the mean are each rounded by 2^-9 at most
        return 1e-4

    def margin(self, logits: torch.Tensor) -> float:
        """By how much a loss of logits may differ beside: but for CUDA, the sums of half-precision exponentials are
        rounded, which can be far larger than the loss."""
        if logits.dtype.itemsize >= 4 or self.device.type == "cuda":
            return 1e-6
        largest = logits.detach().amax(-1).nan_to_num(0.0, 0.0, 0.0).abs().amax().item()
        return torch.finfo(logits.dtype).eps * largest

    @contextmanager
    def aside(self, with_grad: bool = False):
        """For forward passes that leave no trace."""
        with warnings.catch_warnings(), torch.set_grad_enabled(with_grad), self.same_noise():
            # Of a reentrant checkpoint, for which no gradient is asked here
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
            yield

    def same_noise(self):
        """A context that leaves no trace in random states and buffers."""
        return same_noise(self.model, self.device)

    @contextmanager
    def without_dropout(self):
        """Sets every dropout to 0, and its probability back when it is left; training modes stay as they are."""
        before = [(place, place.p) for place in places_of(self.model)]
        try:
            for place, p in before:
                if p:
                    place.set(0.0)
            yield
        finally:
            for place, p in before:
                if p:
                    place.set(p)

    def probe(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        source: TaskLoss,
        head: PredictionHead,
    ) -> Passes:
        """One pass over a micro-batch, `aside`: the model is fed and called as a source of the task loss does it."""
        with self.aside(source.takes_gradients):
            return run_passes(model, source.inputs(batch, head), 1, "sequential", source.call, head.outputs)
