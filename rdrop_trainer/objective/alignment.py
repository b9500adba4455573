"""Which logits of tokens the labels belong to: those for which the usual loss is the model's own loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import logging

from ..head import Head
from ..losses.reference import IGNORE_INDEX
from .comparisons import stock_loss
from .head_of import has_listed_head
from .heads import PredictionHead
from .items import Items
from .joint import JointHead
from .passes import Passes
from .task_loss import FunctionLoss, StockLoss, TaskLoss
from .training import Training

logger = logging.get_logger(__name__)

_FAR = 1e6  # stands for the distance of losses that cannot be compared


def aligned(
    training: Training,
    heads: Sequence[PredictionHead],
    named: Sequence[Head],
    passes: Passes,
    batch: Mapping[str, Any],
    source: TaskLoss,
) -> tuple[list[PredictionHead], bool]:
    """Heads whose labels stand where the model's own loss has them; a collective.

    Args:
        passes: one pass without noise, with the loss of the model.

    Returns:
        The heads, and whether the model's loss is the weighted sum of their usual losses.
    """
    is_open = [
        not has_listed_head(training.base) and _place_is_open(head, spec)
        for head, spec in zip(heads, named, strict=True)
    ]
    is_missing = any(passes.get(name) is None for head in heads for name in head.outputs)  # plain training goes on
    if isinstance(source, StockLoss) or not (any(is_open) or len(heads) > 1) or is_missing:
        return list(heads), False

    def settled(heads: Sequence[PredictionHead], **changes: Any) -> list[PredictionHead]:
        return [replace(head, **changes) if o else head for head, o in zip(heads, is_open, strict=True)]

    longer = training.on_any_process(any(_is_longer(head, passes, batch) for head in heads if head.tokens))
    placed = [_placements(head, longer) if o else [head] for head, o in zip(heads, is_open, strict=True)]
    candidates = list(product(*placed))
    distances = [_distance(training, candidate, passes, batch, source) for candidate in candidates]
    means = _means_over_processes(training, distances)
    (best, ours), *others = sorted(means)
    tolerance = training.tolerance(*_logits(heads, passes))
    if best <= tolerance and all(other > 5 * best + 1e-5 for other, _ in others):
        found = candidates[means.index((best, ours))]
        return (list(found) if longer else settled(found, place="same")), ours <= tolerance
    if len(candidates) > 1:
        fault = (
            f"The loss of {training.model_name} does not show where the labels of tokens stand among the "
            f"logits: it is not the usual loss of {' and '.join(head.name for head in heads)} "
            + ("at the first or at the last positions, or shifted by one token" if longer else "in place or shifted")
            + (", or of more than one of these" if best <= tolerance else "")
        )
        how = 'rdrop_heads=[Head(align="first")], "last" or "shifted"'
        if longer:
            return settled(heads, doubt=f"{fault}. Say it with {how}."), False
        logger.warning_once(
            f"{fault}. R-Drop takes each label for the token at its own place; confirm or correct it with {how}."
        )
    return settled(heads, place="same"), False


def _means_over_processes(training: Training, distances: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of the processes that know any; one whose batch has no labels does not."""
    known = float(any(d < _FAR for d, _ in distances))
    total = training.sum_over_processes(torch.tensor([[*d, 1.0] for d in distances], device=training.device) * known)
    return [(any_count / n, ours / n) if n else (_FAR, _FAR) for any_count, ours, n in total.tolist()]


def _place_is_open(head: PredictionHead, named: Head) -> bool:
    """Whether nothing says where labels of tokens stand; a language model's class is known by its name."""
    return head.tokens and not head.shifted and not head.soft_prompt and named.align == "auto" and not head.doubt


def _logits(heads: Sequence[PredictionHead], passes: Passes) -> list[torch.Tensor]:
    found = (passes.get(name) for head in heads for name in head.outputs)
    return [z[0] for z in found if z is not None]


def _is_longer(head: PredictionHead, passes: Passes, batch: Mapping[str, Any]) -> bool:
    return any(z.dim() > 1 and z.shape[1] > batch[head.labels[0]].shape[1] for z in _logits([head], passes))


def _placements(head: PredictionHead, longer: bool) -> list[PredictionHead]:
    """The head with its labels at each of the places they may be at."""
    in_place = [replace(head, place="end"), replace(head, place="start")] if longer else [replace(head, place="end")]
    shifted = replace(head, place="end", shifted=True, unlabeled_mask=None, name=f"{head.name}, shifted by one token")
    return [*in_place, shifted] if head.problem == "single_label" else in_place


def _distance(
    training: Training, heads: Sequence[PredictionHead], passes: Passes, batch: Mapping[str, Any], source: TaskLoss
) -> tuple[float, float]:
    """How far the own loss is from the sum of usual losses, relative: with any count of the items, and with ours."""
    head = JointHead.of(heads)
    try:
        items = head.items(passes, batch, 1)
    except ValueError:  # logits of another shape, which are refused when there are passes to compare
        return _FAR, _FAR
    own = passes.loss()
    if isinstance(source, FunctionLoss):
        with torch.no_grad(), training.same_noise():
            count = head.count(batch)[:, 0].sum()
            own = source.of(passes.output(0), batch, count)
    if own is None or not own.isfinite() or own == 0:
        return _FAR, _FAR

    def apart(loss: Any) -> float:
        return min(((own - loss).abs() / own.abs()).nan_to_num(_FAR).item(), _FAR)

    plain = apart(sum(w * usual_loss(part) for w, part in zip(head.part_weights, items, strict=True)))
    ours = apart(stock_loss(training, head, passes, items, batch)) if all(map(_is_for_our_loss, items)) else _FAR
    return min(plain, ours), ours


def _is_for_our_loss(items: Items) -> bool:
    """Whether `rdrop_loss` takes the labels: no negative ones but -100, none beyond the classes."""
    if items.problem != "single_label" or items.labels.is_floating_point():
        return items.labels.shape == (items.labels.shape[0], items.outputs[0].shape[-1])
    labels = items.labels[items.labels != IGNORE_INDEX]
    return bool(((labels >= 0) & (labels < items.outputs[0].shape[-1])).all())


def usual_loss(items: Items) -> torch.Tensor:
    """The usual loss of everything that has a label other than -100, as most models have it."""
    logits, labels = items.outputs[0].float(), items.labels
    if items.problem == "single_label" and not labels.is_floating_point():
        labels = labels.masked_fill((labels < 0) | (labels >= logits.shape[-1]), IGNORE_INDEX)
        return F.cross_entropy(logits, labels)
    if labels.numel() != logits.numel():
        return logits.new_full((), torch.nan)
    counted = labels.reshape(logits.shape) != IGNORE_INDEX
    logits, labels = logits[counted], labels.reshape(logits.shape)[counted].float()
    if items.problem == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)
