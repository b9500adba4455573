"""From rows of a task to the inputs of a model, and from its predictions back to labels of the task."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from ..errors import InputError
from .examples import IGNORED
from .metrics import entities_of, load_metric
from .tasks import Task

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelMap:
    """Label ids of a task and of a model, matched by name.

    Attributes:
        to_model: the model's id of each id of the task.
        to_task: the task's id of each id of the model.
    """

    to_model: tuple[int, ...]

    @property
    def to_task(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.argsort(self.to_model))


def match_labels(task: Task, id2label: Mapping[int, str]) -> LabelMap | None:
    """Match the label names of a model and a task, upper and lower case alike; None if the sets of names differ.

    A model whose labels have no names ("LABEL_0", ...) is assumed to follow the task's order, with a warning.
    """
    names = [str(name) for _, name in sorted(id2label.items())]
    if len(names) != len(task.labels):
        return None
    if are_nameless(names):
        order = ", ".join(task.labels[:8]) + ("..." if len(task.labels) > 8 else "")
        logger.warning(f"The model's labels have no names ({names[0]}, ...); taken in {task.name}'s order: {order}")
        return LabelMap(tuple(range(len(names))))
    spellings = {spelling.lower(): name for spelling, name in task.label_aliases.items()}
    # The exact spelling comes first: labels of a user may differ in case alone
    found = [task.label_aliases.get(name, spellings.get(name.lower())) for name in names]
    if set(found) != set(task.labels):
        return None
    return LabelMap(tuple(found.index(name) for name in task.labels))


def are_nameless(names: Sequence[str]) -> bool:
    """Whether label names are the default names of a configuration: LABEL_0, LABEL_1, ..."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def make_features(
    dataset: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    labels: LabelMap | None,
    max_length: int,
    pad_to_max_length: bool = False,
) -> datasets.Dataset:
    """Tokenise rows of a task.

    Args:
        dataset: rows as `load_task` returns them.
        task: the task.
        tokenizer: for token tasks it must be a fast one.
        labels: how the task's label ids become the model's; None for a regression.
        max_length: longer inputs are cut.
        pad_to_max_length: pad here, instead of per batch.

    Returns:
        Columns of the tokenizer and `labels`: ids of the model, -100 where there is no label (numbers for a
        regression). Token tasks label the first token of each character, and `char_of_token` says which character a
        token begins (-1: none).
    """
    options = {
        "truncation": True,
        "max_length": max_length,
        "padding": "max_length" if pad_to_max_length else False,
    }

    def encode_rows(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in task.text_columns), **options)
        if task.is_regression:
            encoded["labels"] = batch["label"]
        else:
            encoded["labels"] = [labels.to_model[i] if i >= 0 else IGNORED for i in batch["label"]]
        return dict(encoded)

    def encode_characters(batch: dict[str, list]) -> dict[str, list]:
        # Character by character, as the official baseline does, so that the tag of every character can be predicted
        encoded = tokenizer([list(text) for text in batch["text"]], is_split_into_words=True, **options)
        first_tokens = [_first_tokens(encoded.word_ids(row)) for row in range(len(batch["text"]))]
        encoded["char_of_token"] = first_tokens
        encoded["labels"] = [
            [labels.to_model[tags[c]] if c >= 0 and tags else IGNORED for c in chars]
            for chars, tags in zip(first_tokens, batch["labels"], strict=True)
        ]
        return dict(encoded)

    if task.head == "tokens" and not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell which token belongs to which character; {task.name} needs a fast "
            "tokenizer (a folder with tokenizer.json)."
        )
    encode = encode_characters if task.head == "tokens" else encode_rows
    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenising")


def _first_tokens(words: Sequence[int | None]) -> list[int]:
    """For each token the character that begins with it, or -1."""
    return [-1 if w is None or (i > 0 and words[i - 1] == w) else w for i, w in enumerate(words)]


def logits_of(predictions: Any) -> Any:
    """The logits, which come first where a model returns more, such as the states of its encoder."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def decode_labels(task: Task, predictions: Any, labels: LabelMap | None) -> np.ndarray:
    """Label ids of the task (numbers for a regression) from a sequence model's logits, (N, C)."""
    logits = logits_of(predictions)
    if task.is_regression:
        return np.asarray(logits, dtype=np.float64).reshape(-1)
    return np.asarray(labels.to_task)[logits.argmax(-1)]


def decode_tags(
    task: Task, predictions: Any, labels: LabelMap, features: datasets.Dataset, rows: datasets.Dataset
) -> list[list[str]]:
    """One tag name per character of each row, from a token model's logits, (N, T, C).

    Characters without a token (blanks, or cut off) get "O", unless an entity continues after them.
    """
    logits = logits_of(predictions)
    names = [task.labels[i] for i in labels.to_task]
    decoded = []
    for scores, chars, text in zip(logits, features["char_of_token"], rows["text"], strict=True):
        tags: list[str | None] = [None] * len(text)
        for token, char in enumerate(chars):
            if char >= 0:
                tags[char] = names[scores[token].argmax()]
        for i, tag in enumerate(tags):
            if tag is None:
                following = next((t for t in tags[i + 1 :] if t is not None), "O")
                goes_on = i > 0 and following.startswith("I-") and tags[i - 1][2:] == following[2:]
                tags[i] = following if goes_on else "O"
        decoded.append(tags)
    return decoded


def predict_spans(tags: Sequence[Sequence[str]]) -> list[list[tuple[str, int, int]]]:
    """The entities of each row of tags: (type, start, inclusive end)."""
    return [entities_of(list(row)) for row in tags]


def make_compute_metrics(
    task: Task, labels: LabelMap | None, features: datasets.Dataset, rows: datasets.Dataset
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` of a trainer that evaluates `features`, which were made of `rows`, in the same order.

    The scores are those of the task, on the task's labels. Token tasks are scored on whole texts, so entities that were
    cut off count as missed.
    """
    metric = load_metric(task)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        if task.head == "tokens":
            references = [[task.labels[i] for i in tags] for tags in rows["labels"]]
            decoded = decode_tags(task, prediction.predictions, labels, features, rows)
            return metric.compute(predictions=decoded, references=references)
        predictions, references = decode_labels(task, prediction.predictions, labels), np.asarray(rows["label"])
        scored = labeled(task, rows)
        return metric.compute(predictions=predictions[scored], references=references[scored])

    return compute


def labeled(task: Task, rows: datasets.Dataset) -> np.ndarray:
    """Which rows have a label: a mask of (N,). The others have no score."""
    references = np.asarray(rows["label"])
    return ~np.isnan(references) if task.is_regression else references >= 0


def without_seen_texts(unlabeled: datasets.Dataset, others: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """The unlabeled rows whose text is in none of the other data sets; of equal texts the first."""
    columns = [c for c in unlabeled.column_names if c not in ("idx", "label", "labels")]

    def texts(dataset):
        return zip(*(dataset[column] for column in columns), strict=True)

    seen = {text for dataset in others for text in texts(dataset)}
    keep = []
    for i, text in enumerate(texts(unlabeled)):
        if text not in seen:
            seen.add(text)
            keep.append(i)
    return unlabeled.select(keep)
