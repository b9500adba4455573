"""Where the task loss comes from: the head's stock loss, the model's own, a user's function, or the trainer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .fused_head import FusedHeadMixin
from .heads import PredictionHead, head_of
from .lm_head import LMHead
from .passes import Passes, call_model, run_passes, with_loss, without_ddp
from .window import Window


class TaskLossMixin(FusedHeadMixin):
    """The part of `RDropMixin` that finds out which task loss a training has, and keeps it."""

    def _start_task_loss(self) -> None:
        self._start_checks()
        self._start_fused_head()
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

    def _label_smoothing(self, head: PredictionHead) -> float:
        """`Trainer` smooths `labels` alone, so answers to questions are not."""
        return self.args.label_smoothing_factor if self.label_smoother and head.labels == ("labels",) else 0.0

    @property
    def _logits_hidden_by(self) -> str | None:
        """The setting for which the model returns no (or not all) logits once it is given labels."""
        liger = getattr(self.args, "liger_kernel_config", None) or {}
        if self.args.use_liger_kernel and liger.get("fused_linear_cross_entropy", True):
            return "use_liger_kernel=True; pass liger_kernel_config={'fused_linear_cross_entropy': False}"
        if getattr(getattr(self._base_model, "config", None), "sparse_prediction", False):
            return "sparse_prediction=True in the model's configuration; set it to False"
        return None

    def _choose_head(self, batches: list[Mapping[str, Any]]) -> PredictionHead:
        """The head of the model, with the source of its task loss."""
        if self._trainer_has_own_loss and not (_is_labeled(batches[0]) or self.compute_loss_func):
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
        elif self._label_smoothing(head):
            head = replace(head, task_loss="stock")
        if head.task_loss == "model" and self._logits_hidden_by:
            raise ValueError(
                f"R-Drop keeps the own loss of {type(self._base_model).__name__}, and needs its logits too, which it "
                f"leaves out with {self._logits_hidden_by}."
            )
        return head

    def _check_own_loss(self, model: nn.Module, inputs: Mapping[str, Any], window: Window) -> None:
        """What a trainer's own `compute_loss` returns, looked at in the first micro-batches."""
        if self._trainer_has_own_loss and not self._trainer_check.done:
            check = self._check_trainer_loss if self.compute_loss_func is None else self._check_function
            check(without_ddp(model), inputs, window)

    # ---- Running the model ----

    def _run(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        window: Window,
        num_passes: int,
        mode: str,
        output_head: LMHead | None = None,
        whole: bool = False,
    ) -> Passes:
        """Run the model several times; through the trainer's own `compute_loss` where that is kept.

        Args:
            output_head: stop in front of it.
            whole: keep all that the model returns, not only what the loss is made of.
        """
        if output_head is not None:
            wanted = {key: value for key, value in inputs.items() if key not in window.head.labels}
            wanted |= self._decoder_inputs(inputs)
            return run_passes(model, wanted, num_passes, mode, output_head.call)
        if num_passes > 1 and mode == "concat" and not self._rows_checked:
            self._check_rows(without_ddp(model), inputs, window, num_passes)
        if window.head.task_loss == "trainer":
            return run_passes(model, inputs, num_passes, mode, self._call_trainer)
        call = (
            call_model if whole or window.head.task_loss == "function" else partial(_call_for_loss, window.head.outputs)
        )
        return run_passes(model, self._model_inputs(inputs, window.head), num_passes, mode, call)

    def _call_trainer(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        result = super().compute_loss(model, self._decodable(inputs), return_outputs=True)
        if not isinstance(result, tuple):
            raise ValueError(
                f"The compute_loss of {type(self).__name__} must return (loss, outputs) when it is called with "
                f"return_outputs=True, because R-Drop needs the logits; it returned a {type(result).__name__}."
            )
        loss, outputs = result
        return with_loss(outputs, loss, has_loss=isinstance(outputs, tuple) and outputs[0].dim() == 0)

    def _model_inputs(self, inputs: Mapping[str, Any], head: PredictionHead) -> dict[str, Any]:
        """The inputs of a forward pass: without labels, unless the loss that the model makes of them is wanted."""
        smooths = self._label_smoothing(head) > 0
        to_be_checked = not self._loss_check.done and not smooths and not self._logits_hidden_by
        if head.task_loss == "model" or (head.task_loss == "stock" and to_be_checked):
            return dict(inputs)
        # A decoder makes its inputs from the labels, where the collator did not
        decoder_inputs = self._decoder_inputs(inputs)
        if decoder_inputs is None:
            return dict(inputs)
        withheld = ("labels",) if head.task_loss == "function" else head.labels
        return {key: value for key, value in inputs.items() if key not in withheld} | decoder_inputs

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
        prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        return None if prepare is None else {"decoder_input_ids": prepare(labels=labels)}

    # ---- Losses that are not ours ----

    def _trainer_counts_right(self, window: Window) -> bool:
        """Whether `Trainer`'s own loss of a whole step is the mean over its items."""
        head = window.head
        if head.shifted and self._label_smoothing(head):  # its smoother shifts the labels for the classes listed here
            return type(self._base_model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        # Without a single start (or end) inside the text, the mean over them, and with it the sum of both, is NaN
        return len(head.labels) == 1 or bool((window.task_items > 0).all())

    def _plain_loss(self, model, inputs, return_outputs, num_items_in_batch, window: Window):
        """`Trainer`'s own loss: with one batch on one process it is normalised rightly, so every bit of it is kept."""
        if window.head.shifted and window.head.task_loss != "function" and num_items_in_batch is not None:
            # For GPT-2 and its like `Trainer` also counts the first token of a row, which nothing predicts
            num_items_in_batch = window.task_items[0].clamp(min=1)
        inputs = dict(self._decodable(inputs))
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = result[0] if return_outputs else result
        if window.head.problem == "single_label":
            # No labeled item: the mean over nothing is NaN there
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
                f"{type(self._base_model).__name__} returns no loss although labels were given; R-Drop keeps the "
                "model's own loss for models defined outside transformers. Return a `loss`, or pass compute_loss_func."
            )
        # Taken as a mean over the micro-batch's items, which is what a model that is not told the window's count gives
        share = window.share(inputs)
        return torch.where(share > 0, loss * share, torch.zeros_like(loss))

    def _undo_division(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
        """Older transformers do not ask `loss_is_scaled_for_ga`: undo the division they are about to make."""
        if hasattr(Trainer, "loss_is_scaled_for_ga") or self._window is None:
            return loss
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        divides = not counted and self.compute_loss_func is None
        return loss * self._window.micro_batches if divides else loss


def _call_for_loss(names: tuple[str, ...], model: nn.Module, inputs: dict[str, Any]) -> Any:
    """One forward of a model, whose outputs the loss does not need are let go at once."""
    outputs = call_model(model, inputs)
    if not isinstance(outputs, Mapping) or any(outputs.get(name) is None for name in names):
        return outputs
    return {key: value for key, value in outputs.items() if key in names or key.endswith("loss")}


def _is_labeled(batch: Any) -> bool:
    return isinstance(batch, Mapping) and any(key in batch for key in ("labels", "start_positions"))
