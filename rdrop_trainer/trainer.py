"""`RDropMixin` and `RDropTrainer`: swap `Trainer` for `RDropTrainer` and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from .checks import is_another_loss, no_noise_message, passes_are_identical
from .dropout import active_dropout
from .heads import Head, head_of, with_own_loss, with_stock_loss
from .losses import RDropLoss, rdrop_loss
from .passes import Passes, run_passes
from .training_args import RDropArguments

logger = logging.get_logger(__name__)


@dataclass
class _Window:
    """The micro-batches of one optimizer step, and the items they hold over all processes that share the count."""

    head: Head
    task_items: torch.Tensor
    divergence_items: torch.Tensor
    micro_batches: int
    processes: int
    remaining: int

    @property
    def is_one_batch(self) -> bool:
        return self.micro_batches == 1 and self.processes == 1


class RDropMixin:
    """R-Drop for any trainer derived from `transformers.Trainer`: `class MyRDropTrainer(RDropMixin, MyTrainer)`.

    On an R-Drop step every example runs through the model several times with fresh dropout, and the loss is

        task loss + alpha / 2 * divergence

    (`rdrop_loss`; Liang et al., 2021). Both terms are means over the items of the whole optimizer step, counted over
    its micro-batches and processes, so gradient accumulation and data parallelism give the gradient of one large batch.
    With alpha = 0, and on the steps between R-Drop steps, training is plain fine-tuning: `Trainer`'s own arithmetic
    where the step is one batch on one process, the same exact normalisation elsewhere. Evaluation and prediction are
    `Trainer`'s.

    The settings are those of `RDropArguments`, read from `args` at every step; arguments without them get the defaults.
    Training logs `task_loss` and `divergence` beside `loss`: averages over the R-Drop steps since the last log.

    Raises:
        ValueError: at `train()`, for `torch.nn.DataParallel`, context or sequence parallelism and unsupported heads; at
            the first R-Drop step, for a model without active dropout.
    """

    # `compute_loss` normalises over the accumulation window, so `training_step` must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A hyper-parameter search sets only attributes that are there.
        for field in fields(RDropArguments):
            if not hasattr(self.args, field.name):
                setattr(self.args, field.name, field.default)
        self._start_rdrop()

    def train(self, *args, **kwargs):
        """`Trainer.train`, refusing the set-ups in which R-Drop could not be exact."""
        RDropArguments.of(self.args)
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
        return super().train(*args, **kwargs)

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
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        settings = RDropArguments.of(self.args)
        is_rdrop_step = settings.is_rdrop_step(self.state.global_step)
        window = self._window or self._count_window([inputs])
        if window.is_one_batch and not is_rdrop_step:
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch, window)

        num_passes = settings.rdrop_num_passes if is_rdrop_step else 1
        passes = run_passes(model, self._model_inputs(inputs, window.head), num_passes, settings.rdrop_forward_mode)
        terms = self._terms_of(passes, inputs, window, settings, num_items_in_batch)
        if is_rdrop_step:
            self._record(terms, window)
        loss = self._undo_division(terms.loss, num_items_in_batch)
        self._step_window()
        return (loss, _with_loss(passes.output(0), terms.loss)) if return_outputs else loss

    def _terms_of(
        self,
        passes: Passes,
        inputs: Mapping[str, Any],
        window: _Window,
        settings: RDropArguments,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> RDropLoss:
        """Loss, task loss and divergence of a micro-batch, each its share of the optimizer step's."""
        logits, labels = window.head.items(passes["logits"], inputs, passes.num_passes)
        if passes.num_passes > 1 and not self._noise_checked:
            self._check_noise(logits, passes.num_passes, settings)
        if not self._task_loss_checked:
            self._check_task_loss(passes, logits, labels, window)

        # Gradients are averaged over processes: an item of one of P processes weighs P / (items of all).
        divergence_items = window.divergence_items / window.processes
        terms = rdrop_loss(
            logits,
            labels,
            alpha=settings.alpha_at(self.state.global_step, self.state.max_steps),
            num_passes=passes.num_passes,
            problem=window.head.problem,
            num_items=window.task_items / window.processes,
            num_divergence_items=divergence_items if settings.rdrop_reduction == "mean" else window.micro_batches,
            reduction=settings.rdrop_reduction,
            label_smoothing=self.args.label_smoothing_factor if self.label_smoother is not None else 0.0,
        )
        if not window.head.own_loss:
            return terms
        own = self._own_task_loss(passes, inputs, window, num_items_in_batch)
        return RDropLoss(terms.loss - terms.task_loss + own, own, terms.divergence)

    # ---- Plain training and losses that are not ours ----

    def _plain_loss(self, model, inputs, return_outputs, num_items_in_batch, window: _Window):
        """`Trainer`'s own loss: with one batch on one process it is normalised rightly, so every bit of it is kept."""
        self._step_window()
        result = super().compute_loss(model, dict(inputs), return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if window.head.problem == "single_label":
            # No labelled item: the mean over nothing is NaN there
            loss = torch.where(window.task_items > 0, loss, torch.zeros_like(loss))
        return (loss, result[1]) if return_outputs else loss

    def _own_task_loss(
        self,
        passes: Passes,
        inputs: Mapping[str, Any],
        window: _Window,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The loss of the user's `compute_loss_func` or of the model itself, mean over passes, scaled to the window."""
        if self.compute_loss_func is not None:
            labels = inputs["labels"]
            losses = [
                self.compute_loss_func(passes.output(k), labels, num_items_in_batch=num_items_in_batch)
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
        items = window.head.count(inputs)[0].to(loss.device)
        share = items * window.processes / window.task_items.clamp(min=1)
        return torch.where(items > 0, loss * share, torch.zeros_like(loss))

    def _model_inputs(self, inputs: Mapping[str, Any], head: Head) -> dict[str, Any]:
        """The inputs of a forward pass: without labels, unless the model's own loss is wanted."""
        needs_loss = self.compute_loss_func is None and (head.own_loss or not self._task_loss_checked)
        return {key: value for key, value in inputs.items() if key != "labels" or needs_loss}

    def _check_task_loss(self, passes: Passes, logits: torch.Tensor, labels: torch.Tensor, window: _Window) -> None:
        """Once per training: is the model's own loss the stock loss of its head? If not, it is kept as it is."""
        own = passes.loss()
        if window.head.own_loss or self.label_smoother is not None or own is None:
            self._task_loss_checked = True
            return
        half = logits.dtype in (torch.float16, torch.bfloat16) or self.accelerator.mixed_precision != "no"
        stock = rdrop_loss(
            logits.detach(), labels, alpha=0, num_passes=passes.num_passes, problem=window.head.problem
        ).task_loss
        # All processes must come to one verdict
        verdict = self.accelerator.reduce(is_another_loss(own, stock, half).float(), "sum")
        self._task_loss_checked, self._own_loss = verdict.bool().tolist()
        if self._own_loss:
            logger.warning(
                f"{type(self.model).__name__} returns a loss of {own.item():.6g} where the stock loss of "
                f"{window.head.name} would be {stock.item():.6g}; its own loss is kept for the task part, and R-Drop "
                "adds the divergence of the logits to it."
            )
            window.head = with_own_loss(window.head)

    def _check_noise(self, logits: torch.Tensor, num_passes: int, settings: RDropArguments) -> None:
        """Once per training: do the passes differ at all?"""
        active = active_dropout(self.model)
        identical = passes_are_identical(logits, num_passes, has_dropout=bool(active))
        if identical is None:  # a batch without items decides nothing
            return
        # Dropout in front of a matrix of zeros (LoRA at its start) shows an effect from the second step on
        if identical and active and not self._identical_before:
            self._identical_before = True
            return
        self._noise_checked = True
        if identical:
            message = no_noise_message(self.model, num_passes, active)
            if not settings.rdrop_allow_deterministic:
                raise ValueError(message)
            logger.warning(message)

    # ---- Counting and logging ----

    def get_batch_samples(self, *args, **kwargs):
        """`Trainer.get_batch_samples`, counting the items of the accumulation window it returns."""
        batch_samples, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        self._window = self._count_window(batch_samples, in_loop=True) if batch_samples else None
        return batch_samples, num_items_in_batch

    def _count_window(self, batches: list[Mapping[str, Any]], in_loop: bool = False) -> _Window:
        for batch in batches:
            if batch.get("labels") is None:
                raise ValueError(
                    f"R-Drop needs `labels` in every training batch, got only: {', '.join(batch)}. Rows without a "
                    "label carry -100."
                )
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = head_of(model, batches[0]["labels"])
        if self.compute_loss_func is not None or self._own_loss:
            head = with_own_loss(head)
        elif self.label_smoother is not None:
            head = with_stock_loss(head)
        counts = sum(head.count(batch) for batch in batches).to(self.args.device)
        processes = 1
        if in_loop and self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            # Processes of one tensor-parallel group see the same rows
            replicas = self.get_tp_size()
            counts = self.accelerator.reduce(counts, "sum") // replicas
            processes = self.accelerator.num_processes // replicas
        return _Window(head, counts[0], counts[1], len(batches), processes, remaining=len(batches))

    def _start_rdrop(self) -> None:
        self._window: _Window | None = None
        self._own_loss = False
        self._task_loss_checked = False
        self._noise_checked = False
        self._identical_before = False
        self._terms = torch.zeros(2, device=self.args.device)
        self._terms_steps = 0

    def _step_window(self) -> None:
        if self._window is not None:
            self._window.remaining -= 1
            if self._window.remaining == 0:
                self._window = None

    def _undo_division(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
        """Older transformers do not ask `loss_is_scaled_for_ga`: undo the division they are about to make."""
        if hasattr(Trainer, "loss_is_scaled_for_ga") or self._window is None:
            return loss
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        divides = not counted and self.compute_loss_func is None
        return loss * self._window.micro_batches if divides else loss

    def _record(self, terms: RDropLoss, window: _Window) -> None:
        """Add a micro-batch's terms to the logged sums, on the device: reading them would stall it at every step."""
        if self._window is not None:
            self._terms += torch.stack([terms.task_loss, terms.divergence]).detach()
            self._terms_steps += window.remaining == window.micro_batches

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """`Trainer.log`; a training log also gets `task_loss` and `divergence`, averaged over R-Drop steps."""
        if "loss" in logs and self._terms_steps:
            terms = self.accelerator.reduce(self._terms, "mean") / self._terms_steps
            logs["task_loss"], logs["divergence"] = terms.tolist()
            self._terms = torch.zeros_like(self._terms)
            self._terms_steps = 0
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """`Trainer.floating_point_ops` times the number of passes of this step."""
        settings = RDropArguments.of(self.args)
        is_rdrop_step = settings.is_rdrop_step(self.state.global_step)
        return super().floating_point_ops(inputs) * (settings.rdrop_num_passes if is_rdrop_step else 1)


class RDropTrainer(RDropMixin, Trainer):
    """`transformers.Trainer` with R-Drop; the same arguments, methods and checkpoints."""


def _with_loss(output: Any, loss: torch.Tensor) -> Any:
    """A model output carrying `loss` where `Trainer` expects it: as the first entry."""
    if isinstance(output, Mapping):
        return type(output)(**{"loss": loss, **{k: v for k, v in output.items() if k != "loss"}})
    return (loss, *output) if isinstance(output, tuple) else (loss, output)
