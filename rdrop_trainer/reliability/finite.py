"""A training whose loss is NaN or infinite stops before such a loss reaches the weights or a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import reduce
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import has_length

from ..unlabeled_rows import SemiSupervisedSampler, row_sampler
from .resuming import last_whole_checkpoint


class _MicroBatch(NamedTuple):
    """Where a micro-batch stands in a training.

    Attributes:
        step: the optimizer step that it belongs to, from 1.
        epoch: its epoch, from 0.
        number: its place in the epoch on this process, from 0.
    """

    step: int
    epoch: int
    number: int


@dataclass(frozen=True)
class _Training:
    """The training that is running, as its first event describes it."""

    args: Any  # TrainingArguments with the settings of RDropArguments
    state: TrainerState
    model: nn.Module
    train_dataloader: Any
    scales_loss: bool

    @property
    def stops_at_nonfinite(self) -> bool:
        return not (self.args.rdrop_allow_nonfinite or self.scales_loss)

    def micro_batch(self, number: int) -> _MicroBatch:
        """Micro-batch `number` (from 0) of the optimizer step that runs."""
        progress = self.state.epoch or 0  # when the step began
        epoch = int(progress)
        batches = len(self.train_dataloader) if has_length(self.train_dataloader) else 0
        return _MicroBatch(self.state.global_step + 1, epoch, round((progress - epoch) * batches) + number)

    def rows_of(self, batch: _MicroBatch) -> str:
        """The rows of a micro-batch, drawn again from the sampler; empty where a second draw would differ."""
        batches = getattr(self.train_dataloader, "batch_sampler", None)
        sampler = row_sampler(self.train_dataloader)
        order = sampler.labeled if isinstance(sampler, SemiSupervisedSampler) else sampler
        repeatable = isinstance(order, (SequentialSampler, SeedableRandomSampler))
        if batches is None or not repeatable or self.args.ignore_data_skip:
            return ""
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(batch.epoch)
        rows: list[Any] = next(islice(batches, batch.number, None), [])
        if not isinstance(sampler, SemiSupervisedSampler):
            return f": rows {rows} of train_dataset"
        labeled, unlabeled = [row for row, _ in rows], [row for _, more in rows for row in more]
        return f": rows {labeled} of train_dataset and {unlabeled} of unlabeled_dataset"


class FiniteLossGuard(TrainerCallback):
    """Stops a training at a NaN or infinite loss, and says which step and rows it came from.

    The trainer hands over the loss of every micro-batch (`watch`) and calls `check` before it writes a checkpoint:
    `Trainer` has no event between the decision to save and the first file. Everything else happens at its events.

    A NaN or infinite logit of a counted item makes the loss NaN or infinite, so the loss is what the guard reads.
    Normally it reads each one right after the backward pass, where `Trainer` does too. With
    `logging_nan_inf_filter=False` `Trainer` does not, and reading would stall the device: the guard then waits for the
    next log or checkpoint, the end of the training, or `MAX_UNREAD` losses. `check` reads the weights too, because a
    gradient can overflow where the loss did not.

    The guard does nothing outside `train()`, and nothing where somebody else handles overflow: a gradient scaler (fp16)
    skips such steps, and `rdrop_allow_nonfinite` says that the user's own code does.
    """

    MAX_UNREAD = 256

    def __init__(self) -> None:
        self._training: _Training | None = None
        self._micro_batches = 0  # of the current optimizer step, that are done
        self._unread: list[tuple[_MicroBatch, torch.Tensor]] = []  # losses, and where they come from

    def watch(self, loss: torch.Tensor) -> None:
        """Take the loss of the micro-batch that was just trained on.

        Args:
            loss: a scalar, or one value per device.

        Raises:
            FloatingPointError: this loss, or one that was not read yet, is NaN or infinite. The message names the step,
                the rows, the state of the weights and the last whole checkpoint.
        """
        training = self._training
        if training is not None and training.stops_at_nonfinite:
            # A copy: a model's own loss may stand in memory that CUDA graphs (torch_compile) use again for the next one
            self._unread.append((training.micro_batch(self._micro_batches), loss.detach().clone()))
            if training.args.logging_nan_inf_filter or len(self._unread) == self.MAX_UNREAD:
                self._read_losses()

    def check(self) -> None:
        """Check the losses that were not read yet, then the weights. All processes must call it together.

        Raises:
            FloatingPointError: one of them is NaN or infinite.
        """
        self._read_losses()
        training = self._training
        if training is None or not training.stops_at_nonfinite:
            return
        spoilt = torch.tensor(float(not _all_finite(training.model)), device=training.args.device)
        if reduce(spoilt, "sum") > 0:
            self._stop(
                f"The weights are no longer finite after step {training.state.global_step}, though every loss was: a "
                "gradient overflowed."
            )

    def on_train_begin(self, args, state, control, model=None, optimizer=None, train_dataloader=None, **kwargs):
        # DeepSpeed scales by itself, with fp16 only; elsewhere accelerate's optimizer has the scaler
        scales_loss = args.fp16 or getattr(optimizer, "scaler", None) is not None
        self._training = _Training(args, state, model, train_dataloader, scales_loss)
        self._unread = []  # an attempt that ran out of memory may have left some

    def on_step_begin(self, args, state, control, **kwargs):
        self._micro_batches = 0

    def on_substep_end(self, args, state, control, **kwargs):
        self._micro_batches += 1

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log:
            self._read_losses()

    on_epoch_end = on_step_end

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:  # a callback after this one may have asked for the log
            self._read_losses()

    def on_train_end(self, args, state, control, **kwargs):
        self.check()
        self.forget()

    def forget(self) -> None:
        """Let go of the training: it has ended, or stopped."""
        self._training = None

    def _read_losses(self) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = torch.stack([loss.float().mean() for _, loss in unread]).tolist()
        for (batch, _), value in zip(unread, values, strict=True):
            if not math.isfinite(value):
                finite = _all_finite(self._training.model)
                self._stop(
                    f"The loss is {value} at step {batch.step}, batch {batch.number + 1} of epoch {batch.epoch + 1}"
                    f"{self._training.rows_of(batch)}. The weights are "
                    + ("finite." if finite else "no longer finite: an update overflowed.")
                )

    def _stop(self, reason: str) -> NoReturn:
        """End the training with the reason, the last whole checkpoint and what may help."""
        args = self._training.args
        found = last_whole_checkpoint(args.output_dir, needs_optimizer=not args.save_only_model)
        last = f"The last good checkpoint is {found}" if found else "There is no checkpoint before it"
        raise FloatingPointError(
            f"{reason} {last}. A lower learning rate or more warm-up often helps; so does a check of those rows, or of "
            "a loss function of your own. To go on because your own code handles overflow, pass "
            "rdrop_allow_nonfinite=True."
        )


def _all_finite(model: nn.Module) -> bool:
    """Whether the weights on this process are finite. Shards elsewhere are left out: other processes may not ask."""
    found = [_local(parameter).isfinite().all() for parameter in model.parameters() if parameter.requires_grad]
    return all(flag.item() for flag in found)


def _local(parameter: nn.Parameter) -> torch.Tensor:
    value: Any = parameter.detach()
    return value.to_local() if hasattr(value, "device_mesh") else value  # a DTensor
