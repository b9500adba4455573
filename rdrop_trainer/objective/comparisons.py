"""Is a loss what it is taken for? The model's, a user's function's and a base trainer's losses, compared on batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .heads import Items, PredictionHead
from .passes import Passes, call_model, find_batch_size, repeat_rows
from .probe import Probe
from .task_loss import FunctionLoss, LossComparison, ModelLoss, StockLoss, TaskLoss, TrainerLoss
from .window import StepSettings, Window

logger = logging.get_logger(__name__)


def compare_model_loss(
    probe: Probe, stock: StockLoss, passes: Passes, items: Sequence[Items], batch: Mapping[str, Any], smoothing: float
) -> TaskLoss:
    """Is the loss that the model returns the stock loss of its head? If it is not, it is kept from here on.

    Args:
        probe: of the training.
        stock: the stock loss, which is in question.
        passes: over a micro-batch, whose labels the model was fed.
        items: those of the passes.
        batch: the micro-batch.
        smoothing: of the labels.
    """
    own = passes.loss()
    if own is None:
        return replace(stock, comparison=None)
    if any(key.endswith(("aux_loss", "z_loss")) and run[key] is not None for run in passes.runs for key in run):
        return ModelLoss(stock.head, stock.base)  # a router adds to it, maybe less than the comparison would see
    loss = _stock_loss(stock.head, passes, items, batch, smoothing)
    comparison = stock.comparison.compare(own.detach(), loss, items[0].outputs[0].dtype, probe.sum_over_processes)
    if not comparison.differs:
        return replace(stock, comparison=None if comparison.done else comparison)
    logger.warning(
        f"The model returns a loss of {own.item():.6g} where the stock loss of its head would be {loss.item():.6g}; "
        "its own loss is kept for the task part, and R-Drop adds the divergence to it."
    )
    return ModelLoss(stock.head, stock.base)


def shows_logits(probe: Probe, trainer: TrainerLoss, model: nn.Module, batch: Mapping[str, Any], names) -> Any:
    """Does the `compute_loss` of a base trainer return logits to train on? None if it does, else its loss.

    Logits without a gradient do not count: trl's `SFTTrainer` makes them in another forward, for metrics.
    """
    own = probe.run(model, trainer.inputs(batch), trainer.call, with_gradient=True)
    logits = [own.runs[0].get(name) for name in names]
    return None if all(value is not None and value.requires_grad for value in logits) else own.loss().detach()


def compare_trainer_loss(
    probe: Probe,
    comparison: LossComparison,
    trainer: TrainerLoss,
    loss: torch.Tensor,
    kept: TaskLoss,
    head: PredictionHead,
    model: nn.Module,
    batch: Mapping[str, Any],
    smoothing: float,
) -> LossComparison:
    """Is the loss of a base trainer that returns no logits the stock loss, or the model's?

    Args:
        probe, comparison: of the training.
        trainer: the base trainer's loss.
        loss: what it was for the batch.
        kept: what is to take its place.
        head, model, batch, smoothing: of the training.

    Raises:
        ValueError: it is another loss, or nothing can take its place.
    """
    passes = probe.run(model, kept.inputs(batch))
    items = head.items(passes, batch, 1)
    own = passes.loss() if kept.needs_logits else _stock_loss(head, passes, items, batch, smoothing)
    if own is None:
        raise ValueError(
            f"{trainer.trainer} returns no logits with its loss, and {type(probe.base).__name__} no loss with its "
            "logits, so R-Drop has nothing to keep. Return a `loss`, or pass compute_loss_func."
        )
    dtype = probe.precision(items[0].outputs[0].dtype)
    comparison = comparison.compare(loss, own, dtype, probe.sum_over_processes)
    if comparison.differs:
        names = " or ".join(head.outputs)
        raise ValueError(
            f"The compute_loss of {trainer.trainer} returns {loss.item():.6g} where the loss for {head.name} is "
            f"{own.item():.6g}, and no {names} beside it that have a gradient, so R-Drop can neither keep this loss "
            f"nor replace it. Let compute_loss(..., return_outputs=True) return the {names} it is made of."
        )
    return comparison


def compare_function(
    probe: Probe,
    comparison: LossComparison,
    trainer: TrainerLoss,
    function: FunctionLoss,
    model: nn.Module,
    batch: Mapping[str, Any],
    count: torch.Tensor,
    sharing: int,
) -> LossComparison:
    """Is the loss of a base trainer what the user's function gives?

    Args:
        probe, comparison, model, batch: of the training.
        trainer: the base trainer's loss.
        function: the user's.
        count: the labeled items of the batch.
        sharing: processes that share a count, by whose number `Trainer` multiplies the loss.

    Raises:
        ValueError: the trainer makes something else of it, or does not use it.
    """
    with probe.aside():
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=count * sharing)
    with probe.aside():
        outputs = call_model(model, function.inputs(batch))
        expected = function.function(outputs, batch.get("labels"), num_items_in_batch=count)
    comparison = comparison.compare(loss, expected, probe.precision(expected.dtype), probe.sum_over_processes)
    if comparison.differs:
        raise ValueError(
            f"The {trainer.computed_by} returns {loss.item():.6g} where compute_loss_func gives {expected.item():.6g}, "
            "so it is not clear which of them is the task loss. Pass no compute_loss_func, or let compute_loss return "
            "what it gives."
        )
    return comparison


def check_rows(probe: Probe, source: TaskLoss, model: nn.Module, batch: Mapping[str, Any], num_passes: int) -> None:
    """Is a loss that is not ours the same for a batch and for the same rows several times over?

    Raises:
        ValueError: it depends on the number of rows, as a sum does, or negatives within the batch.
    """
    repeated = repeat_rows(batch, num_passes, find_batch_size(model, batch))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        once, again = (probe.run(model, source.inputs(rows), source.call).loss() for rows in (batch, repeated))
    finally:
        for module in training:
            module.training = True
    if once is not None and not torch.allclose(once.float(), again.float(), rtol=2e-2, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"The loss of {source.computed_by} depends on the number of rows: {once.item():.6g} for a batch, "
            f"{again.item():.6g} for the same rows {num_passes} times over, as R-Drop's single forward would see them. "
            'Use rdrop_forward_mode="sequential", and let it be a mean over the batch.'
        )


def _stock_loss(
    head: PredictionHead, passes: Passes, items: Sequence[Items], batch: Mapping[str, Any], smoothing: float
) -> torch.Tensor:
    """The stock task loss of one micro-batch, without a gradient."""
    window, settings = Window.count(head, [batch]), StepSettings(alpha=0.0, num_passes=passes.num_passes)
    with torch.no_grad():
        return window.terms(items, settings, label_smoothing=smoothing).task_loss
