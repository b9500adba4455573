"""Stability under small edits of the text."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..objective.head_of import head_of
from ..objective.heads import PredictionHead
from .edits import EDITS, Edit
from .measure import Stability, differ, divergence_of, mean_by
from .running import as_it_was, items_of


class EditedText(NamedTuple):
    """An edit and what it does to the prediction.

    Attributes:
        index: of the example.
        kind: of the edit, as in `EDITS`.
        text: before the edit.
        edited: after the edit.
        flipped: whether the model predicts another label; False for a regression.
        divergence: symmetric KL between the two predictions, in nats; squared difference for a regression.
    """

    index: int  # type: ignore[assignment]  # it hides `tuple.index`
    kind: str
    text: str
    edited: str
    flipped: bool
    divergence: float


@dataclass(frozen=True)
class EditStability:
    """How stable a model's predictions are under small edits of texts.

    Attributes:
        overall: over all edits, per example; examples that no edit fits have 0 items.
        by_kind: kind of edit -> the same over the edits of this kind alone.
        edits: all edits that were made.
    """

    overall: Stability
    by_kind: dict[str, Stability]
    edits: tuple[EditedText, ...]


def perturbation_stability(
    model: nn.Module,
    dataset: Any,
    tokenizer: Any,
    *,
    text_columns: Sequence[str] = ("text",),
    kinds: Sequence[str] | Mapping[str, Edit] = tuple(EDITS),
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
) -> EditStability:
    """How stable a sequence classifier (or regression) is under small edits of its text.

    Every kind of edit is made once to the first text of every example, where it fits. The label is assumed to stay the
    same, which is not certain: an edit can change the meaning ("form" becomes "from"), so read `edits`.

    Args:
        model: a model for sequence classification.
        dataset: rows with texts.
        tokenizer: the model's.
        text_columns: names of the one or two columns of text; the first is edited.
        kinds: names in `EDITS`, or your own functions by name.
        batch_size: texts per batch.
        max_length: longer texts are cut, in tokens; default: the tokenizer's.
        seed: of the edits.

    Returns:
        Per row, of all edits and of each kind alone: `flips`, the share of the edits that change the predicted label,
        and `divergence` between the predictions before and after; and the edited texts.

    Raises:
        InputError: an unknown kind of edit, a missing column, an empty data set, or a model of another kind.
    """
    unknown = [kind for kind in kinds if kind not in EDITS and not isinstance(kinds, Mapping)]
    if unknown:
        raise InputError(f"kinds: no edit is called {', '.join(unknown)}; there are {', '.join(EDITS)}")
    functions = kinds if isinstance(kinds, Mapping) else {kind: EDITS[kind] for kind in kinds}
    rows = list(dataset)
    missing = [column for column in text_columns if rows and column not in rows[0]]
    if missing or not rows:
        raise InputError(f"text_columns: no column {', '.join(missing)}" if rows else "the data set is empty")
    texts = [tuple(row[column] for column in text_columns) for row in rows]
    rng = random.Random(seed)
    made = [
        (index, kind, edited)
        for index, (text, *_) in enumerate(texts)
        for kind, edit in functions.items()
        if (edited := edit(text, rng)) is not None and edited != text
    ]

    def predict(texts: list[tuple[str, ...]]) -> tuple[PredictionHead, torch.Tensor]:
        # Texts of similar length go together, so that little of a batch is padding
        order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))
        logits = []
        for start in range(0, len(order), batch_size):
            columns = zip(*(texts[i] for i in order[start : start + batch_size]), strict=True)
            options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
            batch = dict(tokenizer(*map(list, columns), **options))
            batch["labels"] = torch.full((len(batch["input_ids"]),), -100)
            head = head_of(model, batch)
            if head.tokens or len(head.outputs) > 1:
                raise InputError(f"{type(model).__name__}: edits are compared for sequence classification alone")
            ((items, _),) = items_of(model, head, {key: value.to(device) for key, value in batch.items()})
            logits.append(items.cpu())
        return head, torch.cat(logits)[torch.tensor(order).argsort()]

    device = next(model.parameters()).device
    with as_it_was(model):
        model.eval()
        head, own = predict(texts)
        edited = predict([(text, *texts[index][1:]) for index, _, text in made])[1] if made else own[:0]
    before = own[torch.tensor([index for index, _, _ in made], dtype=torch.long)]
    divergence = divergence_of(head, torch.stack([before, edited]))
    flips = differ(head, before, edited)
    index = np.array([index for index, _, _ in made], dtype=int)
    kind_of = np.array([kind for _, kind, _ in made])

    def over(chosen: np.ndarray) -> Stability:
        items = np.bincount(index[chosen], minlength=len(rows))
        return Stability(
            mean_by(index[chosen], flips[chosen], items), mean_by(index[chosen], divergence[chosen], items), items
        )

    records = (
        EditedText(i, kind, texts[i][0], text, bool(flip == 1), float(value))
        for (i, kind, text), flip, value in zip(made, flips, divergence, strict=True)
    )
    every = np.ones(len(made), dtype=bool)
    return EditStability(over(every), {kind: over(kind_of == kind) for kind in functions}, tuple(records))
