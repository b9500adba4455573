"""Several heads of one model: each has items and a divergence of its own, and the model has one loss for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .heads import PredictionHead
from .items import Items, Outputs


@dataclass(frozen=True)
class JointHead(PredictionHead):
    """Heads of different kinds, whose divergences are added up.

    Attributes:
        heads: of one part each.
    """

    heads: tuple[PredictionHead, ...] = ()

    @classmethod
    def of(cls, heads: Sequence[PredictionHead]) -> PredictionHead:
        """The head made of some; of a single one, that one."""
        if len(heads) == 1:
            return heads[0]
        return cls(
            " and ".join(head.name for head in heads),
            problem="multi_label",  # each head has its own; as a whole they are several values
            outputs=tuple(name for head in heads for name in head.outputs),
            labels=tuple(name for head in heads for name in head.labels),
            own_loss=True,
            weights=tuple(weight for head in heads for weight in head.part_weights),
            heads=tuple(heads),
        )

    @property
    def of_rows(self) -> bool:
        return all(head.of_rows for head in self.heads)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        return torch.cat([head.count(batch) for head in self.heads])

    def misread_by_stock_code(self, batch: Mapping[str, Any]) -> bool:
        return False  # no class of transformers has several heads of different kinds

    def items(self, outputs: Outputs, batch: Mapping[str, Any], num_passes: int) -> list[Items]:
        return [items for head in self.heads for items in head.items(outputs, batch, num_passes)]
