"""Labeled and unlabeled rows together: a data set, its sampler, its collator, and what the rows must be like."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler
from transformers.trainer_utils import has_length

from .losses.reference import IGNORE_INDEX

LABEL_KEYS = ("labels", "label", "label_ids")
SemiSupervisedIndex = tuple[int, tuple[int, ...]]  # of a labeled row, and of the unlabeled rows that go along
_NUM_CHECKED_ROWS = 16  # labeled rows that show what the labels belong to


class SemiSupervisedDataset(Dataset):
    """A labeled and an unlabeled data set; its length is that of the labeled one.

    `dataset[i, (j, k)]` is a list of rows: labeled row i, then unlabeled rows j and k. The label of an unlabeled row is
    -100: one for a row with one label, one per entry of `input_ids` where tokens have labels.

    Args:
        labeled: the training data, with integer labels; both must pass `check_rows`.
        unlabeled: rows with the same inputs. Their labels are not read, with one exception: where the labels
            are another sequence than the input (sequence to sequence), the rows must have labels that are all -100.

    Attributes:
        label_key: the key of the labels.
        label_level: what has a label: a "row", a "token" of the input, or a "target", a token of another sequence.

    Raises:
        ValueError: labels that cannot be marked as missing.
    """

    def __init__(self, labeled: Any, unlabeled: Any):
        self.labeled, self.unlabeled = labeled, unlabeled
        self.label_key = _label_key(labeled[0])
        self.label_level = _label_level(labeled, self.label_key)
        self._without_label(unlabeled[0])

    def __len__(self) -> int:
        return len(self.labeled)

    def __getitem__(self, index: SemiSupervisedIndex) -> list[Mapping[str, Any]]:
        if not isinstance(index, tuple):
            raise ValueError(
                "unlabeled_dataset needs the trainer's own sampler: a get_train_dataloader that does not use "
                "_get_train_sampler cannot add unlabeled rows to the batches."
            )
        labeled, unlabeled = index
        return [self.labeled[labeled], *(self._without_label(self.unlabeled[i]) for i in unlabeled)]

    def _without_label(self, row: Mapping[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in row.items() if key not in LABEL_KEYS}
        label: Any = IGNORE_INDEX
        if self.label_level == "token":
            label = [IGNORE_INDEX] * len(row["input_ids"])
        elif self.label_level == "target":
            label = row.get(self.label_key)
            if label is None or bool((torch.as_tensor(label) != IGNORE_INDEX).any()):
                raise ValueError(
                    f"The training rows' {self.label_key} are another sequence than their input_ids, so each row of "
                    f"unlabeled_dataset must bring {self.label_key} of its own, all {IGNORE_INDEX}, and the inputs of "
                    "the decoder."
                )
        return {**rest, self.label_key: label}


class SemiSupervisedSampler(Sampler[SemiSupervisedIndex]):
    """A sampler of labeled rows, each index with the indices of the unlabeled rows that go along.

    Labeled item k of an epoch (from 0) brings floor((k + 1) * ratio) - floor(k * ratio) unlabeled rows, so every batch
    comes as close to the ratio as whole rows allow. The unlabeled rows come round by round, each round a new
    permutation: every row is seen before any is seen again. Seed, epoch and k alone decide which rows an item brings.
    So a resumed run goes on with the same rows, and processes, which take different k, get different rows.

    Args:
        ratio: unlabeled rows per labeled row, > 0.
        seed: of the permutations.
    """

    def __init__(self, labeled: Any, unlabeled_rows: int, ratio: float, seed: int):
        self.labeled, self.unlabeled_rows, self.seed = labeled, unlabeled_rows, seed
        self.ratio = Fraction(ratio).limit_denominator(10**6)  # 0.29 * 100 is less than 29
        self.epoch = 0
        self._round, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labeled)

    def __iter__(self) -> Iterator[SemiSupervisedIndex]:
        start = self.epoch * int(len(self.labeled) * self.ratio)
        for k, index in enumerate(self.labeled):
            first, last = int(k * self.ratio), int((k + 1) * self.ratio)
            yield index, tuple(self._row(start + i) for i in range(first, last))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose rows are drawn next."""
        self.epoch = epoch
        if hasattr(self.labeled, "set_epoch"):
            self.labeled.set_epoch(epoch)

    def _row(self, position: int) -> int:
        round_, place = divmod(position, self.unlabeled_rows)
        if round_ != self._round:
            self._round = round_
            self._order = np.random.default_rng([self.seed, round_]).permutation(self.unlabeled_rows)
        return int(self._order[place])

    # accelerate gives the generator of an unseeded sampler the same state on all processes, and looks for it here
    @property
    def generator(self) -> torch.Generator | None:
        return getattr(self.labeled, "generator", None)

    @generator.setter
    def generator(self, generator: torch.Generator) -> None:
        self.labeled.generator = generator


class SemiSupervisedCollator:
    """A collator of rows, applied to all rows of a batch of `SemiSupervisedDataset`: first the labeled ones."""

    def __init__(self, collator: Callable[[list[Mapping[str, Any]]], Any]):
        self.collator = collator

    def __call__(self, items: Sequence[list[Mapping[str, Any]]]) -> Any:
        return self.collator([item[0] for item in items] + [row for item in items for row in item[1:]])


def row_sampler(dataloader: Any) -> Any:
    """The sampler that draws a data loader's rows, without the batch samplers of PyTorch and accelerate around it."""
    sampler, below = None, dataloader
    while below is not None:
        sampler = below
        below = getattr(sampler, "batch_sampler", None)
        if below is None:
            below = getattr(sampler, "sampler", None)
    return sampler


def check_rows(name: str, dataset: Any) -> None:
    """Refuse a data set without a length, whose rows cannot be chosen by number, and one without rows."""
    if isinstance(dataset, IterableDataset) or not has_length(dataset):
        raise ValueError(
            f"unlabeled_dataset needs data sets whose rows can be chosen by number, but {name} is a "
            f"{type(dataset).__name__} without length."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty.")
    if isinstance(dataset, datasets.DatasetDict):
        raise ValueError(f"{name} is a DatasetDict of splits ({', '.join(dataset)}): choose one of them.")
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"{name} is a {type(dataset).__name__} of columns; expected rows, as datasets.Dataset.from_dict makes them."
        )
    first = dataset[0]  # type: ignore[index]
    if not isinstance(first, Mapping):
        raise ValueError(
            f"A row of {name} is a {type(first).__name__}; expected a mapping of the model's inputs (input_ids, "
            f"...), so tokenize texts first: [tokenizer(text, truncation=True) for text in texts]."
        )


def check_inputs(labeled: Any, unlabeled: Any, known: Collection[str]) -> None:
    """Refuse unlabeled rows without the inputs that the training rows have, such as texts that are not tokenized."""
    inputs = [key for key in labeled[0] if key not in LABEL_KEYS and key in known]
    if missing := [key for key in inputs if key not in unlabeled[0]]:
        raise ValueError(
            f"The rows of unlabeled_dataset lack {', '.join(missing)}, which those of train_dataset have; they hold "
            f"only: {', '.join(unlabeled[0])}. Make them in the same way: texts must be tokenized."
        )


def _label_key(row: Mapping[str, Any]) -> str:
    key = next((key for key in LABEL_KEYS if row.get(key) is not None), None)
    if key is None:
        raise ValueError(
            f"unlabeled_dataset needs training rows with {' or '.join(LABEL_KEYS)}, got only: {', '.join(row)}."
        )
    return key


def _label_level(labeled: Any, key: str) -> Literal["row", "token", "target"]:
    label = torch.as_tensor(labeled[0][key])
    if label.is_floating_point():
        raise ValueError(
            f"unlabeled_dataset needs integer labels: among the numbers in {key} (regression or multi-label "
            "classification) there is no mark for an unlabeled row."
        )
    if label.dim() == 0:
        return "row"
    rows = [labeled[i] for i in range(min(_NUM_CHECKED_ROWS, len(labeled)))]
    aligned = all("input_ids" in row and len(row["input_ids"]) == len(row[key]) for row in rows)
    return "token" if aligned else "target"
