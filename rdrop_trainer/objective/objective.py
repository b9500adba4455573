"""The R-Drop objective: the loss of a micro-batch, in a `Trainer` or in a training loop of one's own.

A step has four parts. `Window.count` counts the items of its micro-batches. For each of these `Plan.run` makes the
passes, `Plan.items` takes the items out of them, and `Window.terms` gives the items to `rdrop_loss`. A `TaskLoss` says
where the task loss comes from, if it is another one.

The first steps also find out what the model predicts (`head_of`, `judge`, `alignment`), whether its own loss is the
usual one (`comparisons`), whether it has noise (`noise`), and whether its forward mode fits it (`forward_modes`).
`inspect` calls these checks, and their results are kept in the `Plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ..losses import RDropLoss
from .inspect import after_passes, before_passes, check_divergence, first_plan, next_plan
from .passes import Passes, without_ddp
from .plan import Plan
from .task_loss import check_item_by_item
from .training import Training
from .window import StepSettings, Window

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective:
    """Runs a model several times over a micro-batch, and returns its share of the R-Drop loss of an optimizer step.

        objective = Objective.of(model, [batch])
        for batch in batches:
            terms, passes = objective(model, batch, objective.window([batch]), StepSettings(alpha=4.0))
            terms.loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    With gradient accumulation a window holds all micro-batches of a step, and their losses are not divided again.

    Attributes:
        plan: what is predicted, where the task loss comes from, what is fused; a new one as more is found out.
        training: the model that trains, and what decides how its loss is made.
    """

    def __init__(self, plan: Plan, training: Training):
        self.plan, self.training = plan, training

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        accelerator: Accelerator | None = None,
        **settings: Any,
    ) -> Objective:
        """The objective of a training loop.

        Args:
            model: a model of transformers, or one that returns logits; prepared by the accelerator, if there is one.
            batches: the micro-batches of the first optimizer step, with labels, as the model takes them.
            accelerator: what prepared the model; None: one process, without mixed precision.
            **settings: `problem`, `heads`, `label_smoothing`, `loss_function` and other attributes of `Training`.

        Raises:
            ValueError: a head that R-Drop does not fit, or batches without labels.
        """
        training = Training(without_ddp(model), accelerator, **settings)
        return cls(first_plan(training, batches), training)

    def window(self, batches: Sequence[Mapping[str, Any]], shared: bool = True, row_share: float = 1.0) -> Window:
        """Count the items of the micro-batches of an optimizer step, on their way to the loss.

        Args:
            batches: all micro-batches of the step on this process; at least one.
            shared: normalise over the items of all processes, whose gradients are averaged; a collective.
            row_share: of the rows of each micro-batch that go through more than the first pass, in (0, 1].

        Raises:
            ValueError: batches without labels, or some rows left out of a loss that is not made item by item.
        """
        training = self.training
        self.plan = next_plan(training, self.plan, batches)
        if row_share < 1:
            check_item_by_item(self.plan.task_loss)
        return Window.count(
            self.plan.head,
            batches,
            training.device,
            processes=training.sharing if shared else 1,
            sum_over_processes=lambda counts: training.sum_over_processes(counts) // training.replicas,
            row_share=row_share,
        )

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        window: Window,
        settings: StepSettings,
        count: Any = None,
        whole: bool = False,
    ) -> tuple[RDropLoss, Passes]:
        """The loss of one micro-batch: its share of that of the optimizer step.

        Args:
            model: the model in training mode, as the accelerator wrapped it.
            batch: the micro-batch, B rows, with labels; not changed.
            window: the micro-batches of the step, this one among them.
            settings: of the step.
            count: what a loss function of the user's gets as `num_items_in_batch`.
            whole: keep all that the model returns in the passes, not only what the loss is made of.

        Returns:
            Loss, task loss and divergence, scalars with a gradient; and the passes, whose `output(0)` is what the model
            returned in the first, of B rows.

        Raises:
            ValueError: the model has no noise, or none in evaluation mode, or returns no logits, or its loss or
                divergence does not fit; or the window does not hold the batch.
        """
        window.check(batch)
        # The checks before and after the passes look at the first steps alone, and may change the plan
        if whole:
            settings = replace(settings, fused_head="false")  # which leaves out the logits
        self.plan = before_passes(self.training, self.plan, model, batch, settings)
        lm_head = self.plan.fused(batch, settings)
        passes = self.plan.run(model, batch, settings, lm_head, whole, window.row_share)
        items, *others = self.plan.items(passes, batch)
        self.plan = after_passes(self.training, self.plan, passes, items, batch, window, settings, count)

        def items_loss(with_labels: bool, of: Window = window) -> RDropLoss:
            """The paper's loss, `rdrop_loss` over the items of all passes."""
            smoothing = self.training.smoothing(window.head)
            terms = of.terms(items, settings, with_labels, smoothing)
            for rest in others:  # the items of rows that went through the first pass alone
                once = of.terms(rest, replace(settings, num_passes=1), with_labels, smoothing)
                terms = RDropLoss(*(a + b for a, b in zip(terms, once, strict=True)))
            return terms

        # A task loss of another source, the model or its user, takes the divergence alone from the items
        terms = self.plan.task_loss.terms(items_loss, passes, batch, window, count)
        self.plan = check_divergence(self.training, self.plan, items, terms, settings)
        return terms, passes
