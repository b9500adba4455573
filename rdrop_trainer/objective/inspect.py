"""One look at the first window of a training makes its plan; further looks, at later batches, make a better one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .comparisons import check_rows, compare_function, compare_model_loss, compare_trainer_loss, shows_logits
from .heads import Items, PredictionHead, head_of
from .lm_head import CannotFuse, LMHead, is_compiled
from .noise import ITEMS, NoiseWatch
from .passes import Passes, find_batch_size, take_rows, without_ddp
from .plan import Plan
from .probe import Probe
from .task_loss import (
    FunctionLoss,
    LossComparison,
    ModelLoss,
    StockLoss,
    TaskLoss,
    TrainerLoss,
    decoder_inputs,
    promises_stock_loss,
)
from .window import StepSettings, Window


@dataclass(frozen=True)
class Inspector:
    """Makes plans for a training.

    Attributes:
        probe: runs its model.
        label_smoothing: of the stock loss, in [0, 1).
        loss_function: a task loss of the user's, `function(outputs, labels, num_items_in_batch=count)`.
        trainer_loss: that of a base trainer that has its own.
        hidden_by: the setting for which the model returns no (or not all) logits once it is given labels.
        unfusable: why this training cannot fuse an output head.
        replicas: processes that see the same rows, as those of one tensor-parallel group do.
        shares_counts: the processes normalise over their items together.
    """

    probe: Probe
    label_smoothing: float = 0.0
    loss_function: Callable[..., torch.Tensor] | None = None
    trainer_loss: TrainerLoss | None = None
    hidden_by: str | None = None
    unfusable: CannotFuse | None = None
    replicas: int = 1
    shares_counts: bool = True

    # ---- The first look ----

    def plan(self, batches: Sequence[Mapping[str, Any]]) -> Plan:
        """The plan by classes, settings and the labels of a window, before any forward pass.

        Raises:
            ValueError: a head that R-Drop does not fit, or batches without labels.
        """
        head = self._head(batches)
        task_loss: TaskLoss
        if self.loss_function is not None:
            task_loss = FunctionLoss(self.loss_function, self.probe.base)
        else:
            task_loss = self.trainer_loss or self._task_loss(head)
        return Plan(head, task_loss, trainer=None if self.trainer_loss is None else LossComparison())

    def next_window(self, plan: Plan, batches: Sequence[Mapping[str, Any]]) -> Plan:
        """The plan for a later window: the same, unless its labels are of another kind."""
        return plan if self._head(batches) == plan.head else replace(self.plan(batches), noise=plan.noise)

    def window(self, plan: Plan, batches: Sequence[Mapping[str, Any]], shared: bool) -> Window:
        """Count the items of a window; `shared`: over the processes that share the normalisation."""
        return Window.count(
            plan.head,
            batches,
            self.probe.device,
            self._sharing if shared else 1,
            lambda counts: self.probe.sum_over_processes(counts) // self.replicas,
        )

    @property
    def _sharing(self) -> int:
        return self.probe.processes // self.replicas if self.shares_counts else 1

    def _head(self, batches: Sequence[Mapping[str, Any]]) -> PredictionHead:
        first = batches[0]
        labeled = isinstance(first, Mapping) and any(key in first for key in ("labels", "start_positions"))
        if self.trainer_loss is not None and self.loss_function is None and not labeled:
            raise ValueError(
                f"R-Drop does not fit {self.trainer_loss.defined_in}: its batches hold no `labels`, which tell the "
                "items (rows, tokens) whose predictions two passes share"
                + (f"; got only: {', '.join(first)}." if isinstance(first, Mapping) else ".")
            )
        head = head_of(self.probe.base, first)
        for batch in batches:
            if any(batch.get(key) is None for key in head.labels):
                raise ValueError(
                    f"R-Drop needs `{'` and `'.join(head.labels)}` in every training batch, got only: "
                    f"{', '.join(batch)}." + (" Rows without a label carry -100." if "labels" in head.labels else "")
                )
        peft = getattr(self.probe.unwrapped, "active_peft_config", None)
        if peft is not None and peft.is_prompt_learning and peft.peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
            head = replace(head, soft_prompt=True)
        return head

    def _task_loss(self, head: PredictionHead) -> StockLoss | ModelLoss:
        base = self.probe.base
        if self.smoothing(head):
            return StockLoss(head, base)
        if promises_stock_loss(base):
            return StockLoss(head, base, None if self.hidden_by else LossComparison())
        if self.hidden_by:
            raise ValueError(
                f"R-Drop keeps the own loss of {type(base).__name__}, and needs its logits too, which it leaves out "
                f"with {self.hidden_by}."
            )
        return ModelLoss(head, base)

    def smoothing(self, head: PredictionHead) -> float:
        """`Trainer` smooths `labels` alone, so answers to questions are not."""
        return self.label_smoothing if head.labels == ("labels",) else 0.0

    # ---- Before the passes over a micro-batch ----

    def before(
        self, plan: Plan, model: nn.Module, batch: Mapping[str, Any], settings: StepSettings, whole: bool
    ) -> Plan:
        """What must be known before the passes; all processes find it out in the same micro-batches.

        Raises:
            ValueError: a task loss that can neither be kept nor replaced, or that does not stand repeated rows; an
                output head that is to be fused, and sharded.
        """
        model = without_ddp(model)
        if plan.trainer is not None:
            plan = self._check_trainer(plan, model, batch)
        if plan.head.language_model and settings.fused_head != "false" and plan.not_fused is None and not whole:
            plan = self._find_lm_head(plan, batch, settings)
        repeats = settings.num_passes > 1 and settings.forward_mode == "concat"
        if repeats and plan.task_loss.computed_by is not None and not plan.rows_checked:
            check_rows(self.probe, plan.task_loss, model, batch, settings.num_passes)
            plan = replace(plan, rows_checked=True)
        return plan

    def _check_trainer(self, plan: Plan, model: nn.Module, batch: Mapping[str, Any]) -> Plan:
        """What a base trainer's own `compute_loss` returns, over the first micro-batches."""
        probe, head, task_loss = self.probe, plan.head, plan.task_loss
        if isinstance(task_loss, FunctionLoss):
            count = head.count(batch)[:, 0].sum()
            comparison = compare_function(
                probe, plan.trainer, self.trainer_loss, task_loss, model, batch, count, self._sharing
            )
        else:
            loss = shows_logits(probe, self.trainer_loss, model, batch, head.outputs)
            if loss is None:
                return replace(plan, trainer=None)
            if task_loss is self.trainer_loss:  # it cannot be kept: something else takes its place
                task_loss = self._task_loss(head)
            comparison = compare_trainer_loss(
                probe, plan.trainer, self.trainer_loss, loss, task_loss, head, model, batch, self.smoothing(head)
            )
        return replace(plan, task_loss=task_loss, trainer=None if comparison.done else comparison)

    def _find_lm_head(self, plan: Plan, batch: Mapping[str, Any], settings: StepSettings) -> Plan:
        """The output head that can be fused, compared with the model's logits where the class is not known."""
        try:
            if plan.lm_head is None:
                plan = self._with_lm_head(plan, batch)
            if not plan.lm_head.verified or plan.task_loss.comparison is not None:
                plan = self._compare_row(plan, batch)
            if plan.task_loss.needs_logits:
                raise CannotFuse(plan.task_loss.needs_logits)
        except CannotFuse as error:
            if error.sharded and settings.fused_head == "true":
                raise ValueError(
                    f"rdrop_fused_head=True does not fit this training: {error}. Leave the output head out of the "
                    'sharding, or set rdrop_fused_head to "auto" or False.'
                ) from None
            return replace(plan, lm_head=None, not_fused=str(error))
        return plan

    def _with_lm_head(self, plan: Plan, batch: Mapping[str, Any]) -> Plan:
        base = self.probe.base
        if plan.task_loss.needs_logits:
            raise CannotFuse(plan.task_loss.needs_logits)
        if self.unfusable is not None:
            raise self.unfusable
        if any(map(is_compiled, (self.probe.model, base))):
            raise CannotFuse("the model is compiled as a whole")
        if self.hidden_by:
            raise CannotFuse(self.hidden_by)
        if decoder_inputs(base, batch) is None:
            raise CannotFuse(f"{type(base).__name__} makes the inputs of its decoder from labels by itself")
        lm_head = LMHead.of(base)
        # A class that is known has the stock loss
        task_loss = StockLoss(plan.head, base) if lm_head.verified else plan.task_loss
        return replace(plan, lm_head=lm_head, task_loss=task_loss)

    def _compare_row(self, plan: Plan, batch: Mapping[str, Any]) -> Plan:
        """Compare the head with the logits that the model returns for one row, and its loss with the stock loss.

        The loss too: of several processes one may fuse a micro-batch and another not, so their passes cannot tell.
        """
        probe = self.probe
        size = find_batch_size(probe.unwrapped, batch)
        row = {key: take_rows(value, slice(1), size) for key, value in batch.items()}
        same, outputs, reason = False, None, "its logits are not those of the output head alone"
        try:
            with probe.aside():
                same, outputs = plan.lm_head.matches_logits(probe.unwrapped, plan.task_loss.inputs(row))
        except CannotFuse as error:
            reason = str(error)
        except Exception as error:  # whatever goes wrong with a row by itself, the training can do without
            reason = f"{type(error).__name__}: {error}"
        verdict = torch.tensor([float(same)], device=probe.device)
        if probe.sum_over_processes(verdict) < probe.processes:
            raise CannotFuse(reason)
        plan = replace(plan, lm_head=replace(plan.lm_head, verified=True))
        passes = Passes([dict(outputs)], [outputs], 1, 1)
        return self._compare_model(plan, passes, plan.head.items(passes, row, 1), row)

    # ---- After the passes ----

    def after(
        self,
        plan: Plan,
        passes: Passes,
        items: list[Items],
        batch: Mapping[str, Any],
        window: Window,
        settings: StepSettings,
        lm_head: LMHead | None,
    ) -> Plan:
        """What the passes over a micro-batch tell.

        Raises:
            ValueError: the model has no noise.
        """
        if passes.num_passes > 1 and plan.noise is not None:
            plan = replace(plan, noise=self._watch_noise(plan, items, batch, window, settings, lm_head))
        return plan if plan.lm_head is not None else self._compare_model(plan, passes, items, batch)

    def _watch_noise(self, plan, items, batch, window, settings, lm_head) -> NoiseWatch | None:
        def some(items: list[Items]) -> torch.Tensor:
            return items[0].counted(settings.num_passes, ITEMS)[0].detach()

        def again() -> torch.Tensor:
            with self.probe.aside():
                passes = plan.run(self.probe.model, batch, settings, lm_head)
            return some(plan.items(passes, batch, lm_head))

        return plan.noise.compare(
            self.probe.model,
            some(items),
            window,
            settings.allow_deterministic,
            self.probe.sum_over_processes,
            again if settings.forward_mode == "concat" else None,
        )

    def _compare_model(self, plan: Plan, passes: Passes, items: list[Items], batch: Mapping[str, Any]) -> Plan:
        stock, smoothing = plan.task_loss, self.smoothing(plan.head)
        if not isinstance(stock, StockLoss) or stock.comparison is None:
            return plan
        return replace(plan, task_loss=compare_model_loss(self.probe, stock, passes, items, batch, smoothing))
