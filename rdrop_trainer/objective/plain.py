"""A step without R-Drop: `Trainer`'s own loss, every bit of it, where that is the mean over the items of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .objective import Objective
from .passes import Passes
from .task_loss import StockLoss
from .training import Training
from .window import StepSettings, Window


def counts_right(training: Training, window: Window, batch: Mapping[str, Any]) -> bool:
    """Whether `Trainer`'s loss of a micro-batch is its share of the mean over the items of the step."""
    head = window.head
    if not window.is_one_batch or (head.soft and head.misread_by_stock_code(batch)):
        return False
    if head.shifted and training.smoothing(head):
        # `Trainer`'s label smoother shifts labels for these classes alone
        return training.model_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return True


def plain_loss(
    objective: Objective,
    base_loss: Callable[..., Any],
    model: nn.Module,
    batch: Mapping[str, Any],
    window: Window,
    return_outputs: bool,
    count: Any,
) -> Any:
    """`Trainer`'s loss of a step of one micro-batch, or (loss, outputs); the right one for labels that it misreads.

    Args:
        base_loss: `compute_loss` without R-Drop.
        count: `Trainer`'s `num_items_in_batch`.
    """
    head = window.head
    if head.shifted and objective.training.loss_function is None and count is not None:
        # For GPT-2 and its like `Trainer` also counts the first token of a row, which nothing predicts
        count = window.task_items[0].clamp(min=1)
    misread = head.misread_by_stock_code(batch)
    is_stock = isinstance(objective.plan.task_loss, StockLoss)
    reads_outputs = is_stock and (head.problem == "multi_label" or len(head.labels) > 1)
    wants_outputs = return_outputs or reads_outputs
    result = base_loss(model, dict(batch), return_outputs=wants_outputs, num_items_in_batch=count)
    loss, outputs = result if wants_outputs else (result, None)
    # The mean over nothing is NaN, and so is a sum of two such means. The device alone knows, and is not waited for: it
    # gets both losses, and takes one
    if reads_outputs:
        is_wrong = misread if isinstance(misread, torch.Tensor) else (window.task_items == 0).any()
        loss = torch.where(is_wrong, _stock_loss(objective, outputs, batch, window).to(loss), loss)
    elif isinstance(misread, torch.Tensor) or head.task_problem == "single_label":
        loss = loss.masked_fill((window.task_items == 0).all(), 0)
    return (loss, outputs) if return_outputs else loss


def _stock_loss(objective: Objective, outputs: Any, batch: Mapping[str, Any], window: Window) -> torch.Tensor:
    """The stock loss by what the model returned: the micro-batch's share of the mean over items.

    Without label smoothing, which is of single labels alone, one a row or token.
    """
    plan = objective.plan
    [items] = plan.items(Passes.of(outputs, plan.head.outputs), batch)
    return window.terms(items, StepSettings(alpha=0.0, num_passes=1)).loss
