"""How steady a trained model is: against its own dropout, and against small edits of the text; and how sure of itself.

R-Drop trains for the first, and the second and the calibration change with it, so they are measured beside the scores.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader
from transformers import default_data_collator

from .dropout import active_dropout
from .edits import EDITS, Edit
from .errors import InputError
from .heads import SEQ2SEQ, Head, head_of
from .losses import reference

_ROW_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


@dataclass(frozen=True)
class Agreement:
    """How far predictions for the same examples agree; arrays have one value per example.

    Attributes:
        flips: (N,) share of the predictions that differ from the model's own, which it gives without dropout and for
            the unedited text; of a token head, the mean over tokens; NaN for a regression, which has no classes.
        divergence: (N,) symmetric KL in nats, as R-Drop's: the mean over the pairs of predictions that are compared,
            of a token head over its tokens too; squared difference for a regression.
        items: (N,) predictions per example: 1, or its tokens.
    """

    flips: np.ndarray
    divergence: np.ndarray
    items: np.ndarray

    @property
    def flip_rate(self) -> float:
        """Mean of `flips` over all items."""
        return self._mean(self.flips)

    @property
    def mean_divergence(self) -> float:
        """Mean of `divergence` over all items."""
        return self._mean(self.divergence)

    def _mean(self, values: np.ndarray) -> float:
        counted = self.items > 0
        return float(np.average(values[counted], weights=self.items[counted])) if counted.any() else float("nan")


class EditedText(NamedTuple):
    """An edit, to be looked at."""

    index: int  # of the example
    kind: str
    text: str
    edited: str
    flipped: bool
    divergence: float


@dataclass(frozen=True)
class EditAgreement:
    """What small edits of texts do to a model's predictions.

    Attributes:
        agreement: over all edits, per example; examples that no edit fits have 0 items.
        by_kind: kind of edit -> the same over its edits alone.
        edits: all that were made.
    """

    agreement: Agreement
    by_kind: dict[str, Agreement]
    edits: tuple[EditedText, ...]


def dropout_agreement(
    model: nn.Module,
    dataset: Any,
    num_samples: int = 8,
    *,
    data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Agreement:
    """How steady a model is against its own dropout.

    Every example goes through the model once as in evaluation and `num_samples` times with dropout on (and the other
    noise of training, such as layer drop); norms go on using their stored statistics. The model is left as it was, and
    so is the state of the random numbers.

    Args:
        model: any model that R-Drop trains.
        dataset: rows as for a `Trainer`'s evaluation. Labels say which tokens count; rows and tokens may have none.
        num_samples: predictions with dropout, at least 2.
        data_collator: makes batches; default transformers' `default_data_collator`.
        batch_size: rows per batch.
        seed: of the dropout.

    Raises:
        InputError: no active dropout, too few samples, or an empty data set.
        ValueError: a head that R-Drop does not fit.
    """
    if num_samples < 2:
        raise InputError(f"num_samples: expected at least 2, got {num_samples}")
    if not active_dropout(model):
        raise InputError(
            f"{type(model).__name__} has no active dropout, so its predictions cannot differ; "
            "rdrop_trainer.dropout.set_dropout(model, 0.1) turns it on"
        )
    batches = []
    device = next(model.parameters()).device
    with _as_it_was(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in _batches(model, dataset, data_collator, batch_size):
            head = head_of(model, batch)
            model.eval()
            own = _items(model, head, batch)
            _dropout_on(model)
            samples = [_items(model, head, batch) for _ in range(num_samples)]
            batches.append(_compare(head, batch, own, [torch.stack(part) for part in zip(*samples, strict=True)]))
    if not batches:
        raise InputError("the data set is empty, expected rows to predict")
    return Agreement(*(np.concatenate(values) for values in zip(*batches, strict=True)))


def perturbation_agreement(
    model: nn.Module,
    dataset: Any,
    tokenizer: Any,
    *,
    text_columns: Sequence[str] = ("text",),
    kinds: Sequence[str] | Mapping[str, Edit] = tuple(EDITS),
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
) -> EditAgreement:
    """How steady a sequence classifier (or regression) is against small edits of its text.

    Every kind of edit is made once to the first text of every example, where it fits. That the label stays the same is
    assumed, not known: an edit can turn a meaning round (a dropped "n" of "not"), so look at `edits`.

    Args:
        model: a model for sequence classification.
        dataset: rows with texts.
        tokenizer: the model's.
        text_columns: names of the one or two columns of text; the first is edited.
        kinds: names in `EDITS`, or functions of your own by name.
        batch_size: texts per batch.
        max_length: longer texts are cut, in tokens; default the tokenizer's.
        seed: of the edits.

    Raises:
        InputError: an unknown kind of edit, a missing column, or a model that is not of this kind.
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

    def predict(pairs: list[tuple[str, ...]]) -> tuple[Head, torch.Tensor]:
        logits = []
        for start in range(0, len(pairs), batch_size):
            columns = zip(*pairs[start : start + batch_size], strict=True)
            options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
            batch = dict(tokenizer(*map(list, columns), **options))
            batch["labels"] = torch.full((len(batch["input_ids"]),), -100)
            head = head_of(model, batch)
            if head.tokens or len(head.outputs) > 1:
                raise InputError(f"{type(model).__name__}: edits are compared for sequence classification alone")
            (items,) = _items(model, head, {key: value.to(device) for key, value in batch.items()})
            logits.append(items.cpu())
        return head, torch.cat(logits)

    device = next(model.parameters()).device
    with _as_it_was(model):
        model.eval()
        head, own = predict(texts)
        edited = predict([(text, *texts[index][1:]) for index, _, text in made])[1] if made else own[:0]
    before = own[torch.tensor([index for index, _, _ in made], dtype=torch.long)]
    divergence = _divergence(head, torch.stack([before, edited]))
    flips = _differ(head, before, edited)
    index = np.array([index for index, _, _ in made], dtype=int)
    kind_of = np.array([kind for _, kind, _ in made])

    def over(chosen: np.ndarray) -> Agreement:
        items = np.bincount(index[chosen], minlength=len(rows))
        return Agreement(
            _mean_by(index[chosen], flips[chosen], items), _mean_by(index[chosen], divergence[chosen], items), items
        )

    records = (
        EditedText(i, kind, texts[i][0], text, bool(flip == 1), float(value))
        for (i, kind, text), flip, value in zip(made, flips, divergence, strict=True)
    )
    every = np.ones(len(made), dtype=bool)
    return EditAgreement(over(every), {kind: over(kind_of == kind) for kind in functions}, tuple(records))


def expected_calibration_error(probabilities: Any, labels: Any, num_bins: int = 15) -> float:
    """How far a classifier's confidence is from its accuracy, over bins of confidence of equal width.

    Args:
        probabilities: (N, C).
        labels: (N,) class ids; -100 is left out.
        num_bins: number of bins.

    Returns:
        The mean over examples of |accuracy - mean confidence| of their bin, in [0, 1].

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    confidence, right = _confidence(probabilities, labels)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in np.unique(bins)]
    return float(sum(gaps) / len(confidence))


def mean_confidence(probabilities: Any, labels: Any) -> float:
    """Mean probability of the predicted class, over the labelled rows of (N, C) probabilities."""
    return float(_confidence(probabilities, labels)[0].mean())


def _confidence(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise InputError(f"expected probabilities (N, C) and labels (N,), got {probabilities.shape} and {labels.shape}")
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3) or (probabilities < 0).any():
        raise InputError("expected probabilities, rows of which sum to 1; apply softmax to logits first")
    probabilities, labels = probabilities[labels != -100], labels[labels != -100]
    if not len(labels):
        raise InputError("no row has a label, expected some to compare with")
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)


# ---- Running the model ----


def _batches(model: nn.Module, dataset: Any, collate: Callable | None, size: int) -> Iterator[dict[str, Any]]:
    known = inspect.signature(model.forward).parameters
    anything = "kwargs" in known and len(known) <= 2  # a wrapper, which says nothing of what is inside
    device = next(model.parameters()).device

    def taken(rows: list[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        wanted = [{k: v for k, v in row.items() if anything or k in known or k in _ROW_LABELS} for row in rows]
        return (collate or default_data_collator)(wanted)

    for batch in DataLoader(dataset, batch_size=size, collate_fn=taken):
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        yield batch if any(key in batch for key in _ROW_LABELS) else {**batch, "labels": _no_labels(model, batch)}


def _no_labels(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Labels that mark nothing as labelled: whole rows, or all their tokens."""
    main = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    rows = torch.full((len(main),), -100, device=main.device)
    return torch.full_like(main, -100) if head_of(model, {**batch, "labels": rows}).tokens else rows


@torch.no_grad()
def _items(model: nn.Module, head: Head, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """The logits of the items that count, (n, C) in float64, of each part of the head."""
    # Without labels the model computes no loss; an encoder-decoder makes its decoder's inputs of them
    keep = head.labels if head.name == SEQ2SEQ.name and batch.get("decoder_input_ids") is None else ()
    outputs = model(**{key: value for key, value in batch.items() if key not in _ROW_LABELS or key in keep})
    logits = {name: (outputs[name],) for name in head.outputs}
    return [part.counted(1)[0][0].double() for part in head.items(logits, batch, 1)]


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _dropout_on(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()


# ---- Comparing ----


def _compare(
    head: Head, batch: Mapping[str, Any], own: list[torch.Tensor], samples: list[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(flips, divergence, items) per row; `own` is (n, C) for each part, `samples` (m, n, C)."""
    rows, size = head.rows_of_items(batch)
    rows = rows.cpu().numpy()
    items, parts = np.bincount(rows, minlength=size), []
    for z, drawn in zip(own, samples, strict=True):
        flips = np.mean([_differ(head, z, sample) for sample in drawn], axis=0)
        parts.append([_mean_by(rows, values, items) for values in (flips, _divergence(head, drawn))])
    flips, divergence = np.mean(parts, axis=0)
    return flips, divergence, items


def _divergence(head: Head, logits: torch.Tensor) -> np.ndarray:
    """Mean over pairs of the m predictions (m, n, C), per item."""
    if head.problem == "single_label":
        none = torch.full(logits.shape[1:2], reference.IGNORE_INDEX, device=logits.device)
        return reference.single_label(logits, none, 0.0)[1].cpu().numpy()
    function = reference.multi_label if head.problem == "multi_label" else reference.regression
    return function(logits, torch.zeros_like(logits[0]))[1].cpu().numpy()


def _differ(head: Head, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Whether two predictions (n, C) differ: 1, 0, or NaN for a regression."""
    if head.problem == "regression":
        return np.full(len(a), np.nan)
    if head.problem == "multi_label":
        return ((a > 0) != (b > 0)).any(-1).double().cpu().numpy()
    return (a.argmax(-1) != b.argmax(-1)).double().cpu().numpy()


def _mean_by(rows: np.ndarray, values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Mean of the values of each row's items; NaN for a row without."""
    sums = np.bincount(rows, weights=values, minlength=len(items))
    return np.divide(sums, items, out=np.full(len(items), np.nan), where=items > 0)
