"""`RDropMixin` and `RDropTrainer`: swap `Trainer` for `RDropTrainer` and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .dropout import set_dropout
from .hub.publishing import PublishingMixin
from .losses import RDropLoss, rdrop_loss
from .objective.heads import Items
from .objective.lm_head import LMHead
from .objective.loss_checks import mean_of_parts, same_noise
from .objective.noise import NoiseCheck
from .objective.passes import Passes
from .objective.task_loss import TaskLossMixin
from .objective.window import LoggedTerms, Window
from .reliability.checkpoints import RenamedWeightsMixin
from .reliability.finite import FiniteLossGuard
from .reliability.resuming import ResumingMixin
from .search import SearchMixin
from .semi_supervised import UnlabeledRowsMixin
from .training_args import RDropArguments

logger = logging.get_logger(__name__)


class RDropMixin(
    TaskLossMixin,
    UnlabeledRowsMixin,
    ResumingMixin,
    RenamedWeightsMixin,
    SearchMixin,
    PublishingMixin,
):
    """R-Drop for any trainer derived from `transformers.Trainer`: `class MyRDropTrainer(RDropMixin, MyTrainer)`.

    On an R-Drop step every example runs through the model several times with fresh dropout, and the loss is

        task loss + alpha / 2 * divergence

    (`rdrop_loss`; Liang et al., 2021). Both terms are means over the items of the whole optimizer step, counted over
    its micro-batches and processes, so gradient accumulation and data parallelism give the gradient of one large batch.
    With alpha = 0, and on the steps between R-Drop steps, training is plain fine-tuning: `Trainer`'s own arithmetic
    where the step is one batch on one process, the same exact normalisation elsewhere. Evaluation and prediction are
    `Trainer`'s. With `average_tokens_across_devices=False` every process counts for itself, as the name says.

    The settings are those of `RDropArguments`, read from `args` at every step; arguments without them get the defaults.
    Training logs `task_loss` and `divergence` beside `loss`: averages over the R-Drop steps since the last log.

    Args:
        unlabeled_dataset: rows without labels (any they have are not read), of which `rdrop_unlabeled_ratio` go
            along with each labeled row in every training batch: they have no task loss, but their divergence counts.
            Steps, epochs and `num_examples` go on counting labeled rows, in the order of the run without unlabeled
            ones; the forward passes grow by the ratio, also on steps that are no R-Drop steps, where unlabeled rows
            have no effect. With alpha = 0 they are left out.
        *args: those of the trainer.
        **kwargs: those of the trainer.

    Raises:
        ValueError: at `train()`, for `torch.nn.DataParallel`, context or sequence parallelism, unsupported heads and a
            checkpoint that is not whole; at the first R-Drop step, for a model without active dropout; for an
            `unlabeled_dataset` that is empty, has no length, or goes along with labels that have no mark for an
            unlabeled row.
        FloatingPointError: a loss that is NaN or infinite, or such weights before a checkpoint; with alpha = 0 too.
    """

    # `compute_loss` normalises over the accumulation window, so `training_step` must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, unlabeled_dataset: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._set_unlabeled_dataset(unlabeled_dataset)
        # A hyper-parameter search sets only attributes that are there.
        for field in fields(RDropArguments):
            if not hasattr(self.args, field.name):
                setattr(self.args, field.name, field.default)
        self._finite_loss_guard = FiniteLossGuard()
        self.add_callback(self._finite_loss_guard)
        self._set_dropout()
        self._start_rdrop()

    def train(self, *args, **kwargs):
        """`Trainer.train`, refusing the set-ups in which R-Drop could not be exact."""
        # Checked, and of their types: a hyper-parameter search would cast alphas to the int that somebody assigned
        vars(self.args).update(vars(RDropArguments.of(self.args)))
        if self.args.n_gpu > 1:
            raise ValueError(
                f"R-Drop does not run under torch.nn.DataParallel, which {self.args.n_gpu} visible GPUs in one process "
                "would start. Launch one process per GPU (torchrun --nproc_per_node ... or accelerate launch), or "
                "choose one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            raise ValueError(
                "R-Drop does not support context or sequence parallelism, which split rows between processes: set "
                "cp_size and sp_size of parallelism_config to 1."
            )
        self._start_rdrop()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._window = None

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """`Trainer.training_step`; a loss that is NaN or infinite stops the training."""
        loss = super().training_step(*args, **kwargs)
        self._finite_loss_guard.watch(loss)
        return loss

    def _save_checkpoint(self, *args, **kwargs) -> None:
        self._finite_loss_guard.check()
        super()._save_checkpoint(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The R-Drop loss of one micro-batch while the model trains; `Trainer`'s loss otherwise.

        Args:
            model: the model as `Trainer` wrapped it.
            inputs: one micro-batch of B rows, with labels; not changed.
            return_outputs: also return the outputs of the first pass, of B rows.
            num_items_in_batch: `Trainer`'s count; only handed on to it or to a user's `compute_loss_func`.

        Returns:
            This micro-batch's share of the loss of the optimizer step; outside `train()`, the loss of this batch.
        """
        if not model.training:
            inputs = self._decodable(inputs)
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        settings = RDropArguments.of(self.args)
        is_rdrop_step = settings.is_rdrop_step(self.state.global_step)
        window = self._window or self._count_window([inputs])
        if window.is_one_batch and not is_rdrop_step and self._trainer_counts_right(window):
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch, window)

        num_passes = settings.rdrop_num_passes if is_rdrop_step else 1
        self._check_own_loss(model, inputs, window)
        output_head = None
        if not return_outputs:
            output_head = self._head_to_fuse(inputs, window, num_passes, settings.rdrop_fused_head)
        passes = self._run(
            model, inputs, window, num_passes, settings.rdrop_forward_mode, output_head, whole=return_outputs
        )
        terms = self._rdrop_terms(passes, inputs, window, settings, num_items_in_batch, output_head)
        if is_rdrop_step and self._window is not None:
            self._logged_terms.add(terms, self.state.global_step)
        loss = self._undo_division(terms.loss, num_items_in_batch)
        return (loss, passes.first_output(terms.loss)) if return_outputs else loss

    def _rdrop_terms(
        self,
        passes: Passes,
        inputs: Mapping[str, Any],
        window: Window,
        settings: RDropArguments,
        num_items_in_batch: torch.Tensor | int | None,
        output_head: LMHead | None,
    ) -> RDropLoss:
        """Loss, task loss and divergence of a micro-batch, each its share of the optimizer step's."""
        alpha = settings.alpha_at(self.state.global_step, self.state.max_steps)
        items = _items(passes, inputs, window, output_head)
        if passes.num_passes > 1 and not self._noise_check.done:
            self._check_noise(passes, items[0], inputs, window, settings, output_head)
        # Where there is a head to fuse, a row was compared: one process may fuse this micro-batch and another may not
        if not self._loss_check.done and self._output_head is None:
            self._check_model_loss(passes, items, window)

        means = settings.rdrop_reduction == "mean"
        loss: Any = partial(rdrop_loss, problem=window.head.problem) if output_head is None else output_head.loss
        terms = mean_of_parts(
            loss(
                part.outputs,
                part.labels if window.head.task_loss == "stock" else None,
                alpha=alpha,
                num_passes=passes.num_passes,
                mask=part.mask,
                num_items=task_items / window.processes,
                num_divergence_items=divergence_items / window.processes if means else window.micro_batches,
                reduction=settings.rdrop_reduction,
                label_smoothing=self._label_smoothing(window.head),
            )
            for part, task_items, divergence_items in zip(
                items, window.task_items, window.divergence_items, strict=True
            )
        )
        if window.head.task_loss == "stock":
            return terms
        task_loss = self._own_task_loss(passes, inputs, window, num_items_in_batch)
        return RDropLoss(task_loss + terms.loss, task_loss, terms.divergence)

    def _check_noise(
        self,
        passes: Passes,
        items: Items,
        inputs: Mapping[str, Any],
        window: Window,
        settings: RDropArguments,
        output_head: LMHead | None,
    ) -> None:
        def some(items: Items) -> torch.Tensor:
            return items.counted(passes.num_passes, NoiseCheck.ITEMS)[0].detach()

        def again() -> torch.Tensor:
            with torch.no_grad(), same_noise(self.args.device):
                repeated = self._run(self.model, inputs, window, passes.num_passes, "concat", output_head)
            return some(_items(repeated, inputs, window, output_head)[0])

        self._noise_check.look(
            self.model,
            some(items),
            self.state.global_step,
            settings.rdrop_allow_deterministic,
            self.accelerator.reduce,
            again if settings.rdrop_forward_mode == "concat" else None,
        )

    # ---- Counting and logging ----

    def get_batch_samples(self, *args, **kwargs):
        """`Trainer.get_batch_samples`, counting the items of the accumulation window it returns."""
        batch_samples, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        loader = self.callback_handler.train_dataloader
        has_no_end = loader is not None and not has_length(loader)
        if has_no_end and 0 < len(batch_samples) < self.args.gradient_accumulation_steps:
            # `Trainer` takes no optimizer step behind them: their gradient would be added to the next step's
            logger.warning_once(
                f"The data set has no length, and its last {len(batch_samples)} batches do not fill an accumulation "
                f"window of {self.args.gradient_accumulation_steps}: they are left out."
            )
            batch_samples = []
        self._logged_terms.start_window(self.state.global_step)
        shared = self.args.average_tokens_across_devices
        self._window = self._count_window(batch_samples, shared) if batch_samples else None
        return batch_samples, num_items_in_batch

    def _count_window(self, batches: list[Mapping[str, Any]], over_processes: bool = False) -> Window:
        head = self._choose_head(batches)
        # Processes of one tensor-parallel group see the same rows
        replicas = self.get_tp_size()
        processes = self.accelerator.num_processes // replicas if over_processes else 1
        return Window.count(
            head, batches, self.args.device, processes, lambda counts: self.accelerator.reduce(counts) // replicas
        )

    def _hp_search_setup(self, *args, **kwargs) -> None:
        """`Trainer._hp_search_setup`, which `train` calls in any case, and only after making a trial's model."""
        super()._hp_search_setup(*args, **kwargs)
        self._set_dropout()

    def _set_dropout(self) -> None:
        if self.args.dropout is not None:
            set_dropout(self.model, self.args.dropout)

    def _start_rdrop(self) -> None:
        self._window = None
        self._noise_check = NoiseCheck()
        self._start_task_loss()
        self._logged_terms = LoggedTerms(self.args.device)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """`Trainer.log`; a training log also gets `task_loss` and `divergence`, averaged over R-Drop steps."""
        if "loss" in logs:
            logs = {**logs, **self._logged_terms.take(lambda sums: self.accelerator.reduce(sums, "mean"))}
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """`Trainer.floating_point_ops` times the number of passes of this step."""
        settings = RDropArguments.of(self.args)
        is_rdrop_step = settings.is_rdrop_step(self.state.global_step)
        return super().floating_point_ops(inputs) * (settings.rdrop_num_passes if is_rdrop_step else 1)


def _items(passes: Passes, inputs: Mapping[str, Any], window: Window, output_head: LMHead | None) -> list[Items]:
    """The items of a micro-batch, by their logits, or by their hidden states in front of a fused output head."""
    head = window.head if output_head is None else replace(window.head, outputs=("hidden_states",))
    return head.items(passes, inputs, passes.num_passes)


class RDropTrainer(RDropMixin, Trainer):
    """`transformers.Trainer` with R-Drop; the same arguments, methods and checkpoints."""


class RDropSeq2SeqTrainer(RDropMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with R-Drop; it generates during evaluation (`predict_with_generate`) as before."""
