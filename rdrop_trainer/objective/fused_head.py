"""Whether a training fuses the output head of its model into the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .heads import CAUSAL_LM, MASKED_LM, SEQ2SEQ, PredictionHead
from .lm_head import CannotFuse, LMHead, vocabulary_size
from .loss_checks import LossChecksMixin, same_noise
from .passes import Passes, find_batch_size, take_rows
from .window import Window

logger = logging.get_logger(__name__)

LANGUAGE_MODELS = {head.name for head in (CAUSAL_LM, MASKED_LM, SEQ2SEQ)}
# With fewer logits in a micro-batch there is little to save
AUTO_FROM = 2**24
# What a task loss that is not the stock loss is made of
_OWN_LOSS = {
    "model": "the model's own loss is kept, which it makes of its logits",
    "function": "compute_loss_func gets the model's outputs, logits included",
    "trainer": "the trainer's own compute_loss makes the loss of the logits",
}


class FusedHeadMixin(LossChecksMixin):
    """The part of `TaskLossMixin` that finds the output head to fuse, and says once why there is none."""

    def _start_fused_head(self) -> None:
        self._output_head: LMHead | None = None
        self._output_head_compared = False
        self._not_fused_because: str | None = None
        self._classes = 0

    def _head_to_fuse(self, inputs: Mapping[str, Any], window: Window, num_passes: int, wanted: str) -> LMHead | None:
        """The output head that is fused into the loss of a micro-batch; None: its logits are made.

        All processes of a training look for it in the same micro-batches, whatever their size.

        Args:
            inputs: of the micro-batch.
            window: its window; its head keeps the model's own loss where that is found to differ from the stock loss.
            num_passes: m.
            wanted: `rdrop_fused_head`.

        Raises:
            ValueError: the head is to be fused, and sharded over processes.
        """
        if wanted == "false" or window.head.name not in LANGUAGE_MODELS:
            return None
        if self._not_fused_because is None:
            try:
                self._output_head = self._output_head or self._find_output_head(inputs, window.head)
                if not (self._output_head_compared and self._loss_check.done):
                    self._look_at_a_row(self._output_head, inputs, window)
                if window.head.task_loss != "stock":
                    raise CannotFuse(_OWN_LOSS[window.head.task_loss])
            except CannotFuse as error:
                if error.sharded and wanted == "true":
                    raise ValueError(
                        f"rdrop_fused_head=True does not fit this training: {error}. Leave the output head out of the "
                        'sharding, or set rdrop_fused_head to "auto" or False.'
                    ) from None
                self._output_head, self._not_fused_because = None, str(error)
                self._classes = vocabulary_size(self._base_model)
        head = self._output_head
        if wanted == "auto" and num_passes * inputs[window.head.labels[0]].numel() * self._classes < AUTO_FROM:
            return None
        if head is None:
            logger.warning_once(
                f"The output head of {type(self._base_model).__name__} is not fused into the R-Drop loss: "
                f"{self._not_fused_because}. Its logits are made as a whole."
            )
        return head

    def _find_output_head(self, inputs: Mapping[str, Any], head: PredictionHead) -> LMHead:
        if head.task_loss != "stock":
            raise CannotFuse(_OWN_LOSS[head.task_loss])
        if self.is_fsdp_enabled:
            raise CannotFuse("FSDP shards the weights of the output head over processes", sharded=True)
        if self.args.torch_compile or any(map(_is_compiled, (self.model, self._base_model))):
            raise CannotFuse("the model is compiled as a whole")
        if self._logits_hidden_by:
            raise CannotFuse(self._logits_hidden_by)
        if self._decoder_inputs(inputs) is None:
            raise CannotFuse(f"{type(self._base_model).__name__} makes the inputs of its decoder from labels by itself")
        found = LMHead.of(self._base_model)
        self._classes = found.classes
        if found.is_known:
            self._output_head_compared = self._loss_check.done = True
        return found

    def _look_at_a_row(self, head: LMHead, inputs: Mapping[str, Any], window: Window) -> None:
        """Compare a head with the logits the model returns for one row, and the model's loss with the stock loss."""
        model = self.accelerator.unwrap_model(self.model)
        row = {key: take_rows(value, slice(1), find_batch_size(model, inputs)) for key, value in inputs.items()}
        shown = row if not self._label_smoothing(window.head) else self._model_inputs(row, window.head)
        same, outputs, reason = False, None, "its logits are not those of the output head alone"
        try:
            with torch.no_grad(), same_noise(self.args.device):
                same, outputs = head.makes(model, shown)
        except CannotFuse as error:
            reason = str(error)
        except Exception as error:  # whatever goes wrong with a row by itself, the training can do without
            reason = f"{type(error).__name__}: {error}"
        verdict = torch.tensor([float(same)], device=self.args.device)
        if self.accelerator.reduce(verdict) < self.accelerator.num_processes:
            raise CannotFuse(reason)
        self._output_head_compared = True
        if not self._loss_check.done:
            passes = Passes([dict(outputs)], [outputs], 1, 1)
            self._check_model_loss(passes, window.head.items(passes, row, 1), window)


def _is_compiled(model: nn.Module) -> bool:
    """A compiled model runs without the hook that catches its hidden states."""
    return hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
