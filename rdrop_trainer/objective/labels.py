"""What labels are, where only their type and values say it: models of one's own without a problem type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..losses.reference import IGNORE_INDEX
from .head_of import has_listed_head
from .heads import ROWS, SINGLE_LABEL, TOKENS, PredictionHead, is_along_text
from .lm_head import vocabulary_size
from .task_loss import TaskLoss
from .training import Training


def judged_by_labels(
    training: Training, kind: PredictionHead, task_loss: TaskLoss, batches: Sequence[Mapping[str, Any]]
) -> PredictionHead:
    """A better guess at the head than the type of the labels gives; a collective.

    Args:
        training: of the model; a forward pass, `aside`, is made only where labels fit rows and tokens alike.
        kind: the head by class, settings and the type of the labels.
        task_loss: where the task loss comes from.
        batches: the first window.
    """
    head = kind
    if _may_be_of_tokens(training, kind) and training.on_any_process(_fit_tokens(batches[0])):
        if _are_of_tokens(training, kind, task_loss, batches[0]):
            head = replace(TOKENS[kind.problem], own_loss=kind.own_loss)
    if head.problem == "multi_label" and _is_guess(training):
        head = _judged_by_values(training, head, [batch["labels"] for batch in batches])
    return head


def check_range(training: Training, head: PredictionHead, batches: Sequence[Mapping[str, Any]]) -> None:
    """Refuse labels that are none of the classes of a stock head; waits for the device of the labels.

    A loss of the user's may know other labels.
    """
    if head.problem != "single_label" or head.own_loss or head.soft or head.positions:
        return
    for batch in batches:
        labels = batch["labels"]
        classes = _classes(training, head, batch)
        outside = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORE_INDEX)]
        if classes > 1 and outside.numel() > 0:
            mend = "mend the labels" if head.choices or head.language_model else "load the model with more num_labels"
            raise ValueError(
                f"A label is {outside[0].item()}, but {type(training.base).__name__} knows {classes} classes, labeled "
                f"0 to {classes - 1} (and {IGNORE_INDEX}: no label): {mend}."
            )


def _classes(training: Training, head: PredictionHead, batch: Mapping[str, Any]) -> int:
    """How many classes a stock head has; 0: unknown."""
    if head.choices:
        return batch["input_ids"].shape[1] if "input_ids" in batch else 0
    if head.language_model:
        return vocabulary_size(training.base)
    return getattr(getattr(training.base, "config", None), "num_labels", 0)


def _may_be_of_tokens(training: Training, head: PredictionHead) -> bool:
    """Labels (B, T) for logits (B, T, 1) look like those of rows with several columns."""
    return not has_listed_head(training.base) and not head.tokens and head.problem != "single_label"


def _fit_tokens(batch: Mapping[str, Any]) -> bool:
    """Whether labels are as many as the tokens of a text, or as those of what is no text."""
    labels, is_text = batch["labels"], any(key in batch for key in ("input_ids", "inputs_embeds"))
    return labels.dim() == 2 and labels.shape[1] > 1 and (not is_text or is_along_text(labels, batch))


def _are_of_tokens(training: Training, kind: PredictionHead, task_loss: TaskLoss, batch: Mapping[str, Any]) -> bool:
    """Whether labels (B, T) are for logits of tokens, (B, T, 1), or (B, T) that follow the length of the text."""
    labels = batch["labels"]
    logits = _logits(training, kind, task_loss, batch)
    if logits is None or logits.dim() == 3 or not is_along_text(labels, batch):
        return logits is not None and logits.shape[:2] == labels.shape and logits.dim() == 3
    shorter = {k: v[:, :-1] if torch.is_tensor(v) and v.shape[:2] == labels.shape else v for k, v in batch.items()}
    try:
        logits = _logits(training, kind, task_loss, shorter)
    except Exception:  # labels of columns, one of which is missing
        return False
    return logits is not None and logits.shape == shorter["labels"].shape


def _logits(
    training: Training, kind: PredictionHead, task_loss: TaskLoss, batch: Mapping[str, Any]
) -> torch.Tensor | None:
    """The logits of one pass in evaluation mode, which leaves no trace in the model."""
    batch = {key: value.to(training.device) if torch.is_tensor(value) else value for key, value in batch.items()}
    modules = [module for module in training.model.modules() if module.training]
    training.model.eval()
    try:
        return training.probe(training.model, task_loss.inputs(batch, kind), task_loss.call).runs[0].get("logits")
    finally:
        for module in modules:
            module.training = True


def _is_guess(training: Training) -> bool:
    """Whether nothing but the type of the labels says what they are, and the loss may be any."""
    stated = getattr(getattr(training.base, "config", None), "problem_type", None)
    return training.own_loss and training.problem == "auto" and stated is None


def _judged_by_values(training: Training, head: PredictionHead, labels: Sequence[torch.Tensor]) -> PredictionHead:
    """A head that is taken for multi-label, unless its labels are probabilities of classes, or no yes and no at all.

    All processes read the labels of their own first window, and come to one verdict.
    """
    marked = [(y == IGNORE_INDEX) | (y == -1) for y in labels]
    is_outside = any(bool((((y < 0) | (y > 1)) & ~mark).any()) for y, mark in zip(labels, marked, strict=True))
    if training.on_any_process(is_outside):
        return replace((TOKENS if head.tokens else ROWS)["regression"], own_loss=True)
    if head.tokens or labels[0].dim() != 2:
        return head
    are_whole = all(bool(((y == 0) | (y == 1)).all()) for y in labels)
    add_up = all(bool((((y.sum(-1) - 1).abs() < 1e-3) & (y >= 0).all(-1)).all()) for y in labels)
    # Rows with a single yes add up to 1 as well, so some row has to be divided between classes
    if training.on_any_process(not add_up) or not training.on_any_process(not are_whole):
        return head
    return replace(SINGLE_LABEL, soft=True, own_loss=True)
