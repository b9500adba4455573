"""Set-ups of several processes or GPUs that would wait for ever, stop without a reason or compute something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather
from transformers import TrainerCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)


class EqualBatches(TrainerCallback):
    """Refuses a training whose processes have unequal numbers of batches in an epoch, if it gets to the end of one."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if args.world_size == 1 or not has_length(train_dataloader):
            return
        batches = gather(torch.tensor([len(train_dataloader)], device=args.device)).tolist()
        is_reached = not 0 < args.max_steps <= min(batches) // args.gradient_accumulation_steps
        if min(batches) < max(batches) and is_reached:
            raise ValueError(
                f"The processes have {', '.join(map(str, batches))} batches an epoch, and a process without a batch "
                "would leave the others waiting. Leave even_batches of accelerator_config at True, which fills the "
                "last batches with rows from the start, or pass dataloader_drop_last=True."
            )


def use_one_gpu(trainer: Trainer) -> None:
    """Take `torch.nn.DataParallel` off a trainer: it splits a batch, with both passes in it, between threads."""
    args = trainer.args
    if args.n_gpu > 1:
        logger.warning(
            f"R-Drop trains on one of the {args.n_gpu} GPUs in sight, in batches of {args.per_device_train_batch_size} "
            "rows. To use all, start one process per GPU: torchrun --nproc_per_node ..., accelerate launch, or "
            "accelerate.notebook_launcher."
        )
        args._n_gpu = 1  # as `Trainer` does for a model on several devices
        trainer._train_batch_size = args.train_batch_size


def check_parallelism(cp_size: int, sp_size: int) -> None:
    """Refuse the kinds of parallelism in which R-Drop could not be exact."""
    if cp_size > 1 or sp_size > 1:
        raise ValueError(
            "R-Drop does not support context or sequence parallelism, which split rows between processes: set cp_size "
            "and sp_size of parallelism_config to 1."
        )


def explain_reentrant_checkpoints(error: BaseException, forward_mode: str) -> None:
    """Say what to do where DistributedDataParallel found a gradient that came twice: of a checkpoint in two passes."""
    if not isinstance(error, RuntimeError) or "mark a variable ready only once" not in str(error):
        return
    if forward_mode != "concat":
        raise ValueError(
            f"rdrop_forward_mode={forward_mode!r} and reentrant gradient checkpointing do not go together under "
            "DistributedDataParallel, which sees the same weights again in every pass. Pass "
            "gradient_checkpointing_kwargs={'use_reentrant': False}, or rdrop_forward_mode='concat', a single pass."
        ) from error
