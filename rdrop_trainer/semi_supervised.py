"""Unlabeled rows in every training batch (semi-supervised R-Drop): which rows, in which order, with which labels.

The trainer's sampler goes on choosing the labeled rows; each of its indices brings the indices of some unlabeled rows
along, and the collator gets the rows of both. The labeled rows come in the order of a run without unlabeled ones,
where that order depends on the seed alone (`group_by_length` draws it from the random state that dropout moves).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler
from transformers import TrainerCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .losses.reference import IGNORE_INDEX
from .objective.behind import TrainerBehind
from .objective.heads import base_model, head_of
from .training_args import RDropArguments

logger = logging.get_logger(__name__)

LABEL_KEYS = ("labels", "label", "label_ids")
MixedIndex = tuple[int, tuple[int, ...]]
# So many labeled rows are looked at to learn whether labels stand token by token
_ROWS_LOOKED_AT = 16


class UnlabeledRowsMixin(TrainerBehind):
    """The part of `RDropMixin` that makes the training batches of labeled and unlabeled rows."""

    def _start_mixing(self, unlabeled_dataset: Any) -> None:
        self.unlabeled_dataset = unlabeled_dataset
        if unlabeled_dataset is not None:
            _check_rows("unlabeled_dataset", unlabeled_dataset)
            self.add_callback(EpochOfSampler)

    def get_train_dataloader(self) -> DataLoader:
        """`Trainer.get_train_dataloader`, with the rows of `unlabeled_dataset` mixed in."""
        if self.unlabeled_dataset is None or self.train_dataset is None:
            return super().get_train_dataloader()
        if RDropArguments.of(self.args).rdrop_alpha == 0:
            logger.warning_once("rdrop_alpha is 0: the rows of unlabeled_dataset have no effect and are left out.")
            return super().get_train_dataloader()
        labeled, collator = self.train_dataset, self.data_collator
        # `Trainer` does not see the columns of the rows inside
        used = [
            self._remove_unused_columns(rows) if isinstance(rows, datasets.Dataset) else rows
            for rows in (labeled, self.unlabeled_dataset)
        ]
        mixed = MixedDataset(*used)
        if mixed.of_tokens:
            self._check_head()
        self.train_dataset = mixed
        self.data_collator = MixedCollator(self._get_collator_with_removed_columns(collator))
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = labeled, collator

    def _check_head(self) -> None:
        head = head_of(
            base_model(self.accelerator.unwrap_model(self.model)), {"labels": torch.full((1, 1), IGNORE_INDEX)}
        )
        if head.tokens and head.unlabeled_mask is None:
            raise ValueError(
                f"unlabeled_dataset would have no effect on {head.name}, where every token that is to be predicted has "
                "its label: add the texts to train_dataset."
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if not isinstance(train_dataset, MixedDataset):
            return super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy == "batch_rebalance":
            raise ValueError("unlabeled_dataset does not go with train_sampling_strategy='batch_rebalance'.")
        sampler = super()._get_train_sampler(train_dataset.labeled)
        if self.accelerator.use_seedable_sampler:
            sampler = _as_seedable(sampler, self.args.data_seed)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        ratio = RDropArguments.of(self.args).rdrop_unlabeled_ratio
        return MixedSampler(sampler, len(train_dataset.unlabeled), ratio, seed)


class MixedDataset(Dataset):
    """Labeled and unlabeled rows side by side; its length is that of the labeled ones.

    `dataset[i, (j, k)]` is a list of row mappings: labeled row i, then unlabeled rows j and k, whose labels are
    replaced by -100: one for a row that has one label, one per entry of `input_ids` where tokens have labels.

    Args:
        labeled: the training data, map-style, with integer labels.
        unlabeled: map-style rows of the same inputs; whatever labels they have are not looked at. Where the labels are
            another sequence than the input (sequence to sequence) they must be there, and all -100.

    Raises:
        ValueError: data without a length, or labels for which there is no mark for "unlabeled".
    """

    def __init__(self, labeled: Any, unlabeled: Any):
        _check_rows("train_dataset", labeled)
        _check_rows("unlabeled_dataset", unlabeled)
        self.labeled, self.unlabeled = labeled, unlabeled
        self.label_key, self.of_tokens, self._of_targets = _kind_of_labels(labeled)
        self._without_label(unlabeled[0])

    def __len__(self) -> int:
        return len(self.labeled)

    def __getitem__(self, index: MixedIndex) -> list[Mapping[str, Any]]:
        if not isinstance(index, tuple):
            raise ValueError(
                "unlabeled_dataset needs the trainer's own sampler: a get_train_dataloader that does not use "
                "_get_train_sampler cannot mix unlabeled rows in."
            )
        labeled, unlabeled = index
        return [self.labeled[labeled], *(self._without_label(self.unlabeled[i]) for i in unlabeled)]

    def _without_label(self, row: Mapping[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in row.items() if key not in LABEL_KEYS}
        if self._of_targets:
            own = row.get(self.label_key)
            if own is None or bool((torch.as_tensor(own) != IGNORE_INDEX).any()):
                raise ValueError(
                    f"The training rows' {self.label_key} are another sequence than their input_ids, so each row of "
                    f"unlabeled_dataset must bring {self.label_key} of its own, all {IGNORE_INDEX}, and the inputs of "
                    "the decoder."
                )
            return {**rest, self.label_key: own}
        return {**rest, self.label_key: [IGNORE_INDEX] * len(row["input_ids"]) if self.of_tokens else IGNORE_INDEX}


class MixedSampler(Sampler[MixedIndex]):
    """Around a sampler of labeled rows: each index with the indices of the unlabeled rows that go along.

    Labeled item k of an epoch (from 0) brings floor((k + 1) * ratio) - floor(k * ratio) rows, so any aligned stretch
    of items holds the ratio. The unlabeled rows come from a stream of permutations, a new one for every round: every
    row is seen before any is seen again, and which rows an item brings depends on seed, epoch and k alone. A resumed
    run therefore goes on with the same rows, and processes, which take different k, with different ones.

    Args:
        labeled: the sampler of labeled rows, which has a length.
        unlabeled_rows: how many there are.
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

    def __iter__(self) -> Iterator[MixedIndex]:
        start = self.epoch * int(len(self.labeled) * self.ratio)
        for k, index in enumerate(self.labeled):
            first, last = int(k * self.ratio), int((k + 1) * self.ratio)
            yield index, tuple(self._row(start + i) for i in range(first, last))

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose rows are drawn next."""
        self.epoch = epoch
        if hasattr(self.labeled, "set_epoch"):
            self.labeled.set_epoch(epoch)

    def _row(self, position: int) -> int:
        round_, place = divmod(position, self.unlabeled_rows)
        if round_ != self._round:
            self._round = round_
            self._order = np.random.default_rng([self.seed, round_]).permutation(self.unlabeled_rows)
        return int(self._order[place])

    # accelerate keeps the generator of an unseeded sampler equal over processes, and looks for it here
    @property
    def generator(self) -> torch.Generator | None:
        return getattr(self.labeled, "generator", None)

    @generator.setter
    def generator(self, generator: torch.Generator) -> None:
        self.labeled.generator = generator


class MixedCollator:
    """Around a collator of rows: of all rows of a batch of `MixedDataset`, the labeled ones first."""

    def __init__(self, collator: Callable[[list[Mapping[str, Any]]], Any]):
        self.collator = collator

    def __call__(self, items: Sequence[list[Mapping[str, Any]]]) -> Any:
        return self.collator([item[0] for item in items] + [row for item in items for row in item[1:]])


class EpochOfSampler(TrainerCallback):
    """Tells a sampler the epoch: accelerate does not reach it behind a resumed loader of several processes."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = train_dataloader
        while sampler is not None and not isinstance(sampler, MixedSampler):
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))
        if sampler is not None:
            sampler.set_epoch(int(state.epoch))


def _as_seedable(sampler: Any, data_seed: int | None) -> Sampler[int]:
    """What accelerate makes of a random sampler that it sees; behind another sampler it would not see it."""
    if not isinstance(sampler, RandomSampler):
        return sampler
    return SeedableRandomSampler(
        data_source=sampler.data_source,
        replacement=sampler.replacement,
        num_samples=sampler.num_samples,
        generator=sampler.generator,
        data_seed=data_seed,
    )


def _check_rows(name: str, dataset: Any) -> None:
    """Refuse data whose rows cannot be chosen by their number, and data without rows."""
    if isinstance(dataset, IterableDataset) or not has_length(dataset):
        raise ValueError(
            f"unlabeled_dataset needs data sets whose rows can be chosen by number, but {name} is a "
            f"{type(dataset).__name__} without length."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty.")


def _kind_of_labels(labeled: Any) -> tuple[str, bool, bool]:
    """The key of the labels; whether they stand token by token; whether they are another sequence than the input."""
    first = labeled[0]
    key = next((key for key in LABEL_KEYS if first.get(key) is not None), None)
    if key is None:
        raise ValueError(
            f"unlabeled_dataset needs training rows with {' or '.join(LABEL_KEYS)}, got only: {', '.join(first)}."
        )
    label = torch.as_tensor(first[key])
    if label.is_floating_point():
        raise ValueError(
            f"unlabeled_dataset needs integer labels: among the numbers in {key} (regression or multi-label "
            "classification) there is no mark for an unlabeled row."
        )
    if label.dim() == 0:
        return key, False, False
    rows = [labeled[i] for i in range(min(_ROWS_LOOKED_AT, len(labeled)))]
    token_by_token = all("input_ids" in row and len(row["input_ids"]) == len(row[key]) for row in rows)
    return key, token_by_token, not token_by_token
