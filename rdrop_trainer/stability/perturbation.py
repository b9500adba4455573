"""Stability under small edits of the text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from ..errors import InputError
from ..objective.head_of import head_of
from ..objective.heads import PredictionHead
from ..objective.snapshot import same_modes
from .edits import EDITS, Edit
from .measure import Stability, differ, divergence_of, mean_by
from .running import items_of, no_labels


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
        unseen: kind of edit -> how many edits the model cannot see, because its input ids stay the same: another case
            for an uncased tokenizer, or a change behind `max_length`. They count nowhere else.
        edits: all other edits.
    """

    overall: Stability
    by_kind: dict[str, Stability]
    unseen: dict[str, int]
    edits: tuple[EditedText, ...]


def perturbation_stability(
    model: nn.Module,
    dataset: Any,
    tokenizer: Any,
    *,
    text_columns: Sequence[str] = ("text",),
    kinds: Sequence[str] | Mapping[str, Edit] = tuple(EDITS),
    num_edits: int | None = None,
    logits: Any = None,
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
) -> EditStability:
    """How stable a sequence classifier (or regression) is under small edits of its text.

    Every kind of edit is made once to the first text of every example, where it fits. An edit counts if it changes the
    model's input ids. The label is assumed to stay the same, which is not certain: an edit can change the meaning
    ("form" becomes "from"), so read `edits`.

    Args:
        model: a model for sequence classification.
        dataset: rows with texts.
        tokenizer: the model's.
        text_columns: names of the one or two columns of text; the first is edited.
        kinds: names in `EDITS`, or your own functions by name.
        num_edits: how many edits of each example count at most, at least 1; chance decides of which kinds. Default:
            all.
        logits: (N, C), what the model predicts for the unedited texts in this order, as `Trainer.predict` returns it;
            these texts then need not go through the model.
        batch_size: texts per batch.
        max_length: longer texts are cut, in tokens; default: the tokenizer's.
        seed: of the edits.

    Returns:
        Per row, of all edits and of each kind alone: `flips`, the share of the edits that change the predicted label,
        and `divergence` between the predictions before and after; and the edited texts.

    Raises:
        InputError: an unknown kind of edit, a missing column, an empty data set, logits of other rows, or a model of
            another kind.
    """
    if num_edits is not None and num_edits < 1:
        raise InputError(f"num_edits: expected at least 1, got {num_edits}")
    unknown = [kind for kind in kinds if kind not in EDITS and not isinstance(kinds, Mapping)]
    if unknown:
        raise InputError(f"kinds: no edit is called {', '.join(unknown)}; there are {', '.join(EDITS)}")
    functions = kinds if isinstance(kinds, Mapping) else {kind: EDITS[kind] for kind in kinds}
    rows = list(dataset)
    missing = [column for column in text_columns if rows and column not in rows[0]]
    if missing or not rows:
        raise InputError(f"text_columns: no column {', '.join(missing)}" if rows else "the data set is empty")
    if logits is not None and len(logits) != len(rows):
        raise InputError(f"logits: expected a row for each of {len(rows)} rows, got {len(logits)}")
    texts = [tuple(row[column] for column in text_columns) for row in rows]

    def with_first(edit: _Edited) -> tuple[str, ...]:
        return edit.text, *texts[edit.index][1:]

    def encode(texts: Sequence[tuple[str, ...]], **options: Any) -> Any:
        return tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=max_length, **options)

    made = _made(texts, functions, seed)
    before, after = (encode(some)["input_ids"] if some else [] for some in (texts, list(map(with_first, made))))
    visible = [ids != before[edit.index] for edit, ids in zip(made, after, strict=True)]
    counted, unseen = _chosen(made, visible, num_edits, seed)
    index = np.array([edit.index for edit in counted], dtype=int)
    kind_of = np.array([edit.kind for edit in counted])
    flips = divergence = np.zeros(0)
    with same_modes(model):
        model.eval()
        if logits is None:
            own = _predictions(model, encode, texts, batch_size)[1]
        else:
            own = torch.as_tensor(logits).cpu().double().reshape(len(rows), -1)
        if counted:
            head, edited = _predictions(model, encode, list(map(with_first, counted)), batch_size)
            flips = differ(head, own[index], edited)
            divergence = divergence_of(head, torch.stack([own[index], edited]))

    def over(chosen: np.ndarray) -> Stability:
        items = np.bincount(index[chosen], minlength=len(rows))
        return Stability(
            mean_by(index[chosen], flips[chosen], items), mean_by(index[chosen], divergence[chosen], items), items
        )

    records = (
        EditedText(edit.index, edit.kind, texts[edit.index][0], edit.text, bool(flip == 1), float(value))
        for edit, flip, value in zip(counted, flips, divergence, strict=True)
    )
    return EditStability(
        over(np.ones(len(counted), dtype=bool)),
        {kind: over(kind_of == kind) for kind in functions},
        {kind: unseen[kind] for kind in functions},
        tuple(records),
    )


class _Edited(NamedTuple):
    """The example, the kind of the edit, and the first text after it."""

    index: int  # type: ignore[assignment]
    kind: str
    text: str


def _made(texts: Sequence[tuple[str, ...]], kinds: Mapping[str, Edit], seed: int) -> list[_Edited]:
    """An edit of every kind of every first text, where it fits."""
    rng = random.Random(seed)
    return [
        _Edited(index, kind, edited)
        for index, (text, *_) in enumerate(texts)
        for kind, edit in kinds.items()
        if (edited := edit(text, rng)) is not None and edited != text
    ]


def _predictions(
    model: nn.Module, encode: Callable[..., Any], texts: Sequence[tuple[str, ...]], batch_size: int
) -> tuple[PredictionHead, torch.Tensor]:
    """The head, and what it predicts for each of some texts, (N, C), on the CPU."""
    device = next(model.parameters()).device
    # Texts of similar length go together, so that little of a batch is padding
    order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))
    found = []
    for start in range(0, len(order), batch_size):
        some = [texts[i] for i in order[start : start + batch_size]]
        batch = dict(encode(some, padding=True, return_tensors="pt"))
        batch["labels"] = no_labels(model, batch)
        head = head_of(model, batch)
        if head.tokens or len(head.outputs) > 1:
            raise InputError(f"{type(model).__name__}: edits are compared for sequence classification alone")
        ((items, _),) = items_of(model, head, send_to_device(batch, device))
        found.append(items.cpu())
    return head, torch.cat(found)[torch.tensor(order).argsort()]


def _chosen(
    made: Sequence[_Edited], visible: Sequence[bool], most: int | None, seed: int
) -> tuple[list[_Edited], Counter[str]]:
    """Those of the visible edits that count, at most so many of each example, and how many invisible ones were met.

    Kinds come by chance, and both are counted along the way, so that their shares are about those of all edits.
    """
    rng, counted, unseen = random.Random(seed), [], Counter[str]()
    for _, of_one in groupby(zip(made, visible, strict=True), key=lambda pair: pair[0].index):
        room, pairs = most, list(of_one)
        if most is not None:
            rng.shuffle(pairs)
        for edit, is_visible in pairs:
            if room == 0:
                break
            if not is_visible:
                unseen[edit.kind] += 1
                continue
            counted.append(edit)
            room = None if room is None else room - 1
    return counted, unseen
