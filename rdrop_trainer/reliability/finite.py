"""A training whose loss is NaN or infinite stops, before such a loss is in the weights and in the checkpoints."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import nn
from torch.utils.data import SequentialSampler
from transformers.trainer_utils import has_length

from ..objective.behind import TrainerBehind
from ..semi_supervised import MixedSampler
from .resuming import last_whole_checkpoint


class _Place(NamedTuple):
    """Of a micro-batch: the optimizer step it belongs to, from 1; the epoch and its batch on this process, from 0."""

    step: int
    epoch: int
    batch: int


class FiniteLossMixin(TrainerBehind):
    """The part of `RDropMixin` that stops a training at a NaN or infinite loss, and says where it came from.

    Such a logit of a counted item makes the loss NaN or infinite, so the loss is what is looked at: right behind the
    backward pass, where `Trainer` itself reads it. With `logging_nan_inf_filter=False` `Trainer` does not, and the look
    waits for the next log, checkpoint or `_AT_MOST` losses, so as not to stall the device. Before a checkpoint is
    written the weights are looked at too: a gradient can overflow where the loss did not.

    Nothing is checked where somebody else deals with overflow: a gradient scaler (fp16) skips such steps, and
    `rdrop_allow_nonfinite` says that the user's own code does.
    """

    _AT_MOST = 256

    def _start_finite_check(self) -> None:
        self._unseen_losses: list[tuple[_Place, torch.Tensor]] = []
        self._micro_batch = 0

    @property
    def _stops_at_nonfinite(self) -> bool:
        has_scaler = self.accelerator.scaler is not None or (self.is_deepspeed_enabled and self.args.fp16)
        return not (self.args.rdrop_allow_nonfinite or has_scaler)

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        self._look_at_all()
        return output

    def get_batch_samples(self, *args, **kwargs):
        self._micro_batch = 0
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        """`Trainer.training_step`.

        Raises:
            FloatingPointError: the loss is NaN or infinite; names the step, the rows and the last whole checkpoint.
        """
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self._stops_at_nonfinite:
            self._unseen_losses.append((self._place(), loss.detach()))
            if self.args.logging_nan_inf_filter or len(self._unseen_losses) == self._AT_MOST:
                self._look_at_losses()
        self._micro_batch += 1
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            self._look_at_losses()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        self._look_at_all()
        super()._save_checkpoint(*args, **kwargs)

    def _look_at_all(self) -> None:
        self._look_at_losses()
        if not self._stops_at_nonfinite:
            return
        spoilt = torch.tensor(float(not _all_finite(self.model)), device=self.args.device)
        if self.accelerator.reduce(spoilt) > 0:
            raise FloatingPointError(
                f"The weights are no longer finite after step {self.state.global_step}, though every loss was: a "
                f"gradient overflowed. {self._what_to_do()}"
            )

    def _look_at_losses(self) -> None:
        seen, self._unseen_losses = self._unseen_losses, []
        if not seen:
            return
        values = torch.stack([loss.float().mean() for _, loss in seen]).tolist()
        for (place, _), value in zip(seen, values, strict=True):
            if not abs(value) < float("inf"):
                weights = (
                    "The weights are finite."
                    if _all_finite(self.model)
                    else "The weights are no longer finite: an update overflowed."
                )
                raise FloatingPointError(
                    f"The loss is {value} at step {place.step}, batch {place.batch + 1} of epoch {place.epoch + 1}"
                    f"{self._rows_of(place)}. {weights} {self._what_to_do()}"
                )

    def _what_to_do(self) -> str:
        found = last_whole_checkpoint(self.args.output_dir)
        last = f"The last good checkpoint is {found}" if found else "There is no checkpoint before it"
        return (
            f"{last}. A lower learning rate or more warm-up often helps; so does looking at those rows, or at a loss "
            "function of your own. To go on because your own code handles overflow, pass rdrop_allow_nonfinite=True."
        )

    # ---- Where a batch came from ----

    def _place(self) -> _Place:
        epoch = int(self.state.epoch or 0)
        loader = self.callback_handler.train_dataloader
        batches = len(loader) if has_length(loader) else 0
        done = round((self.state.epoch - epoch) * batches) if self.state.epoch else 0
        return _Place(self.state.global_step + 1, epoch, done + self._micro_batch)

    def _rows_of(self, place: _Place) -> str:
        """The rows of a batch, drawn once more from the sampler; empty where it would not draw the same again."""
        batches = getattr(self.callback_handler.train_dataloader, "batch_sampler", None)
        sampler = batches
        while sampler is not None and not isinstance(sampler, MixedSampler):
            below = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
            if below is None:
                break
            sampler = below
        order = sampler.labeled if isinstance(sampler, MixedSampler) else sampler
        if not isinstance(order, (SequentialSampler, SeedableRandomSampler)) or self.args.ignore_data_skip:
            return ""
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(place.epoch)
        rows: list[Any] = next(islice(batches, place.batch, None), [])
        if not isinstance(sampler, MixedSampler):
            return f": rows {rows} of train_dataset"
        labeled, unlabeled = [row for row, _ in rows], [row for _, more in rows for row in more]
        return f": rows {labeled} of train_dataset and {unlabeled} of unlabeled_dataset"


def _all_finite(model: nn.Module) -> bool:
    """Of the weights on this process: where they are sharded, to ask for all could find the others elsewhere."""
    found = [_local(parameter).isfinite().all() for parameter in model.parameters() if parameter.requires_grad]
    return all(flag.item() for flag in found)


def _local(parameter: nn.Parameter) -> torch.Tensor:
    value: Any = parameter.detach()
    return value.to_local() if hasattr(value, "device_mesh") else value  # a DTensor
