"""What the values of labels tell of a head, and which ones a head does not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.utils import logging

from ..head import Head
from ..losses import devices
from ..losses.reference import IGNORE_INDEX
from .ctc import CTCHead
from .head_of import config_value, has_listed_head
from .heads import ROWS, SINGLE_LABEL, TOKENS, PredictionHead
from .items import Items
from .lm_head import vocabulary_size
from .training import Training

logger = logging.get_logger(__name__)


def with_values(
    training: Training,
    heads: Sequence[PredictionHead],
    named: Sequence[Head],
    has_one_logit: Sequence[bool],
    batches: Sequence[Mapping[str, Any]],
) -> list[PredictionHead]:
    """Heads corrected by the values of their labels: these are probabilities of classes, or others than yes and no.

    What the user or the configuration states is not corrected. All processes read the labels of their own first window,
    and come to one verdict.
    """
    facts = [
        [*_facts([batch[head.labels[0]] for batch in batches]), one]
        for head, one in zip(heads, has_one_logit, strict=True)
    ]
    votes = training.on_any_process(facts)
    found = []
    for head, spec, vote in zip(heads, named, votes, strict=True):
        if not _problem_is_open(training, spec):
            found.append(head)
            continue
        labels, is_outside = batches[0][head.labels[0]], vote[0]
        if (
            head.problem == "multi_label"
            and head.stock == "single_label"
            and is_outside
            and not labels.is_floating_point()
        ):
            doubt = (
                f"The labels are integers of the shape {tuple(labels.shape)}, as yes or no of each class of "
                f"{training.model_name} is, but some are neither 0 nor 1. Say what they are with rdrop_problem or "
                "rdrop_heads."
            )
            head = replace(head, doubt=doubt)
        found.append(_by_facts(head, *vote))
    return found


def _problem_is_open(training: Training, named: Head) -> bool:
    """Whether neither the user nor the configuration states the problem of a head."""
    is_stated = training.states_problem and not training.heads
    return training.problem == "auto" and named.problem == "auto" and not is_stated


def warn_of_doubtful_labels(training: Training, head: PredictionHead, named: Head, items: Items) -> None:
    """Warn of rows whose labels speak for another problem than the one that they are taken for.

    Grades that are predicted step by step, or quantiles, where the logits are taken for classes (a model may also count
    its classes from 1); yes and no, or classes, where they are taken for numbers.
    """
    labels, classes = items.labels, items.outputs[0].shape[-1]
    if not _problem_is_open(training, named) or not head.of_rows or head.soft or not labels.numel():
        return
    lowest, highest = (value.item() for value in labels.aminmax())
    setting = "its Head's problem" if training.heads else "rdrop_problem"
    if items.problem == "single_label" and classes <= highest:
        logger.warning_once(
            f"A label is {highest}, but there are {classes} logits for a row, which R-Drop takes for the classes 0 to "
            f'{classes - 1}. Confirm it with {setting}="single_label", or correct it with "multi_label" (each logit '
            'says yes or no, as of ordered grades) or "regression" (each is a number).'
        )
    if items.problem != "regression" or labels.numel() > len(labels) or (labels != labels.float().round()).any():
        return
    if classes == 1 and not labels.is_floating_point() and (lowest, highest) == (0, 1):
        logger.warning_once(
            f"The labels of this batch are all 0 or 1, but {training.model_name} with its single logit is a "
            f'regression, and R-Drop compares its numbers. If they are yes or no, set {setting}="multi_label", else '
            '"regression".'
        )
    if classes > 1 and 0 <= lowest and highest < classes:
        logger.warning_once(
            f"The labels of this batch are whole numbers from {lowest:.0f} to {highest:.0f}, as those of classes are, "
            f"but their type is {labels.dtype}, and R-Drop compares the {classes} logits of a row as numbers. If they "
            f'are classes, set {setting}="single_label", else "regression".'
        )


def _facts(labels: Sequence[torch.Tensor]) -> list[bool]:
    """Whether some label is neither yes nor no, some row does not add up to 1, some row is divided between classes."""
    marked = [(y == IGNORE_INDEX) | (y == -1) for y in labels]
    is_outside = any(bool((((y < 0) | (y > 1)) & ~mark).any()) for y, mark in zip(labels, marked, strict=True))
    if any(y.dim() != 2 for y in labels):
        return [is_outside, True, False]
    add_up = all(bool((((y.float().sum(-1) - 1).abs() < 1e-3) & (y >= 0).all(-1)).all()) for y in labels)
    return [is_outside, not add_up, any(bool(((y != 0) & (y != 1)).any()) for y in labels)]


def _by_facts(
    head: PredictionHead, is_outside: bool, does_not_add_up: bool, is_divided: bool, is_one_logit: bool
) -> PredictionHead:
    if head.problem == "multi_label" or (head.problem == "single_label" and is_one_logit):
        if is_outside:
            name = (TOKENS if head.tokens else ROWS)["regression"].name
            return replace(head, name=name, problem="regression")
        # Rows with a single yes add up to 1 as well, so some row has to be divided between classes
        if head.problem == "multi_label" and not head.tokens and not does_not_add_up and is_divided:
            return replace(head, name=SINGLE_LABEL.name, problem="single_label", soft=True)
    return head


def check_range(training: Training, head: PredictionHead, batches: Sequence[Mapping[str, Any]]) -> None:
    """Refuse labels that are none of the classes of a stock head; waits for the device of the labels.

    A loss of the user's may know other labels.
    """
    if head.own_loss or head.soft or head.positions:
        return
    for batch in batches:
        _check_type(training, head, batch)
    if head.problem != "single_label":
        return
    for batch in batches:
        labels, classes = batch[head.labels[0]], _classes(training, head, batch)
        labels = labels[labels != IGNORE_INDEX]
        if classes <= 1 or not labels.numel():
            continue
        lowest, highest = map(int, labels.aminmax())
        if lowest < 0 or highest >= classes:
            label = lowest if lowest < 0 else highest
            is_fixed = head.choices or head.language_model or isinstance(head, CTCHead) or label < 0
            mend = "mend the labels" if is_fixed else "load the model with more num_labels"
            raise ValueError(
                f"A label is {label}, but {training.model_name} knows {classes} classes, labeled "
                f"0 to {classes - 1} (and {IGNORE_INDEX}: no label): {mend}."
            )


def refuse_marked_rows(batches: Sequence[Mapping[str, Any]], wait: bool) -> None:
    """Refuse integer labels of -100, which mark rows without a label, and which a regression takes for a value."""
    labels = [batch["labels"] for batch in batches if not batch["labels"].is_floating_point()]
    if labels:
        unmarked = torch.stack([(y != IGNORE_INDEX).all() for y in labels]).all()
        devices.require(
            unmarked,
            f"A label is {IGNORE_INDEX}, the mark of a row without a label, but the model is a regression, which takes "
            "it for a value: leave such rows out, or write labels as floating-point numbers if it is one.",
            wait,
        )


def _check_type(training: Training, head: PredictionHead, batch: Mapping[str, Any]) -> None:
    """Refuse numbers that the stock loss would fail at, with words of torch: classes written as 1.0 or True, mostly."""
    labels, name = batch[head.labels[0]], training.model_name
    what = f"{labels.dtype} of the shape {tuple(labels.shape)}"
    no_integers = labels.is_floating_point() or labels.dtype == torch.bool
    if head.task_problem == "single_label" and no_integers:
        raise ValueError(f"The labels are {what}, but {name} takes classes as integers: make them torch.long.")
    if head.task_problem != "multi_label":
        return
    classes = _classes(training, head, batch)
    if head.of_rows and classes and labels.shape[1:] != (classes,):
        raise ValueError(
            f"The labels are {what}, which {name} takes for yes or no of each of its {classes} classes, so for "
            f"{(len(labels), classes)}. If a row has one class, make them integers, torch.long."
        )
    if labels.dtype == torch.bool:
        raise ValueError(f"The labels are {what}, but {name} takes yes or no as 1.0 or 0.0: make them torch.float.")


def _classes(training: Training, head: PredictionHead, batch: Mapping[str, Any]) -> int:
    """How many classes a stock head has; 0: unknown."""
    if not has_listed_head(training.base):  # its configuration may be that of a part, with the default's two classes
        return 0
    if head.choices:
        return batch["input_ids"].shape[1] if "input_ids" in batch else 0
    if head.language_model or isinstance(head, CTCHead):
        return vocabulary_size(training.base)
    return config_value(training.base, "num_labels", 0)
