"""The accumulation windows of a data set without a length, whose end comes unforeseen."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .._mixin_base import MixinBase

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)


class FullWindowsMixin(MixinBase):
    """Leaves out the last batches of a data set without a length where they do not fill a window."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """`Trainer.get_batch_samples`, of full windows alone where the data set has no length."""
        loader = self.callback_handler.train_dataloader
        if loader is None or has_length(loader):
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.accelerator.num_processes > 1:
            # Before `Trainer` counts items over processes: one without batches would not take part, and others wait
            batches = list(islice(epoch_iterator, num_batches))
            _check_all_have_batches(len(batches) == num_batches, self.accelerator)
            epoch_iterator = iter(batches)
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if 0 < len(batches) < self.args.gradient_accumulation_steps:
            # `Trainer` takes no optimizer step after them: their gradient would be added to the next step's
            logger.warning_once(
                f"The data set has no length, and its last {len(batches)} batches do not fill an accumulation "
                f"window of {self.args.gradient_accumulation_steps}: they are left out."
            )
            batches = []
        return batches, num_items_in_batch


def _check_all_have_batches(has_them: bool, accelerator: Accelerator) -> None:
    """Refuse to go on where data without a length does not fill a window on some processes only; a collective."""
    having = accelerator.reduce(torch.tensor(float(has_them), device=accelerator.device))
    if 0 < having < accelerator.num_processes:
        raise ValueError(
            f"The data of {accelerator.num_processes - int(having)} of {accelerator.num_processes} processes has ended "
            "before that of the others, which would wait. Let the data set give every process as many batches, or pass "
            "accelerator_config={'dispatch_batches': True}, with which the first process reads it for all."
        )
