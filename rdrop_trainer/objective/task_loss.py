"""Where the task loss comes from: the stock loss of the head, the model, a function of the user's, or a base trainer.

Each source says what the model is fed, how it is called, and what the loss of a micro-batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..losses import RDropLoss
from .head_of import config_value, runs_own_code
from .heads import PredictionHead
from .loss_comparison import LossComparison
from .outputs import begins_with_loss, kept, with_loss
from .passes import Passes
from .rows import copied, refusing_writes
from .window import Window

# items_loss(with_labels, of) returns the share of a micro-batch in the task loss and divergence of the window `of` (by
# default that of the step); without labels, in the divergence alone
ItemsLoss = Callable[..., RDropLoss]


@dataclass(frozen=True)
class TaskLoss:
    """A source of the task loss, which keeps what it returns as it is; `StockLoss` computes it.

    Attributes:
        base: the model without wrappers.
        comparison: with the loss that the model returns, while it is not decided whether the two are the same.
        of_heads: it is known to hold the usual losses of several heads, each by its weight.
        needs_logits: why the model has to make its logits; None where the loss can do without them.
        takes_gradients: its code may do so by itself, as that of virtual adversarial training does.
    """

    base: nn.Module
    comparison: LossComparison | None = field(default=None, kw_only=True)
    of_heads: bool = field(default=False, kw_only=True)
    needs_logits: ClassVar[str | None] = None
    takes_gradients: ClassVar[bool] = False

    @property
    def computed_by(self) -> str | None:
        """The code that makes one loss of all rows of a forward pass, so of several passes in one forward, by name.

        None: the loss is R-Drop's own, or made of each pass by itself.
        """
        return None

    def inputs(self, batch: Mapping[str, Any], head: PredictionHead) -> dict[str, Any]:
        """What the model is fed of a micro-batch, which is not changed."""
        return dict(batch)

    def call(self, model: nn.Module, inputs: dict[str, Any], keep: tuple[str, ...] | None = None) -> Any:
        """Run the model once. The outputs to `keep` are enough for the divergence; others may be let go at once."""
        return kept(model(**inputs), keep)

    def terms(
        self, items_loss: ItemsLoss, passes: Passes, batch: Mapping[str, Any], window: Window, count: Any
    ) -> RDropLoss:
        """The micro-batch's share of the loss of the optimizer step.

        Raises:
            ValueError: a model that should have a loss returned none.
        """
        returned = self.returned(passes, batch, count)
        if self.of_heads:
            return self._terms_of_heads(returned, items_loss, batch, window)
        task_loss, terms = self.share(returned, batch, window, count), items_loss(False)
        return RDropLoss(task_loss + terms.loss, task_loss, terms.divergence)

    def _terms_of_heads(
        self, own: torch.Tensor, items_loss: ItemsLoss, batch: Mapping[str, Any], window: Window
    ) -> RDropLoss:
        """The same where each head is a mean over items of its own, of which a micro-batch has other shares.

        The usual losses are counted exactly. What the loss holds besides them counts as a mean over the micro-batch.
        """
        terms, alone = items_loss(True), Window.count(window.head, [batch])
        besides = own - items_loss(True, alone).task_loss
        # A head without a label in this micro-batch makes the loss NaN
        is_lacking = (alone.task_items == 0).any().to(own.device) & ~own.isfinite()
        besides = torch.where(is_lacking, torch.zeros_like(besides), besides)
        besides = window.weighted(besides, batch)
        return RDropLoss(terms.loss + besides, terms.task_loss + besides, terms.divergence)

    def returned(self, passes: Passes, batch: Mapping[str, Any], count: Any) -> torch.Tensor:
        """The loss of the micro-batch as the source has it, mean over passes."""
        loss = passes.loss()
        if loss is None:
            raise ValueError(
                f"{type(self.base).__name__} returns no loss although labels were given; R-Drop keeps the model's own "
                "loss for models defined outside transformers. Return a `loss`, or pass compute_loss_func."
            )
        return loss

    def share(self, returned: torch.Tensor, batch: Mapping[str, Any], window: Window, count: Any) -> torch.Tensor:
        """The share of that in the loss of the optimizer step: of a source that is not told the count, a mean's."""
        return window.weighted(returned, batch)


@dataclass(frozen=True)
class StockLoss(TaskLoss):
    """The usual loss of the head, which is computed together with the divergence.

    While the comparison with the model's own loss is not decided, the model is fed labels for it.
    """

    def inputs(self, batch: Mapping[str, Any], head: PredictionHead) -> dict[str, Any]:
        return dict(batch) if self.comparison else without_labels(self.base, batch, head.labels)

    def terms(self, items_loss, passes, batch, window, count) -> RDropLoss:
        return items_loss(True)


@dataclass(frozen=True)
class ModelLoss(TaskLoss):
    """The loss that the model returns."""

    needs_logits = "the model's own loss is kept, which it makes of its logits"

    @property
    def computed_by(self) -> str:
        return type(self.base).__name__


@dataclass(frozen=True)
class FunctionLoss(TaskLoss):
    """What a function of the user's makes of the outputs of each pass: `Trainer`'s `compute_loss_func`.

    Attributes:
        function: `function(outputs, labels, num_items_in_batch=count)`.
        uses_count: it divides by the count of the window; else it returns a mean over the batch. None: not known yet.
    """

    function: Callable[..., torch.Tensor]
    uses_count: bool | None = None
    needs_logits = "compute_loss_func gets the model's outputs, logits included"

    def inputs(self, batch: Mapping[str, Any], head: PredictionHead) -> dict[str, Any]:
        return without_labels(self.base, batch, ("labels",))

    def call(self, model: nn.Module, inputs: dict[str, Any], keep: tuple[str, ...] | None = None) -> Any:
        return model(**inputs)  # the function may read any output

    def of(self, outputs: Any, batch: Mapping[str, Any], count: Any) -> torch.Tensor:
        """What the function makes of the outputs of one pass over a batch.

        Raises:
            ValueError: it wrote to the outputs, of which the divergence is made.
        """
        message = (
            "compute_loss_func wrote to {} of the outputs, of which the divergence is made too: let it change a copy, "
            "as in logits = logits + bias."
        )
        labels = copied({"labels": batch.get("labels")})["labels"]
        with refusing_writes(Passes.of(outputs).tensors(), message):
            return self.function(outputs, labels, num_items_in_batch=count)

    def returned(self, passes: Passes, batch: Mapping[str, Any], count: Any) -> torch.Tensor:
        return torch.stack([self.of(passes.output(k), batch, count) for k in range(passes.num_passes)]).mean()

    def share(self, returned: torch.Tensor, batch: Mapping[str, Any], window: Window, count: Any) -> torch.Tensor:
        is_mean = count is None or self.uses_count is False
        return window.weighted(returned, batch) if is_mean else returned * window.processes


@dataclass(frozen=True)
class TrainerLoss(TaskLoss):
    """What the `compute_loss` of a base trainer returns.

    Attributes:
        compute_loss: the bound method, as the base trainer has it.
        defined_in: names the class that defines it.
        trainer_name: names the class of the trainer.
        counts: the head by which the items of a batch are counted, for a method that divides by their number; None: it
            is called without.
    """

    compute_loss: Callable[..., Any]
    defined_in: str
    trainer_name: str
    counts: PredictionHead | None = None
    needs_logits = "the trainer's own compute_loss makes the loss of the logits"
    takes_gradients = True

    @property
    def computed_by(self) -> str:
        return f"compute_loss of {self.defined_in}"

    def call(self, model: nn.Module, inputs: dict[str, Any], keep: tuple[str, ...] | None = None) -> Any:
        count = {} if self.counts is None else {"num_items_in_batch": self.counts.count(inputs)[:, 0].sum()}
        result = self.compute_loss(model, inputs, return_outputs=True, **count)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
            entries = f" of {', '.join(type(entry).__name__ for entry in result)}" if isinstance(result, tuple) else ""
            raise ValueError(
                f"The compute_loss of {self.trainer_name} must return (loss, outputs) when it is called with "
                f"return_outputs=True, because R-Drop needs the logits; it returned a {type(result).__name__}{entries}."
            )
        loss, outputs = result
        # One number alone: of two entries the first, of shape (1,), may be the logit of one row
        return with_loss(outputs, loss, has_loss=isinstance(outputs, tuple) and begins_with_loss(outputs[:1]))


def check_item_by_item(task_loss: TaskLoss) -> None:
    """Refuse a loss that comes as one number for all rows, where not all go through the same passes."""
    if not isinstance(task_loss, StockLoss):
        source = "compute_loss_func" if isinstance(task_loss, FunctionLoss) else task_loss.computed_by
        raise ValueError(
            f"rdrop_row_share below 1 fits the usual losses alone, which R-Drop makes item by item: here {source} "
            "makes one of all rows. Leave rdrop_row_share at 1."
        )


def promises_stock_loss(model: nn.Module) -> bool:
    """Whether a model's class says that its loss is the stock loss of its head.

    It does not where its forward is defined outside transformers, its `loss_function` was replaced, or its router adds
    a loss.
    """
    cls = type(model)
    adds_loss = config_value(model, "output_router_logits")
    loss_function = next((base for base in cls.__mro__ if "loss_function" in vars(base)), nn.Module)
    stock_function = loss_function.__module__.startswith(("transformers.", "torch."))
    return not runs_own_code(model) and stock_function and not adds_loss and not hasattr(model, "_loss_function")


# ---- What a model is fed where it is given no labels ----


def without_labels(base: nn.Module, batch: Mapping[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """A batch without its labels, but with the decoder inputs that they stand for.

    The labels stay where the model makes its decoder inputs of them, and cannot be asked for those alone.
    """
    made = decoder_inputs(base, batch)
    if made is None:
        return dict(batch)
    return {key: value for key, value in batch.items() if key not in labels} | made


def decoder_inputs(base: nn.Module, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """The decoder inputs that the labels stand for, empty if none are needed; None if the model cannot say."""
    labels = batch.get("labels")
    given = any(batch.get(key) is not None for key in ("decoder_input_ids", "decoder_inputs_embeds"))
    decodes = config_value(base, "is_encoder_decoder")
    if given or not decodes or labels is None or labels.dim() != 2 or labels.is_floating_point():
        return {}
    prepare = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    return None if prepare is None else {"decoder_input_ids": prepare(labels=labels)}
