"""A second view: what the later passes see in the place of the batch. Labels stay, and items stay in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .heads import PredictionHead
from .rows import refusing_writes

# second_view(batch, pass_index): what pass 1, 2, ... sees; pass 0 sees the batch itself
SecondView = Callable[[dict[str, Any], int], Mapping[str, Any]]


def later_batches(
    view: SecondView | None, batch: Mapping[str, Any], num_passes: int, head: PredictionHead
) -> list[dict[str, Any]]:
    """What the passes behind the first one see, m - 1 batches; none without a view.

    They are made before any pass runs, so all forward modes draw the same ones.

    Raises:
        ValueError: a view that adds or loses entries, changes labels, moves items, or writes to the batch.
    """
    later = []
    for k in range(1, num_passes if view else 1):
        with refusing_writes(batch, "second_view wrote to {} of the batch, which pass 0 sees: change a copy of it."):
            changed = view(dict(batch), k)
        _check(batch, changed, head)
        later.append(dict(changed))
    return later


def _check(batch: Mapping[str, Any], changed: Any, head: PredictionHead) -> None:
    if not isinstance(changed, Mapping) or changed.keys() != batch.keys():
        got = ", ".join(map(str, changed)) if isinstance(changed, Mapping) else f"a {type(changed).__name__}"
        raise ValueError(f"second_view must return the entries that it is given, {', '.join(batch)}; got {got}.")
    for key, before in batch.items():
        after = changed[key]
        if after is before or not isinstance(before, torch.Tensor):
            continue
        if not isinstance(after, torch.Tensor):
            raise ValueError(f"second_view must return {key!r} as a tensor, got a {type(after).__name__}.")
        fixed = None if not head.of_rows else 1
        if before.shape[:fixed] != after.shape[:fixed]:
            raise ValueError(
                f"second_view changed the shape of {key!r} from {tuple(before.shape)} to {tuple(after.shape)}: R-Drop "
                f"compares the passes {'row by row' if head.of_rows else 'position by position'}, so each must stay in "
                "its place. Replace or mask what stands there, and leave nothing out."
            )
        if key in head.labels and not torch.equal(before, after):
            raise ValueError(
                f"second_view changed {key!r}: all passes have the labels of the batch, so it may only change inputs."
            )
