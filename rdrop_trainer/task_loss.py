"""Where the task loss comes from: the head's stock loss, the model's own, a user's function, or the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from .checks import LossCheck
from .heads import Head, head_of
from .losses import RDropLoss, rdrop_loss
from .passes import Passes, call_model, run_passes, with_loss, without_ddp
from .window import Window


class TaskLossMixin:
    """The part of `RDropMixin` that finds out which task loss a training has, and keeps it."""

    def _start_task_loss(self) -> None:
        self._loss_check = LossCheck()
        self._trainer_check = LossCheck()
        self._trainer_hides_logits = False
        self._trainer_has_own_loss = super().compute_loss.__func__ is not Trainer.compute_loss

    @property
    def _trainer_behind(self) -> type:
        """The trainer that the mixin stands in front of."""
        classes = type(self).__mro__
        return next(cls for cls in classes[classes.index(TaskLossMixin) :] if issubclass(cls, Trainer))

    @property
    def _base_model(self) -> nn.Module:
        """The model without the wrappers of distributed training and of PEFT adapters."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _label_smoothing(self) -> float:
        return self.args.label_smoothing_factor if self.label_smoother is not None else 0.0

    @property
    def _logits_hidden_by(self) -> str | None:
        """The setting for which the model returns no (or not all) logits once it is given labels."""
        liger = getattr(self.args, "liger_kernel_config", None) or {}
        if self.args.use_liger_kernel and liger.get("fused_linear_cross_entropy", True):
            return "use_liger_kernel=True; pass liger_kernel_config={'fused_linear_cross_entropy': False}"
        if getattr(getattr(self._base_model, "config", None), "sparse_prediction", False):
            return "sparse_prediction=True in the model's configuration; set it to False"
        return None

    def _choose_head(self, batches: list[Mapping[str, Any]]) -> Head:
        """The head of the model, with the source of its task loss."""
        if self._trainer_has_own_loss and not (_is_labelled(batches[0]) or self.compute_loss_func):
            raise ValueError(
                f"R-Drop does not fit {self._trainer_behind.__name__}: its batches hold no `labels`, which tell the "
                "items (rows, tokens) whose predictions two passes share"
                + (f"; got only: {', '.join(batches[0])}." if isinstance(batches[0], Mapping) else ".")
            )
        head = head_of(self._base_model, batches[0])
        for batch in batches:
            if any(batch.get(key) is None for key in head.labels):
                raise ValueError(
                    f"R-Drop needs `{'` and `'.join(head.labels)}` in every training batch, got only: "
                    f"{', '.join(batch)}." + (" Rows without a label carry -100." if "labels" in head.labels else "")
                )
        peft = getattr(self.accelerator.unwrap_model(self.model), "active_peft_config", None)
        if peft is not None and peft.is_prompt_learning and peft.peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
            head = replace(head, soft_prompt=True)
        if self.compute_loss_func is not None:
            return replace(head, task_loss="function")
        if self._trainer_has_own_loss and not self._trainer_hides_logits:
            return replace(head, task_loss="trainer")
        if self._loss_check.differs:
            head = replace(head, task_loss="model")
        elif self.label_smoother is not None:
            head = replace(head, task_loss="stock")
        if head.task_loss == "model" and self._logits_hidden_by:
            raise ValueError(
                f"R-Drop keeps the own loss of {type(self._base_model).__name__}, and needs its logits too, which it "
                f"leaves out with {self._logits_hidden_by}."
            )
        return head

    # ---- Running the model ----

    def _run(self, model: nn.Module, inputs: Mapping[str, Any], window: Window, num_passes: int, mode: str) -> Passes:
        """Run the model several times; through the trainer's own `compute_loss` where that is kept."""
        if self._trainer_has_own_loss and not self._trainer_check.done and self.compute_loss_func is None:
            self._check_trainer_loss(model, inputs, window)
        if window.head.task_loss == "trainer":
            return run_passes(model, inputs, num_passes, mode, self._call_trainer)
        return run_passes(model, self._model_inputs(inputs, window.head), num_passes, mode, call_model)

    def _call_trainer(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return with_loss(outputs, loss, has_loss=True)

    def _model_inputs(self, inputs: Mapping[str, Any], head: Head) -> dict[str, Any]:
        """The inputs of a forward pass: without labels, unless the loss that the model makes of them is wanted."""
        to_be_checked = not self._loss_check.done and self.label_smoother is None and not self._logits_hidden_by
        if head.task_loss == "model" or (head.task_loss == "stock" and to_be_checked):
            return dict(inputs)
        # A decoder makes its inputs from the labels, where the collator did not
        decoder_inputs = self._decoder_inputs(inputs)
        if decoder_inputs is None:
            return dict(inputs)
        return {key: value for key, value in inputs.items() if key not in head.labels} | decoder_inputs

    def _decodable(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs that `Trainer` can work with where it takes the labels away from an encoder-decoder."""
        if self.label_smoother is None and self.compute_loss_func is None:
            return inputs
        return {**inputs, **(self._decoder_inputs(inputs) or {})}

    def _decoder_inputs(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
        """The decoder inputs that the labels stand for, empty if none are needed; None if the model cannot say."""
        model, labels = self._base_model, inputs.get("labels")
        given = any(inputs.get(key) is not None for key in ("decoder_input_ids", "decoder_inputs_embeds"))
        decodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        if given or not decodes or labels is None or labels.dim() != 2 or labels.is_floating_point():
            return {}
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            return None
        return {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=labels)}

    # ---- Losses that are not ours ----

    def _plain_loss(self, model, inputs, return_outputs, num_items_in_batch, window: Window):
        """`Trainer`'s own loss: with one batch on one process it is normalised rightly, so every bit of it is kept."""
        if window.head.shifted and window.head.task_loss != "function" and num_items_in_batch is not None:
            # For GPT-2 and its like `Trainer` also counts the first token of a row, which nothing predicts
            num_items_in_batch = window.task_items[0].clamp(min=1)
        result = super().compute_loss(model, dict(self._decodable(inputs)), return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if window.head.problem == "single_label":
            # No labelled item: the mean over nothing is NaN there
            loss = torch.where((window.task_items > 0).all(), loss, torch.zeros_like(loss))
        return (loss, result[1]) if return_outputs else loss

    def _own_task_loss(
        self,
        passes: Passes,
        inputs: Mapping[str, Any],
        window: Window,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The loss of the user's function, the trainer or the model, mean over passes, scaled to the window."""
        if window.head.task_loss == "function":
            losses = [
                self.compute_loss_func(passes.output(k), inputs.get("labels"), num_items_in_batch=num_items_in_batch)
                for k in range(passes.num_passes)
            ]
            scale = window.processes if num_items_in_batch is not None else 1
            return torch.stack(losses).mean() * scale
        loss = passes.loss()
        if loss is None:
            raise ValueError(
                f"{type(passes.raw[0]).__name__} holds no loss although labels were given; R-Drop keeps the model's "
                "own task loss for models defined outside transformers. Return a `loss`, or pass compute_loss_func."
            )
        # Taken as a mean over the micro-batch's items, which is what a model that is not told the window's count gives
        share = window.share(inputs)
        return torch.where(share > 0, loss * share, torch.zeros_like(loss))

    def _stock_loss(self, items: list[tuple[torch.Tensor, torch.Tensor]], head: Head, num_passes: int) -> torch.Tensor:
        """The stock task loss of one micro-batch, without a gradient."""
        return mean_of_parts(
            rdrop_loss(
                logits.detach(),
                labels,
                alpha=0,
                num_passes=num_passes,
                problem=head.problem,
                label_smoothing=self._label_smoothing,
            )
            for logits, labels in items
        ).task_loss

    def _check_model_loss(self, passes: Passes, items: list[tuple[torch.Tensor, torch.Tensor]], window: Window) -> None:
        """Whether the model's own loss is the stock loss; if it is not, it is kept from here on."""
        check, own = self._loss_check, passes.loss()
        if window.head.task_loss != "stock" or own is None:
            check.done = True
        elif any(key.endswith(("aux_loss", "z_loss")) and run[key] is not None for run in passes.runs for key in run):
            check.done = check.differs = True  # a router adds to it, maybe less than the comparison would see
        else:
            stock = self._stock_loss(items, window.head, passes.num_passes)
            check.look(own.detach(), stock, items[0][0].dtype, self.accelerator.reduce)
        if check.differs:
            window.head = replace(window.head, task_loss="model")

    def _check_trainer_loss(self, model: nn.Module, inputs: Mapping[str, Any], window: Window) -> None:
        """Whether the trainer's own `compute_loss` returns logits to train on; if not, its loss must be replaceable.

        Logits without a gradient (trl's `SFTTrainer` makes them in a forward of their own, for metrics) do not count.

        Raises:
            ValueError: a loss of its own, other than the head's or the model's, without logits.
        """
        with torch.enable_grad(), same_noise(self.args.device):
            own = run_passes(without_ddp(model), inputs, 1, "sequential", self._call_trainer)
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
        # Mixed precision returns float32, but the two forward passes have rounded to less
        mixed = self.accelerator.mixed_precision != "no"
        dtype = torch.bfloat16 if mixed else items[0][0].dtype
        self._trainer_check.look(loss, kept, dtype, self.accelerator.reduce)
        if self._trainer_check.differs:
            names = " or ".join(head.outputs)
            raise ValueError(
                f"The compute_loss of {type(self).__name__} returns {loss.item():.6g} where the loss for {head.name} "
                f"is {kept.item():.6g}, and no {names} beside it that have a gradient, so R-Drop can neither keep this "
                f"loss nor replace it. Let compute_loss(..., return_outputs=True) return the {names} it is made of."
            )
        window.head = head

    def _undo_division(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
        """Older transformers do not ask `loss_is_scaled_for_ga`: undo the division they are about to make."""
        if hasattr(Trainer, "loss_is_scaled_for_ga") or self._window is None:
            return loss
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        divides = not counted and self.compute_loss_func is None
        return loss * self._window.micro_batches if divides else loss


def _is_labelled(batch: Any) -> bool:
    return isinstance(batch, Mapping) and any(key in batch for key in ("labels", "start_positions"))


def mean_of_parts(parts: Iterable[RDropLoss]) -> RDropLoss:
    """The terms of a head with several parts: their means."""
    return RDropLoss(*(torch.stack(values).mean(0) for values in zip(*parts, strict=True)))


@contextmanager
def same_noise(device: torch.device):
    """Give the random state back as it was, so that what follows draws the same dropout."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
