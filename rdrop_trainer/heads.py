"""What a model predicts: which items a batch holds, which of them count where, and how the loss treats them.

An item is what one prediction is made for: a row for sequence classification, a token for token classification. To
support another head of this kind, add a `Head` and the classes it fits to `head_of`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

from .losses.rdrop import Problem
from .losses.reference import IGNORE_INDEX


@dataclass(frozen=True)
class Head:
    """How the predictions of a model are counted and compared.

    Attributes:
        name: for messages.
        problem: the loss, as `rdrop_loss` names it.
        tokens: the items are tokens (logits (B, T, C), labels (B, T)), not rows (logits (B, C)).
        unlabelled_rows: a row of tokens without a single label is unlabelled text, and all tokens of its attention
            mask count in the divergence.
        own_loss: the task loss is what the model itself returns (or the user's `compute_loss_func`).
    """

    name: str
    problem: Problem = "single_label"
    tokens: bool = False
    unlabelled_rows: bool = False
    own_loss: bool = False

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """How many items of a batch have a task loss and how many a divergence: (2,) integers, on the batch's device.

        Counts need labels and attention mask only, so a whole accumulation window can be counted before its first
        forward pass.
        """
        labels = batch["labels"]
        rows = torch.tensor(labels.shape[0], device=labels.device)
        labelled = rows if self.problem != "single_label" else (labels != IGNORE_INDEX).sum()
        return torch.stack([labelled, self._divergence_mask(batch).sum() if self.tokens else rows])

    def items(
        self, logits: torch.Tensor, batch: Mapping[str, Any], num_passes: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The logits and labels of the items that count in the divergence, as `rdrop_loss` takes them.

        Args:
            logits: of all passes, (m·B, C), or (m·B, T', C) with T' ≥ T: positions the model put before the text
                (soft prompts) are left out.
            batch: the inputs of one pass, B rows.
            num_passes: m.

        Returns:
            Logits (m·n, C) and labels of n items. Labelled items always count in the divergence.
        """
        labels = batch["labels"]
        if not self.tokens:
            if self.problem == "single_label":
                labels = labels.reshape(-1)
            return logits.reshape(logits.shape[0], -1), labels
        mask = self._divergence_mask(batch)  # (B, T)
        logits = logits[:, -labels.shape[1] :]  # (m·B, T, C)
        logits = logits.unflatten(0, (num_passes, -1))[:, mask]  # (m, n, C)
        return logits.flatten(0, 1), labels[mask]

    def _divergence_mask(self, batch: Mapping[str, Any]) -> torch.Tensor:
        labelled = batch["labels"] != IGNORE_INDEX  # (B, T)
        if not self.unlabelled_rows:
            return labelled
        attended = batch.get("attention_mask")
        # A mask of another shape (per pair of tokens, say) does not say which tokens are text
        attended = attended.bool() if attended is not None and attended.shape == labelled.shape else True
        unlabelled_row = ~labelled.any(-1, keepdim=True)
        return labelled | (unlabelled_row & attended)


SINGLE_LABEL = Head("single-label classification")
MULTI_LABEL = Head("multi-label classification", problem="multi_label")
REGRESSION = Head("regression", problem="regression")
TOKEN = Head("token classification", tokens=True, unlabelled_rows=True)
PROBLEM_TYPES = {
    "single_label_classification": SINGLE_LABEL,
    "multi_label_classification": MULTI_LABEL,
    "regression": REGRESSION,
}


def _class_names(*mappings: Mapping[str, Any]) -> frozenset[str]:
    """The class names in mappings of model type to one name or several."""
    values = [value for mapping in mappings for value in mapping.values()]
    return frozenset(name for value in values for name in ([value] if isinstance(value, str) else value))


_ROW_CLASSIFIERS = _class_names(
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
)
_TOKEN_CLASSIFIERS = _class_names(modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)


def head_of(model: nn.Module, labels: torch.Tensor) -> Head:
    """The head of a model, from its class (or the classes it derives from) and configuration.

    Args:
        model: the unwrapped model.
        labels: one batch of labels; where the configuration states no problem type, their type decides it, by the rule
            of `transformers` (one label is regression, integers are single-label, anything else multi-label).

    Returns:
        A head of this module. A model whose loss is not known to be the head's stock loss (its forward is defined
        outside transformers, or its `loss_function` was replaced) keeps its own. A class that has nothing to do with
        a head of transformers is judged by its labels alone: (B,) are rows, (B, T) integers are tokens, and floating
        labels are regression or, with a column per class, multi-label.

    Raises:
        ValueError: a model of transformers whose head is not supported.
    """
    cls = type(model)
    names = {base.__name__ for base in cls.__mro__ if base.__module__.startswith("transformers.")}
    if names & _ROW_CLASSIFIERS:
        head = _row_classifier(model.config, labels)
    elif names & _TOKEN_CLASSIFIERS:
        head = TOKEN
    elif any(base.__module__.startswith("transformers.models.") for base in cls.__mro__ if _is_head(base)):
        raise ValueError(
            f"RDropTrainer does not support the head of {cls.__name__}. Supported are models for sequence, image and "
            "audio classification (single-label, multi-label, regression), for token classification, and models "
            "defined outside transformers that return their own loss and logits."
        )
    elif labels.is_floating_point():
        head = MULTI_LABEL if labels.dim() == 2 and labels.shape[1] > 1 else REGRESSION
    else:
        head = TOKEN if labels.dim() == 2 and labels.shape[1] > 1 else SINGLE_LABEL
    stock_forward = cls.forward.__module__.startswith("transformers.")
    if not stock_forward or "_loss_function" in vars(model):
        head = with_own_loss(head)
    return head


def _is_head(cls: type) -> bool:
    """A model with a head, by its name, as against the bodies and base classes that users build their own on."""
    return re.search(r"For[A-Z]|HeadModel|HeadsModel", cls.__name__) is not None


def with_own_loss(head: Head) -> Head:
    """The same items and divergence, with the task loss left to the model."""
    return replace(head, own_loss=True)


def with_stock_loss(head: Head) -> Head:
    """The same items and divergence, with the stock task loss of the head, whatever the model computes."""
    return replace(head, own_loss=False)


def _row_classifier(config: Any, labels: torch.Tensor) -> Head:
    problem_type = config.problem_type
    if problem_type is None:
        if config.num_labels == 1:
            problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"
    return PROBLEM_TYPES[problem_type]
