"""How a training gets its loss: what the model predicts, where the task loss comes from, what is fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import nn
from transformers.utils import logging

from .heads import PredictionHead
from .items import Items
from .lm_head import LMHead, auto_from, vocabulary_size
from .loss_comparison import LossComparison
from .noise import NoiseWatch
from .passes import Passes, run_passes
from .rows import pick_rows
from .task_loss import TaskLoss, without_labels
from .view import later_batches
from .window import StepSettings

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a training gets its loss, as far as is known. What is found out later makes a new plan.

    Attributes:
        kind: what the model predicts by classes, settings and the type of the labels, which every window shows.
        heads: what it predicts for each kind that was seen, as far as its labels and a pass over them told.
        task_loss: where the task loss comes from.
        lm_head: the output head of a language model that can be fused into the loss; None: none, or none found yet.
        not_fused: why there is none.
        noise: watches whether the passes differ; None: they were seen to.
        trainer_comparison: compares the loss of a base trainer with what is taken for it; None: decided.
        one_row: the model `takes_one_row`; None: not known yet.
        rows_checked: the task loss was seen not to depend on the number of rows.
        follows: whether entries of the batches have a value for each row, where it was in doubt.
        repeats: a pass was seen to be the same when it runs again.
        divergence_checked: the divergence was seen not to be 0 on passes that differ.
        mixture: what is wrong with the labels of this step, which several passes cannot take; None: nothing.
    """

    kind: PredictionHead
    heads: Mapping[PredictionHead, PredictionHead]
    task_loss: TaskLoss
    lm_head: LMHead | None = None
    not_fused: str | None = None
    noise: NoiseWatch | None = NoiseWatch()
    trainer_comparison: LossComparison | None = None
    one_row: bool | None = None
    rows_checked: bool = False
    follows: Mapping[str, bool] = field(default_factory=dict)
    repeats: bool = False
    divergence_checked: bool = False
    mixture: str | None = None

    @cached_property
    def head(self) -> PredictionHead:
        """What the model predicts in this window."""
        return self.heads[self.kind]

    def may_fuse(self, settings: StepSettings) -> bool:
        """Whether the head is one that may be fused, and its user lets it."""
        return self.head.language_model and settings.fused_head != "false"

    def fused(self, batch: Mapping[str, Any], settings: StepSettings) -> LMHead | None:
        """The output head that is fused into the loss of a micro-batch; None: its logits are made."""
        if not self.may_fuse(settings):
            return None
        base = self.task_loss.base
        classes = vocabulary_size(base) if self.lm_head is None else self.lm_head.classes
        labels = batch[self.head.labels[0]]
        logits = settings.num_passes * labels.numel() * classes
        if settings.fused_head == "auto" and logits < auto_from(labels.device):
            return None
        if self.lm_head is None:
            logger.warning_once(
                f"The output head of {type(base).__name__} is not fused into the R-Drop loss: {self.not_fused}. Its "
                "logits are made as a whole."
            )
        return self.lm_head

    def run(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        settings: StepSettings,
        lm_head: LMHead | None = None,
        whole: bool = False,
        row_share: float = 1.0,
    ) -> Passes:
        """The passes over a micro-batch.

        Args:
            lm_head: stop in front of it.
            whole: keep all that the model returns, not only what the loss is made of.
        """
        head, m = self.head, settings.num_passes
        batches = [batch, *later_batches(settings.second_view, batch, m, head)]
        if lm_head is None:
            call: Any = partial(self.task_loss.call, keep=None if whole else head.outputs)
            inputs, *later = [self.task_loss.inputs(rows, head) for rows in batches]
        else:
            call = lm_head.call
            inputs, *later = [without_labels(self.task_loss.base, rows, head.labels) for rows in batches]
        mode, names = settings.forward_mode, head.outputs
        passes = run_passes(model, inputs, m, mode, call, names, self.follows, later, row_share, self.one_row)
        return replace(passes, lm_head=lm_head)

    def items(self, passes: Passes, batch: Mapping[str, Any]) -> list[list[Items]]:
        """The items of a micro-batch, by their logits, or by the hidden states in front of an output head.

        First those of the rows that went through all passes, then, if there are any, those of the rows that went
        through the first alone.
        """
        lm_head = passes.lm_head
        head = self.head if lm_head is None else replace(self.head, outputs=("hidden_states",))
        found = [
            head.items(part, batch if rows is None else pick_rows(batch, rows, passes.batch_size), part.num_passes)
            for part, rows in passes.parts(head.outputs)
        ]
        if lm_head is None:
            return found
        return [[part._replace(loss=lm_head.loss) for part in items] for items in found]
