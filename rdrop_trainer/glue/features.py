"""From rows of a task to the inputs of a model, and from its predictions back to labels of the task.

What makes features, here and for the other heads, takes rows as `load_task` returns them. Inputs of more than
`max_length` tokens are cut, and `padding="max_length"` pads them at once, instead of batch by batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from .examples import IGNORED
from .task import Task

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
    padding: str | bool = False,
) -> datasets.Dataset:
    """Tokenise rows of a classification or a regression.

    Args:
        labels: how the task's label ids become the model's; None for a regression.

    Returns:
        Columns of the tokenizer and `labels`: ids of the model, -100 where there is no label (numbers for a
        regression).
    """
    options = {"truncation": True, "max_length": max_length, "padding": padding}

    def encode_rows(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in task.text_columns), **options)
        if task.is_regression:
            encoded["labels"] = batch["label"]
        else:
            encoded["labels"] = [labels.to_model[i] if i >= 0 else IGNORED for i in batch["label"]]
        return dict(encoded)

    return dataset.map(encode_rows, batched=True, remove_columns=dataset.column_names, desc="Tokenising")


def decode_labels(task: Task, logits: Any, labels: LabelMap | None) -> np.ndarray:
    """Label ids of the task (numbers for a regression) from a sequence model's logits, (N, C)."""
    if task.is_regression:
        return np.asarray(logits, dtype=np.float64).reshape(-1)
    return np.asarray(labels.to_task)[logits.argmax(-1)]


def without_seen_texts(unlabeled: datasets.Dataset, others: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """The unlabeled rows whose text is in none of the other data sets; of equal texts the first."""
    columns = [c for c in unlabeled.column_names if c not in ("idx", "label", "labels")]

    def texts(dataset):
        whole = (dataset[column] for column in columns)
        return zip(
            *((tuple(text) if isinstance(text, list) else text for text in column) for column in whole), strict=True
        )

    seen = {text for dataset in others for text in texts(dataset)}
    keep = []
    for i, text in enumerate(texts(unlabeled)):
        if text not in seen:
            seen.add(text)
            keep.append(i)
    return unlabeled.select(keep)
