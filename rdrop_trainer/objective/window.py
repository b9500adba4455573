"""One optimizer step: its settings, and what its micro-batches hold together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import is_
from typing import Any, NamedTuple

import torch

from ..losses import RDropLoss, devices, rdrop_loss
from .heads import PredictionHead
from .items import Items
from .rows import pick_rows, spread_rows
from .view import SecondView

_CHANGED = (
    "The labels of a batch are not those that R-Drop counted when the step began: an override (compute_loss, "
    "training_step, _prepare_inputs) changes them. Change them in the data collator."
)


@dataclass(frozen=True)
class StepSettings:
    """How R-Drop treats the micro-batches of one optimizer step.

    Attributes:
        alpha: weight of the divergence at this step, at least 0.
        num_passes: m; 1 for a step without R-Drop, which is normalised in the same way.
        forward_mode: "concat", "sequential" or "recompute"; see `run_passes`.
        reduction: "mean" or "sum" of the divergence over the items of a micro-batch.
        fused_head: "auto", "true" or "false": whether the output head of a language model is fused into the loss.
        allow_deterministic: go on where the model has no noise.
        second_view: `second_view(batch, pass_index)` returns what pass 1, 2, ... sees in the place of the batch: other
            inputs, and the same labels and rows. None: all passes see the batch.

    Raises:
        ValueError: a second view that is no function.
    """

    alpha: float = 4.0
    num_passes: int = 2
    forward_mode: str = "concat"
    reduction: str = "mean"
    fused_head: str = "auto"
    allow_deterministic: bool = False
    second_view: SecondView | None = None

    def __post_init__(self):
        if self.second_view is not None and not callable(self.second_view):
            raise ValueError(f"second_view must be a function of (batch, pass_index), got {self.second_view!r}.")


class _Counted(NamedTuple):
    """A micro-batch as it was counted: its tensors, and how often each had been written to.

    None: some are inference tensors, of which that is not known. What is written through `.data` or NumPy is not seen.
    """

    tensors: Mapping[str, torch.Tensor]
    versions: Sequence[int] | None

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> _Counted:
        tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        if any(tensor.is_inference() for tensor in tensors.values()):
            return cls(tensors, None)
        return cls(tensors, [tensor._version for tensor in tensors.values()])

    def is_same(self, other: _Counted) -> bool:
        alike = self.tensors.keys() == other.tensors.keys() and self.versions == other.versions
        return self.versions is not None and alike and all(map(is_, self.tensors.values(), other.tensors.values()))


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step.

    Attributes:
        head: says what an item is.
        items: counts of task loss and divergence over all micro-batches and all processes that share them, for each
            part of the head; (parts, 2).
        counts: the same of each micro-batch on this process; (micro_batches, parts, 2).
        batches: each of them as it was counted.
        processes: how many share the counts. Their gradients are averaged, so an item weighs processes / items.
        row_share: of the rows of each micro-batch that go through more than the first pass. The divergence is that of
            their items, the task loss that of all.
    """

    head: PredictionHead
    items: torch.Tensor
    counts: torch.Tensor
    batches: Sequence[_Counted]
    processes: int = 1
    row_share: float = 1.0

    @classmethod
    def count(
        cls,
        head: PredictionHead,
        batches: Sequence[Mapping[str, Any]],
        device: torch.device | None = None,
        processes: int = 1,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None,
        row_share: float = 1.0,
    ) -> Window:
        """Count the items of some micro-batches, over several processes where they share the normalisation.

        Args:
            head: of the model.
            batches: the micro-batches of one optimizer step, with labels.
            device: where the counts are kept; default: that of the labels.
            processes: how many share the counts.
            sum_over_processes: sums a tensor over them; a collective. Needed where there are several.
            row_share: as the attribute.
        """
        each = torch.stack([_count(head, batch, row_share) for batch in batches])
        if device is not None:
            each = each.to(device)
        counts = each.sum(0)
        if processes > 1:
            counts = sum_over_processes(counts)
        return cls(head, counts, each, [_Counted.of(batch) for batch in batches], processes, row_share)

    def check(self, batch: Mapping[str, Any]) -> None:
        """Is this one of the micro-batches that were counted? An override may have changed its labels since.

        Raises:
            ValueError: it is not, and has as many rows as the largest of them, or more.
        """
        if any(map(_Counted.of(batch).is_same, self.batches)):  # the usual case, which takes no look at values
            return
        if _types(self.head, batch) not in [_types(self.head, counted.tensors) for counted in self.batches]:
            raise ValueError(_CHANGED)
        # A smaller micro-batch, or a part of another, of as many rows
        if _size(self.head, batch) < max(_size(self.head, counted.tensors) for counted in self.batches):
            return
        counts = _count(self.head, batch, self.row_share).to(self.counts.device)
        devices.require((self.counts == counts).flatten(1).all(1).any(), _CHANGED)

    @property
    def task_items(self) -> torch.Tensor:
        """Counts of the items that have a task loss, (parts,)."""
        return self.items[:, 0]

    @cached_property
    def divisors(self) -> list[tuple[torch.Tensor, ...]]:
        """What the sums over items of task loss and divergence are divided by on this process, for each part."""
        items = torch.ones_like(self.items) if self.head.summed else self.items
        return [part.unbind() for part in (items / self.processes).unbind()]

    @property
    def is_one_batch(self) -> bool:
        """One micro-batch on one process: a mean over it is a mean over the window."""
        return len(self.counts) == 1 and self.processes == 1

    def share(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The weight that a mean (a sum) over one micro-batch has in the mean (the sum) over the window; a scalar."""
        if self.head.summed:
            return torch.full((), float(self.processes), device=self.items.device)
        items = self.head.count(batch)[:, 0].to(self.items.device)
        shares = items * self.processes / self.task_items.clamp(min=1)
        return shares.sum() / (self.task_items > 0).sum().clamp(min=1)  # a part without any label has no loss

    def weighted(self, mean: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """The share of a mean over the items of one micro-batch, which is NaN where there are none."""
        share = self.share(batch)
        return torch.where(share > 0, mean * share, torch.zeros_like(mean))

    def terms(
        self,
        items: Sequence[Items],
        settings: StepSettings,
        with_labels: bool = True,
        label_smoothing: float = 0.0,
    ) -> RDropLoss:
        """Loss, task loss and divergence of a micro-batch, each its share of those of the optimizer step.

        Args:
            items: of the micro-batch, for each part of the head, whose terms are averaged or have weights.
            settings: of the step.
            with_labels: without, there is no task loss.
            label_smoothing: of the task loss.
        """
        parts = []
        for part, (task_items, divergence_items) in zip(items, self.divisors, strict=True):
            loss: Callable[..., RDropLoss] = part.loss or partial(rdrop_loss, problem=part.problem)
            terms = loss(
                part.outputs,
                part.labels if with_labels else None,
                alpha=settings.alpha,
                num_passes=settings.num_passes,
                mask=part.mask,
                num_items=task_items,
                num_divergence_items=divergence_items if settings.reduction == "mean" else len(self.counts),
                reduction=settings.reduction,
                label_smoothing=label_smoothing,
            )
            parts.append(terms)
        weights = self.head.part_weights
        if weights == (1.0,):
            return parts[0]
        sums = (sum(w * value for w, value in zip(weights, values, strict=True)) for values in zip(*parts, strict=True))
        return RDropLoss(*sums)


def _count(head: PredictionHead, batch: Mapping[str, Any], row_share: float) -> torch.Tensor:
    counts = head.count(batch)
    if row_share < 1:
        size = _size(head, batch)
        if len(chosen := spread_rows(row_share, size)) < size:
            counts[:, 1] = head.count(pick_rows(batch, chosen, size))[:, 1]
    return counts


def _size(head: PredictionHead, batch: Mapping[str, Any]) -> int:
    """Rows."""
    return next((len(batch[key]) for key in head.labels if key in batch), 0)


def _types(head: PredictionHead, batch: Mapping[str, Any]) -> tuple[bool, ...]:
    """What counts do not tell and needs no look at values: whether labels of classes are probabilities by now."""
    classes = (one for one in head.heads if one.problem == "single_label")
    return tuple(batch[key].is_floating_point() for one in classes for key in one.labels if key in batch)
