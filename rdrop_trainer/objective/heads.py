"""What a model predicts: which items a batch holds, which of them count where, and which loss they have.

An item is what one prediction is made for: a row for sequence classification, a token for token classification, a
target token for language models. To support another head, add a `PredictionHead` and the classes it fits to `head_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..losses.reference import IGNORE_INDEX
from ..losses.validation import Problem
from .items import Items, Outputs


@dataclass(frozen=True)
class PredictionHead:
    """How the predictions of a model are counted and compared.

    A head has one part, or several that are averaged: extractive QA predicts where the answer starts and where it ends.

    Attributes:
        name: for messages.
        problem: the divergence, and the stock loss where `stock` does not name another, as `rdrop_loss` names them.
        outputs: names of the logits of each part among the model's outputs, as `Passes` knows them.
        labels: names of the labels of each part in the batch.
        weights: of the divergence of each part; None: they are averaged.
        doubt: why the predictions of several passes cannot be compared, a sentence.
        tokens: the items are tokens (logits (B, T, C), labels (B, T) or (B, T, C)), not rows (logits (B, C)).
        shifted: the logits of a token predict the label of the next one.
        place: where the positions of labels are among those of logits of tokens, of which there may be more: at their
            "end", at their "start", or not known, "same", so that there must be as many.
        soft_prompt: learned positions stand before the text, so that even its first token is predicted.
        unlabeled_mask: name of the mask whose tokens count in the divergence where a row of tokens has no label at
            all: such a row is unlabeled text. None: such a row counts nowhere.
        choices: the logits of a row are scores of its choices, of which there may be a single one.
        positions: the labels are positions in the text, and those outside it are ignored.
        soft: the labels are probabilities of the classes, (B, C), as `F.cross_entropy` takes them.
        language_model: the classes are a vocabulary.
        stock: the problem of the stock loss of the model's class, where it is another one.
        own_loss: the task loss is not the stock one, so it may know tokens without a label that cross-entropy does not:
            with another negative label, and outside the attention mask in a batch without any -100. (Not of a causal
            model, whose loss counts padding with another label.)
        summed: task loss and divergence are sums over the items of an optimizer step, not means.
    """

    # What is compared
    name: str
    problem: Problem = "single_label"
    outputs: tuple[str, ...] = ("logits",)
    labels: tuple[str, ...] = ("labels",)
    weights: tuple[float, ...] | None = None
    doubt: str | None = None
    # Items that are tokens
    tokens: bool = False
    shifted: bool = False
    place: Literal["start", "end", "same"] = "end"
    soft_prompt: bool = False
    unlabeled_mask: str | None = None
    # What the labels are
    choices: bool = False
    positions: bool = False
    soft: bool = False
    language_model: bool = False
    # The task loss
    stock: Problem | None = None
    own_loss: bool = False
    summed: bool = False

    @property
    def heads(self) -> tuple[PredictionHead, ...]:
        """Those of different kinds that this one is made of: itself, if it is no `JointHead`."""
        return (self,)

    @property
    def part_weights(self) -> tuple[float, ...]:
        """The weight of each part's divergence."""
        return self.weights or (1 / len(self.outputs),) * len(self.outputs)

    @property
    def of_rows(self) -> bool:
        """The items are rows, whatever their length."""
        return not (self.tokens or self.positions or self.choices)

    @property
    def allows_one_logit(self) -> bool:
        """An item may have a single logit, which says yes or no or is a number; its dimension may be missing."""
        return not (self.choices or self.positions or self.language_model)

    @property
    def task_problem(self) -> Problem:
        """The problem of the stock loss."""
        return self.stock or self.problem

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """How many items of a batch have a task loss and how many a divergence: (parts, 2) integers, on its device.

        Counts need labels and masks only, so a whole accumulation window can be counted before its first forward pass.
        """
        counts = [count for targets in self.targets(batch) for count in self._count(targets, batch)]
        return torch.stack(counts).view(-1, 2)

    def _count(self, targets: torch.Tensor, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.tokens:
            labeled = self._labeled_tokens(targets, batch)
            compared = self._compared_tokens(labeled, batch)
            count = labeled.sum()
            return count, count if compared is labeled else compared.sum()
        # A row without its one label is unlabeled, and has a divergence; one without any of several counts nowhere
        if self.problem == "multi_label" and targets.dim() > 1:
            count = _has_label(targets).sum()
            return count, count
        rows = targets.new_full((), len(targets), dtype=torch.long)
        if self.problem == "regression" or self.soft:
            return rows, rows
        return (targets != IGNORE_INDEX).sum(), rows

    def problem_of(self, logits: torch.Tensor) -> Problem:
        """The problem of some logits (..., C): a single logit says yes or no, and cannot be one of several classes."""
        is_binary = self.problem == "single_label" and logits.shape[-1] == 1 and self.allows_one_logit
        return "multi_label" if is_binary else self.problem

    def misread_by_stock_code(self, batch: Mapping[str, Any]) -> bool | torch.Tensor:
        """Whether the stock loss of transformers takes labels of a batch for what they are not; where their values say
        it, a tensor on their device.

        Its binary cross-entropy takes -100 for a value, and its cross-entropy flattens probabilities.
        """
        if self.problem == "multi_label":
            return self._has_marks(batch)
        return self.soft and not self.choices

    def _has_marks(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Whether some label of a batch is -100, a boolean on its device."""
        return torch.stack([(batch[key] == IGNORE_INDEX).any() for key in self.labels]).any()

    def items(self, outputs: Outputs, batch: Mapping[str, Any], num_passes: int) -> list[Items]:
        """The items of a batch, for each part.

        Args:
            outputs: the model's outputs by name, all passes in one tensor or a tensor each: (m·B, C) or B rows, or with
                tokens (m·B, T', C), T' ≥ T: positions the model put before the text (soft prompts) are left out. Where
                an item has one logit, its dimension may be missing.
            batch: the inputs of one pass, B rows.
            num_passes: m.

        Raises:
            ValueError: an output of another shape, or a head in doubt.
        """
        if self.doubt and num_passes > 1:
            raise ValueError(self.doubt)
        parts = zip(self.outputs, self.targets(batch), strict=True)
        return [self._items(name, tuple(outputs[name]), targets, batch, num_passes) for name, targets in parts]

    def rows_of_items(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        """The row that each item of one pass that counts is of, (n,), and how many rows the batch has."""
        targets = self.targets(batch)[0]
        if self.tokens:
            compared = self._compared_tokens(self._labeled_tokens(targets, batch), batch)
            return compared.nonzero()[:, 0], len(targets)
        rows = torch.arange(len(targets), device=targets.device)
        if self.problem == "multi_label" and targets.dim() > 1:  # a row without any of its labels counts nowhere
            rows = rows[_has_label(targets)]
        return rows, len(targets)

    def _items(self, name, outputs, targets, batch, num_passes) -> Items:
        outputs = self._checked(name, outputs, targets, batch, num_passes)
        if not self.tokens:
            if self.positions and self.soft_prompt:
                outputs = [z[:, -text_of(batch).shape[1] :] for z in outputs]
            return self._of_problem(tuple(z.reshape(len(z), -1) for z in outputs), targets, None)
        length = targets.shape[1]
        of_labels = slice(length) if self.place == "start" else slice(outputs[0].shape[1] - length, None)
        flat = tuple(z[:, of_labels].flatten(0, 1) for z in outputs)  # (m·B·T, C) or (B·T, C) each
        mask = self._compared_tokens(self._labeled_tokens(targets, batch), batch)  # (B, T)
        return self._of_problem(flat, targets.flatten(0, 1), mask.flatten())

    def _checked(self, name, outputs, targets, batch, num_passes) -> tuple[torch.Tensor, ...]:
        """Outputs of the shape that the head has, (rows, classes) or (rows, tokens, classes).

        Raises:
            ValueError: they have another.
        """
        size = num_passes // len(outputs) * targets.shape[0]
        expected = ("rows", "tokens", "classes") if self.tokens else ("rows", "classes")
        is_squeezed = outputs[0].dim() == len(expected) - 1 and (not self.tokens or is_along_text(targets, batch))
        if is_squeezed and self.allows_one_logit:
            outputs = tuple(z.unsqueeze(-1) for z in outputs)
        first = outputs[0]
        fits = first.dim() == len(expected) and first.shape[0] == size
        if self.tokens:
            fits = fits and first.shape[1] >= targets.shape[1]
            if fits and self.place == "same" and num_passes > 1 and first.shape[1] > targets.shape[1]:
                raise ValueError(
                    f"{name!r} have {first.shape[1]} positions for {targets.shape[1]} labels, and it is not known "
                    'which of them the labels are of: say rdrop_heads=[Head(align="first")], or "last".'
                )
        elif self.problem != "single_label":
            # Labels of more dimensions are those of logits of the same shape (scores of spans, say)
            fits = first.shape[:1] == (size,) and (targets.dim() < 3 or first.shape[1:] == targets.shape[1:])
        if not fits:
            raise ValueError(
                f"R-Drop took the head for {self.name}, whose {name!r} have the shape ({', '.join(expected)}) with "
                f"{size} rows ({num_passes // len(outputs)} passes) for labels {tuple(targets.shape)}; the model "
                f"returned {tuple(first.shape)}. For a class that transformers does not know the labels decide: "
                "integers of shape (B, T) mean tokens, floating ones multi-label classification or regression. "
                "rdrop_problem, config.problem_type or rdrop_heads says which."
                + (" A compute_loss of other logits returns those as its outputs." if self.own_loss else "")
            )
        return outputs

    def _of_problem(self, outputs: tuple[torch.Tensor, ...], targets: torch.Tensor, mask: torch.Tensor | None) -> Items:
        """The items of outputs (m·N, C) or m of (N, C): with labels of the shape that their problem wants."""
        problem = self.problem_of(outputs[0])
        if problem == "single_label":
            return Items(outputs, targets, mask)
        shape = (len(targets), outputs[0].shape[-1])
        if self.problem == "multi_label" and targets.dim() > 1:
            counted = (targets != IGNORE_INDEX).reshape(len(targets), -1)
            if counted.shape != shape:  # labels that are not one for each logit
                counted = counted.any(-1, keepdim=True).expand(shape)
            # A token without labels that counts nevertheless is unlabeled text, and counts as a whole
            mask = counted if mask is None else mask[:, None] & (counted | ~counted.any(-1, keepdim=True))
        is_one_each = targets.numel() == shape[0] * shape[1]
        return Items(outputs, targets.reshape(shape) if is_one_each else targets, mask, problem)

    def targets(self, batch: Mapping[str, Any]) -> list[torch.Tensor]:
        """What each part's logits predict: (B,), (B, C) for several values a row, or (B, T) aligned with the logits."""
        labels = [batch[key] for key in self.labels]
        if self.positions:
            # The stock loss takes any negative position for the first one
            length = text_of(batch).shape[1]
            return [y.reshape(-1).clamp(0).masked_fill(y.reshape(-1) >= length, IGNORE_INDEX) for y in labels]
        if self.shifted and batch.get("shift_labels") is not None:
            return [batch["shift_labels"]]
        if self.shifted:
            labels = [F.pad(y, (0, 1), value=IGNORE_INDEX) for y in labels]
            return labels if self.soft_prompt else [y[:, 1:] for y in labels]
        if not self.tokens and self.problem == "single_label" and not self.soft:
            return [y.reshape(-1) for y in labels]
        return labels

    def _labeled_tokens(self, targets: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Which tokens have a label that counts, (B, T)."""
        labeled = targets != IGNORE_INDEX
        if targets.dim() > 2:
            labeled = labeled.flatten(2).any(-1)
        if not self.own_loss:
            return labeled
        if self.problem != "regression" and targets.dim() == 2:
            labeled = labeled & (targets >= 0)
        attended = batch.get(self.unlabeled_mask or "attention_mask")
        if self.shifted or not isinstance(attended, torch.Tensor) or attended.shape != labeled.shape:
            return labeled
        return labeled & (attended.bool() | self._has_marks(batch))

    def _compared_tokens(self, labeled: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Which tokens count in the divergence, (B, T); `labeled`: those that have a label."""
        if self.unlabeled_mask is None:
            return labeled
        attended = batch.get(self.unlabeled_mask)
        if attended is not None and attended.shape == labeled.shape:
            attended = attended.bool()
        else:
            # Nothing, or a mask of another shape (per pair of tokens, say), says which tokens are text: all of the
            # encoder's, but none of a decoder's, whose targets are padded with the mark of an unlabeled token
            attended = self.unlabeled_mask == "attention_mask"
        return labeled | (~labeled.any(-1, keepdim=True) & attended)


SINGLE_LABEL = PredictionHead("single-label classification")
MULTI_LABEL = PredictionHead("multi-label classification", problem="multi_label")
REGRESSION = PredictionHead("regression", problem="regression")
MULTIPLE_CHOICE = PredictionHead("multiple choice", choices=True)
QUESTION_ANSWERING = PredictionHead(
    "extractive question answering",
    outputs=("start_logits", "end_logits"),
    labels=("start_positions", "end_positions"),
    positions=True,
)
TOKEN = PredictionHead("token classification", tokens=True, unlabeled_mask="attention_mask")
MASKED_LM = PredictionHead("masked language modelling", tokens=True, language_model=True)
SEQ2SEQ = PredictionHead(
    "sequence-to-sequence language modelling",
    tokens=True,
    unlabeled_mask="decoder_attention_mask",
    language_model=True,
)
CAUSAL_LM = PredictionHead("causal language modelling", tokens=True, shifted=True, language_model=True)
ROWS = {"single_label": SINGLE_LABEL, "multi_label": MULTI_LABEL, "regression": REGRESSION}
TOKENS = {
    "single_label": TOKEN,
    "multi_label": replace(TOKEN, name="multi-label classification of tokens", problem="multi_label"),
    "regression": replace(TOKEN, name="regression for tokens", problem="regression"),
}


def _has_label(targets: torch.Tensor) -> torch.Tensor:
    """Which rows have one of their labels, (B,)."""
    return (targets != IGNORE_INDEX).flatten(1).any(-1)


def text_of(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """The text of a batch, (B, T) tokens or (B, T, H) embeddings; None without one."""
    found = (batch.get(key) for key in ("input_ids", "inputs_embeds"))
    return next((text for text in found if isinstance(text, torch.Tensor)), None)


def is_along_text(labels: torch.Tensor, batch: Mapping[str, Any]) -> bool:
    """Whether the second dimension of labels is that of a text."""
    text = text_of(batch)
    return labels.dim() > 1 and text is not None and text.shape[1:2] == labels.shape[1:2]
