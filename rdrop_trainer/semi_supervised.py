"""Unlabeled rows in every training batch (semi-supervised R-Drop).

The trainer's sampler still chooses the labeled rows. Each of its indices brings the indices of some unlabeled rows
along, and the collator gets the rows of both. The labeled rows keep the order of a run without unlabeled rows, where
the seed alone decides that order (`group_by_length` draws it from the random state that dropout also uses).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import TrainerCallback
from transformers.utils import logging

from ._mixin_base import MixinBase
from .head import Head
from .losses.reference import IGNORE_INDEX
from .objective.head_of import head_of, is_ctc
from .objective.heads import ROWS
from .objective.training import Training
from .training_args import RDropArguments
from .unlabeled_rows import (
    SemiSupervisedCollator,
    SemiSupervisedDataset,
    SemiSupervisedSampler,
    check_inputs,
    check_rows,
    row_sampler,
)

logger = logging.get_logger(__name__)


class UnlabeledRowsMixin(MixinBase):
    """The part of `RDropMixin` that makes semi-supervised training batches."""

    _training: Callable[[], Training]

    def _set_unlabeled_dataset(self, unlabeled_dataset: Any) -> None:
        self.unlabeled_dataset = unlabeled_dataset
        if unlabeled_dataset is not None:
            check_rows("unlabeled_dataset", unlabeled_dataset)
            self.add_callback(SetSamplerEpoch)

    def get_train_dataloader(self) -> DataLoader:
        """`Trainer.get_train_dataloader`, whose batches also hold rows of `unlabeled_dataset`."""
        if self.unlabeled_dataset is None or self.train_dataset is None:
            return super().get_train_dataloader()
        settings = RDropArguments.of(self.args)
        if settings.rdrop_alpha == 0:
            logger.warning_once("rdrop_alpha is 0: the rows of unlabeled_dataset have no effect and are left out.")
            return super().get_train_dataloader()
        if settings.rdrop_row_share < 1:
            raise ValueError(
                f"rdrop_row_share={settings.rdrop_row_share:g} would leave unlabeled rows out of the divergence, which "
                "is all they are for: leave it at 1, or lower rdrop_unlabeled_ratio."
            )
        labeled, collator = self.train_dataset, self.data_collator
        training = self._training()
        if is_ctc(training.base):
            raise ValueError(
                f"unlabeled_dataset does not fit speech recognition by CTC, where a row of {IGNORE_INDEX} alone is an "
                "empty transcript, silence: leave it out."
            )
        check_rows("train_dataset", labeled)
        self._set_signature_columns_if_needed()
        check_inputs(labeled, self.unlabeled_dataset, self._signature_columns)
        # `Trainer` does not see the columns of the rows inside
        used = [
            self._remove_unused_columns(rows) if isinstance(rows, datasets.Dataset) else rows
            for rows in (labeled, self.unlabeled_dataset)
        ]
        both = SemiSupervisedDataset(*used)
        _check_head(training, both.label_level)
        self.train_dataset = both
        self.data_collator = SemiSupervisedCollator(self._get_collator_with_removed_columns(collator))
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = labeled, collator

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if not isinstance(train_dataset, SemiSupervisedDataset):
            return super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy == "batch_rebalance":
            raise ValueError("unlabeled_dataset does not go with train_sampling_strategy='batch_rebalance'.")
        sampler = super()._get_train_sampler(train_dataset.labeled)
        if self.accelerator.use_seedable_sampler:
            sampler = _as_seedable(sampler, self.args.data_seed)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        ratio = RDropArguments.of(self.args).rdrop_unlabeled_ratio
        return SemiSupervisedSampler(sampler, len(train_dataset.unlabeled), ratio, seed)


class SetSamplerEpoch(TrainerCallback):
    """Sets the sampler's epoch. accelerate does not reach the sampler of a resumed training with several processes."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = row_sampler(train_dataloader)
        if isinstance(sampler, SemiSupervisedSampler):
            sampler.set_epoch(int(state.epoch))


def _check_head(training: Training, label_level: str) -> None:
    """Refuse a model for which -100 does not mark a row without a label, or marks one that has no effect."""
    labels = torch.full((1,) if label_level == "row" else (1, 1), IGNORE_INDEX)
    named = training.heads or [Head(problem=training.problem)]
    if [head.labels for head in named] != ["labels"]:
        raise ValueError(
            "unlabeled_dataset marks rows without a label in `labels`, but rdrop_heads names "
            f"{', '.join(head.labels for head in named)}: leave it out."
        )
    head = head_of(training.base, {"labels": labels}, named[0].problem, training.own_loss)
    # A loss of the user's may leave rows without a label out
    problem = head.problem if head.own_loss else head.task_problem
    if problem == "regression" or (problem == "multi_label" and not head.own_loss):
        raise ValueError(
            f"unlabeled_dataset does not fit {ROWS[problem].name}, which takes {IGNORE_INDEX}, the mark of an "
            "unlabeled row, for a value: leave it out, or train a classifier with integer labels."
        )
    if label_level == "token" and head.tokens and head.unlabeled_mask is None:
        raise ValueError(
            f"unlabeled_dataset would have no effect on {head.name}, where every token that is to be predicted has "
            "its label: add the texts to train_dataset."
        )


def _as_seedable(sampler: Any, data_seed: int | None) -> Sampler[int]:
    """The sampler that accelerate puts in the place of a random one, which it does not see inside another sampler."""
    if not isinstance(sampler, RandomSampler):
        return sampler
    return SeedableRandomSampler(
        data_source=sampler.data_source,
        replacement=sampler.replacement,
        num_samples=sampler.num_samples,
        generator=sampler.generator,
        data_seed=data_seed,
    )
