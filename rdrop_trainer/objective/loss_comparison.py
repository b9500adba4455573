"""Are two losses the same? A few batches tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LossComparison:
    """Finds out over some batches whether two losses are the same.

    Attributes:
        batches: how many were compared.
        differs: they are not the same.
    """

    batches: int = 0
    differs: bool = False
    # One batch may not tell: class weights, for instance, cancel where all rows have one class
    ENOUGH = 8

    @property
    def done(self) -> bool:
        """Enough batches were compared, or one differs."""
        return self.differs or self.batches >= self.ENOUGH

    def compare(
        self,
        own: torch.Tensor,
        expected: torch.Tensor,
        tolerance: float,
        on_any_process: Callable[[torch.Tensor], list[bool]],
        margin: float = 1e-6,
    ) -> LossComparison:
        """Compare the own loss of one batch with what it is taken for, up to a relative tolerance and an absolute
        margin; all processes come to one verdict. A batch without labels, whose own loss is NaN, decides nothing.
        """
        is_known = own.isfinite()
        is_other = is_known & ((own - expected).abs() > tolerance * expected.abs() + margin)
        known, differs = on_any_process(torch.stack([is_known, is_other]))
        return LossComparison(self.batches + known, differs)
