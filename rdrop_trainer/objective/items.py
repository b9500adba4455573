"""The predictions that are compared, in the arguments of `rdrop_loss`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from ..losses.chunked import split_passes
from ..losses.validation import Problem


class Items(NamedTuple):
    """The predictions of m passes that are compared, N items each, in the arguments of `rdrop_loss`.

    Attributes:
        outputs: logits, all passes in one tensor, (m·N, C), or m of (N, C).
        labels: (N,), or (N, C) for several values a row.
        mask: (N,) booleans, those that count in the divergence, among them all labeled ones; or (N, C) booleans, their
            entries that count. None: all.
        problem: the divergence, and the stock loss.
        loss: takes the arguments of `rdrop_loss`, in its place: the outputs are hidden states, not yet logits,
            or the task loss is not that of these items.
    """

    outputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    problem: Problem = "single_label"
    loss: Callable[..., Any] | None = None

    def counted(self, num_passes: int, at_most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs (m, n, C) and labels (n, ...) of the items that count, or of the first of them."""
        mask = self.mask if self.mask is None or self.mask.dim() == 1 else self.mask.any(-1)
        which = slice(at_most) if mask is None else mask.nonzero()[:at_most, 0]
        return torch.stack([z[which] for z in split_passes(self.outputs, num_passes)]), self.labels[which]


class Outputs(Protocol):
    """A model's outputs by name, each all passes in one tensor or a tensor for every pass: a mapping, or `Passes`."""

    def __getitem__(self, key: str, /) -> Sequence[torch.Tensor]: ...
