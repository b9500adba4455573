"""What is looked at in the first steps of a training that has a task loss of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..losses import RDropLoss, rdrop_loss
from .behind import TrainerBehind
from .heads import Items, PredictionHead
from .noise import LossCheck
from .passes import Passes, call_model, find_batch_size, repeat_rows, run_passes
from .window import Window


class LossChecksMixin(TrainerBehind):
    """The part of `TaskLossMixin` that compares losses: the model's, the trainer's, the user's, and the stock loss."""

    def _start_checks(self) -> None:
        self._loss_check = LossCheck()
        self._trainer_check = LossCheck()
        self._trainer_hides_logits = False
        self._rows_checked = False

    def _stock_loss(self, items: list[Items], head: PredictionHead, num_passes: int) -> torch.Tensor:
        """The stock task loss of one micro-batch, without a gradient."""
        return mean_of_parts(
            rdrop_loss(
                [z.detach() for z in part.outputs],
                part.labels,
                alpha=0,
                num_passes=num_passes,
                problem=head.problem,
                mask=part.mask,
                label_smoothing=self._label_smoothing(head),
            )
            for part in items
        ).task_loss

    def _check_model_loss(self, passes: Passes, items: list[Items], window: Window) -> None:
        """Whether the model's own loss is the stock loss; if it is not, it is kept from here on."""
        check, own = self._loss_check, passes.loss()
        if window.head.task_loss != "stock" or own is None:
            check.done = True
        elif any(key.endswith(("aux_loss", "z_loss")) and run[key] is not None for run in passes.runs for key in run):
            check.done = check.differs = True  # a router adds to it, maybe less than the comparison would see
        else:
            stock = self._stock_loss(items, window.head, passes.num_passes)
            check.look(own.detach(), stock, items[0].outputs[0].dtype, self.accelerator.reduce)
        if check.differs:
            window.head = replace(window.head, task_loss="model")

    def _check_trainer_loss(self, model: nn.Module, inputs: Mapping[str, Any], window: Window) -> None:
        """Whether the trainer's own `compute_loss` returns logits to train on; if not, its loss must be replaceable.

        Logits without a gradient (trl's `SFTTrainer` makes them in a forward of their own, for metrics) do not count.

        Raises:
            ValueError: a loss of its own, other than the head's or the model's, without logits.
        """
        with torch.enable_grad(), same_noise(self.args.device):
            own = run_passes(model, inputs, 1, "sequential", self._call_trainer)
        logits = [own.runs[0].get(name) for name in window.head.outputs]
        if all(value is not None and value.requires_grad for value in logits):
            self._trainer_check.done = True
            return
        loss = own.loss().detach()
        del own, logits  # and with them the activations
        self._trainer_hides_logits = True
        head = self._choose_head([inputs])
        with torch.no_grad(), same_noise(self.args.device):
            passes = run_passes(model, self._model_inputs(inputs, head), 1, "sequential")
        items = head.items(passes, inputs, 1)
        kept = passes.loss() if head.task_loss == "model" else self._stock_loss(items, head, 1)
        if kept is None:
            raise ValueError(
                f"{type(self).__name__} returns no logits with its loss, and {type(self._base_model).__name__} no loss "
                "with its logits, so R-Drop has nothing to keep. Return a `loss`, or pass compute_loss_func."
            )
        # Mixed precision returns float32, but the two forward passes have rounded to less
        mixed = self.accelerator.mixed_precision != "no"
        dtype = torch.bfloat16 if mixed else items[0].outputs[0].dtype
        self._trainer_check.look(loss, kept, dtype, self.accelerator.reduce)
        if self._trainer_check.differs:
            names = " or ".join(head.outputs)
            raise ValueError(
                f"The compute_loss of {type(self).__name__} returns {loss.item():.6g} where the loss for {head.name} "
                f"is {kept.item():.6g}, and no {names} beside it that have a gradient, so R-Drop can neither keep this "
                f"loss nor replace it. Let compute_loss(..., return_outputs=True) return the {names} it is made of."
            )
        window.head = head

    def _check_function(self, model: nn.Module, inputs: Mapping[str, Any], window: Window) -> None:
        """Whether the trainer's own `compute_loss` is what `compute_loss_func` gives.

        Raises:
            ValueError: it makes something else of it, or does not use it.
        """
        count = window.head.count(inputs)[:, 0].sum()
        # Where a count is shared between processes, `Trainer` multiplies the loss by their number
        shared = self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1
        with torch.no_grad(), same_noise(self.args.device):
            loss = super().compute_loss(model, self._decodable(dict(inputs)), num_items_in_batch=count * shared)
        with torch.no_grad(), same_noise(self.args.device):
            outputs = call_model(model, self._model_inputs(inputs, window.head))
            expected = self.compute_loss_func(outputs, inputs.get("labels"), num_items_in_batch=count)
        dtype = torch.bfloat16 if self.accelerator.mixed_precision != "no" else expected.dtype
        self._trainer_check.look(loss, expected, dtype, self.accelerator.reduce)
        if self._trainer_check.differs:
            raise ValueError(
                f"The compute_loss of {self._trainer_behind.__name__} returns {loss.item():.6g} where "
                f"compute_loss_func gives {expected.item():.6g}, so it is not clear which of them is the task loss. "
                "Pass no compute_loss_func, or let compute_loss return what it gives."
            )

    def _check_rows(self, model: nn.Module, inputs: Mapping[str, Any], window: Window, num_passes: int) -> None:
        """Whether a loss that is not ours is the same for a batch and for the same rows several times over.

        Raises:
            ValueError: it depends on the number of rows, as a sum does, or negatives within the batch.
        """
        if window.head.task_loss not in ("model", "trainer"):
            return  # and may become one of them, once the model's loss was found to differ
        self._rows_checked = True
        by_trainer = window.head.task_loss == "trainer"
        call = self._call_trainer if by_trainer else call_model
        repeated = repeat_rows(inputs, num_passes, find_batch_size(model, inputs))
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.no_grad(), same_noise(self.args.device):
                once, again = (run_passes(model, rows, 1, "sequential", call).loss() for rows in (inputs, repeated))
        finally:
            for module in training:
                module.training = True
        if once is not None and not torch.allclose(once.float(), again.float(), rtol=2e-2, atol=1e-6, equal_nan=True):
            name = f"compute_loss of {self._trainer_behind.__name__}" if by_trainer else type(self._base_model).__name__
            raise ValueError(
                f"The loss of {name} depends on the number of rows: {once.item():.6g} for a batch, {again.item():.6g} "
                f"for the same rows {num_passes} times over, as R-Drop's single forward would see them. Use "
                'rdrop_forward_mode="sequential", and let it be a mean over the batch.'
            )


def mean_of_parts(parts: Iterable[RDropLoss]) -> RDropLoss:
    """The terms of a head with several parts: their means."""
    return RDropLoss(*(torch.stack(values).mean(0) for values in zip(*parts, strict=True)))


@contextmanager
def same_noise(device: torch.device):
    """Give the random state back as it was, so that what follows draws the same dropout."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
