"""What a model predicts: which items a batch holds, which of them count where, and which loss they have.

An item is what one prediction is made for: a row for sequence classification, a token for token classification, a
target token for language models. To support another head, add a `PredictionHead` and the classes it fits to `head_of`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.auto import modeling_auto

from ..losses.chunked import split_passes
from ..losses.reference import IGNORE_INDEX
from ..losses.validation import PROBLEMS, Problem


class Items(NamedTuple):
    """The predictions of m passes that are compared, N items each, in the arguments of `rdrop_loss`.

    Attributes:
        outputs: logits, all passes in one tensor, (m·N, C), or m of (N, C).
        labels: (N,), or (N, C) for several values a row.
        mask: (N,) booleans, those that count in the divergence, among them all labeled ones; or (N, C) booleans, their
            entries that count. None: all.
        problem: the divergence, and the stock loss.
    """

    outputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    problem: Problem = "single_label"

    def counted(self, num_passes: int, at_most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs (m, n, C) and labels (n, ...) of the items that count, or of the first of them."""
        mask = self.mask if self.mask is None or self.mask.dim() == 1 else self.mask.any(-1)
        which = slice(at_most) if mask is None else mask.nonzero()[:at_most, 0]
        return torch.stack([z[which] for z in split_passes(self.outputs, num_passes)]), self.labels[which]


class Outputs(Protocol):
    """A model's outputs by name, each all passes in one tensor or a tensor for every pass: a mapping, or `Passes`."""

    def __getitem__(self, key: str, /) -> Sequence[torch.Tensor]: ...


@dataclass(frozen=True)
class PredictionHead:
    """How the predictions of a model are counted and compared.

    A head has one part, or several that are averaged: extractive QA predicts where the answer starts and where it ends.

    Attributes:
        name: for messages.
        problem: the divergence, and the stock loss where `stock` does not name another, as `rdrop_loss` names them.
        outputs: names of the logits of each part among the model's outputs.
        labels: names of the labels of each part in the batch.
        tokens: the items are tokens (logits (B, T, C), labels (B, T) or (B, T, C)), not rows (logits (B, C)).
        shifted: the logits of a token predict the label of the next one.
        soft_prompt: learned positions stand before the text, so that even its first token is predicted.
        unlabeled_mask: name of the mask whose tokens count in the divergence where a row of tokens has no label at
            all: such a row is unlabeled text. None: such a row counts nowhere.
        positions: the labels are positions in the text, and those outside it are ignored.
        language_model: the classes are a vocabulary.
        choices: the logits of a row are scores of its choices, of which there may be a single one.
        soft: the labels are probabilities of the classes, (B, C), as `F.cross_entropy` takes them.
        stock: the problem of the stock loss of the model's class, where it is another one.
        own_loss: the task loss is not the stock one, so it may know tokens without a label that cross-entropy does not:
            with another negative label, and outside the attention mask in a batch without any -100.
    """

    name: str
    problem: Problem = "single_label"
    outputs: tuple[str, ...] = ("logits",)
    labels: tuple[str, ...] = ("labels",)
    tokens: bool = False
    shifted: bool = False
    soft_prompt: bool = False
    unlabeled_mask: str | None = None
    positions: bool = False
    language_model: bool = False
    choices: bool = False
    soft: bool = False
    stock: Problem | None = None
    own_loss: bool = False

    @property
    def task_problem(self) -> Problem:
        """The problem of the stock loss."""
        return self.stock or self.problem

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """How many items of a batch have a task loss and how many a divergence: (parts, 2) integers, on its device.

        Counts need labels and masks only, so a whole accumulation window can be counted before its first forward pass.
        """
        return torch.stack([self._count(targets, batch) for targets in self._targets(batch)])

    def _count(self, targets: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        if self.tokens:
            masks = self._labeled_tokens(targets, batch), self._divergence_mask(targets, batch)
            return torch.stack([mask.sum() for mask in masks])
        rows = torch.tensor(targets.shape[0], device=targets.device)
        if self.problem == "regression" or self.soft:
            return torch.stack([rows, rows])
        # A row whose only label is missing is unlabeled; one of whose several labels none is there does not count
        labeled = (targets != IGNORE_INDEX).reshape(len(targets), -1).any(-1).sum()
        return torch.stack([labeled, labeled if targets.dim() > 1 else rows])

    def problem_of(self, logits: torch.Tensor) -> Problem:
        """The problem of some logits (..., C): a single logit says yes or no, and cannot be one of several classes."""
        is_binary = self.problem == "single_label" and logits.shape[-1] == 1 and not (self.choices or self.positions)
        return "multi_label" if is_binary else self.problem

    def misread_by_stock_code(self, batch: Mapping[str, Any]) -> bool:
        """Whether the stock loss of transformers takes labels of a batch for what they are not; waits for the device.

        Its binary cross-entropy takes -100 for a value, and its cross-entropy flattens probabilities.
        """
        if self.problem == "multi_label":
            return any(bool((batch[key] == IGNORE_INDEX).any()) for key in self.labels)
        return self.soft and not self.choices

    def items(self, outputs: Outputs, batch: Mapping[str, Any], num_passes: int) -> list[Items]:
        """The items of a batch, for each part.

        Args:
            outputs: the model's outputs by name, all passes in one tensor or a tensor each: (m·B, C) or B rows, or with
                tokens (m·B, T', C), T' ≥ T: positions the model put before the text (soft prompts) are left out. Where
                an item has one logit, its dimension may be missing.
            batch: the inputs of one pass, B rows.
            num_passes: m.

        Raises:
            ValueError: an output of another shape.
        """
        parts = zip(self.outputs, self._targets(batch), strict=True)
        return [self._items(name, tuple(outputs[name]), targets, batch, num_passes) for name, targets in parts]

    def rows_of_items(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        """The row that each item of one pass that counts is of, (n,), and how many rows the batch has."""
        targets = self._targets(batch)[0]
        if not self.tokens:
            return torch.arange(len(targets), device=targets.device), len(targets)
        return self._divergence_mask(targets, batch).nonzero()[:, 0], len(targets)

    def _items(self, name, outputs, targets, batch, num_passes) -> Items:
        size = num_passes // len(outputs) * targets.shape[0]
        expected = ("rows", "tokens", "classes") if self.tokens else ("rows", "classes")
        first = outputs[0]
        is_squeezed = first.dim() == len(expected) - 1 and (not self.tokens or is_along_text(targets, batch))
        if is_squeezed and not self.choices and not self.positions and not self.language_model:
            outputs = tuple(z.unsqueeze(-1) for z in outputs)
            first = outputs[0]
        fits = first.dim() == len(expected) and first.shape[0] == size
        if self.tokens:
            fits = fits and first.shape[1] >= targets.shape[1]
        elif self.problem != "single_label":
            # Labels of more dimensions are those of logits of the same shape (scores of spans, say)
            fits = first.shape[:1] == (size,) and (targets.dim() < 3 or first.shape[1:] == targets.shape[1:])
        if not fits:
            raise ValueError(
                f"R-Drop took the head for {self.name}, whose {name!r} have the shape ({', '.join(expected)}) with "
                f"{size} rows ({num_passes // len(outputs)} passes) for labels {tuple(targets.shape)}; the model "
                f"returned {tuple(first.shape)}. For a class that transformers does not know the labels decide: "
                "integers of shape (B, T) mean tokens, floating ones multi-label classification or regression. "
                "rdrop_problem or config.problem_type says which."
            )
        if not self.tokens:
            if self.positions and self.soft_prompt:
                outputs = [z[:, -batch_length(batch) :] for z in outputs]
            flat = tuple(z.reshape(size, -1) for z in outputs)
            return self._of_problem(flat, targets, None)
        mask = self._divergence_mask(targets, batch)  # (B, T)
        flat = tuple(z[:, -targets.shape[1] :].flatten(0, 1) for z in outputs)  # (m·B·T, C) or (B·T, C) each
        return self._of_problem(flat, targets.flatten(0, 1), mask.flatten())

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

    def _targets(self, batch: Mapping[str, Any]) -> list[torch.Tensor]:
        """What each part's logits predict: (B,), (B, C) for several values a row, or (B, T) aligned with the logits."""
        labels = [batch[key] for key in self.labels]
        if self.positions:
            # The stock loss takes any negative position for the first one
            length = batch_length(batch)
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
        labeled = (targets != IGNORE_INDEX).reshape(*targets.shape[:2], -1).any(-1)
        if not self.own_loss:
            return labeled
        if self.problem != "regression" and targets.dim() == 2:
            labeled = labeled & (targets >= 0)
        attended = batch.get(self.unlabeled_mask or "attention_mask")
        if not isinstance(attended, torch.Tensor) or attended.dim() != 2:
            return labeled
        if self.shifted:
            attended = F.pad(attended, (0, int(self.soft_prompt)))[:, 0 if self.soft_prompt else 1 :]
        if attended.shape != labeled.shape:
            return labeled
        marks_padding = torch.stack([(batch[key] == IGNORE_INDEX).any() for key in self.labels]).any()
        return labeled & (attended.bool() | marks_padding)

    def _divergence_mask(self, targets: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        labeled = self._labeled_tokens(targets, batch)  # (B, T)
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
# The names in the configurations of transformers
PROBLEM_TYPES: dict[str, Problem] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def _class_names(*tasks: str) -> frozenset[str]:
    """The class names of transformers' mappings for some tasks; a version may lack a mapping."""
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in tasks]
    values = [value for mapping in mappings for value in mapping.values()]
    return frozenset(name for value in values for name in ([value] if isinstance(value, str) else value))


_ROW_CLASSIFIERS = _class_names(
    "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION"
)
# They count as language models by their names, but predict the token in place
_IN_PLACE = frozenset({"XLMWithLMHeadModel", "FlaubertWithLMHeadModel", "XLNetLMHeadModel"})
_GENERATORS = (
    _class_names("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    - _IN_PLACE
)
_HEADS = (
    (_class_names("TOKEN_CLASSIFICATION"), TOKEN),
    (_class_names("QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING"), QUESTION_ANSWERING),
    (_class_names("MULTIPLE_CHOICE"), MULTIPLE_CHOICE),
    (_class_names("NEXT_SENTENCE_PREDICTION"), SINGLE_LABEL),
    ((_class_names("MASKED_LM") | _IN_PLACE) - _GENERATORS, MASKED_LM),
)
_GENERATOR_NAMES = re.compile(r"For(CausalLM|ConditionalGeneration)$|LMHeadModel$")
# Heads whose predictions have no fixed item to compare: boxes matched to objects, alignments, maps of pixels, sounds
_REFUSED = re.compile(
    r"For(CTC|RNNT|TDT|AudioFrameClassification|TableQuestionAnswering|MaskGeneration|Prediction|Retrieval)$"
    r"|Detection|Segmentation|Estimation|Matching|Matting|Recognition|ImageModeling|TextTo(Speech|Spectrogram|Waveform)"
    r"|^TapasForQuestionAnswering$"
)


def head_of(
    model: nn.Module, batch: Mapping[str, Any], problem: str = "auto", own_loss: bool | None = None
) -> PredictionHead:
    """The head of a model, from its class (or the classes it derives from), configuration and labels.

    Args:
        model: the unwrapped model.
        batch: one batch; where neither `problem` nor the configuration states the problem, the type of its `labels`
            decides it: for classes of transformers by their rule (one label is regression, integers are single-label,
            anything else multi-label).
        problem: "single_label", "multi_label" or "regression", whatever the model says; "auto": as found.
        own_loss: the task loss is not the stock one of the model's class. Then `config.problem_type` holds for heads
            too whose stock loss does not read it. None: it is not for a class that transformers does not list.

    Returns:
        A head of this module. A class that derives from no class of transformers with a head is judged by its name,
        where that says language model, or by its labels: start and end positions are question answering, (B,) are rows,
        (B, T) integers are tokens, (B, T, ...) along a text of T tokens are tokens too, and others are multi-label if
        they are integers or have several columns, else regression.

    Raises:
        ValueError: a head that R-Drop does not fit, labels that are no tensor, or an unknown problem.
    """
    if problem not in ("auto", *PROBLEMS):
        raise ValueError(f"problem={problem!r} is unknown; expected one of auto, {', '.join(PROBLEMS)}.")
    stated, is_listed = _stated_problem(model), has_listed_head(model)
    own_loss = not is_listed if own_loss is None else own_loss
    if not is_listed:
        _refuse_without_items(model)
        head = _judged(model, batch, stated if problem == "auto" else problem)
    else:
        head = _listed(model, batch)
        reads_config = own_loss and not head.language_model and not head.positions
        wanted: Any = problem if problem != "auto" else stated if reads_config else None
        if wanted is not None and wanted != head.problem:
            name = (TOKENS if head.tokens else ROWS)[wanted].name
            head = replace(head, name=name, problem=wanted, stock=head.problem, language_model=False)
            head = replace(head, soft=_are_soft(head, batch.get("labels")))
    return replace(head, own_loss=own_loss)


def _listed(model: nn.Module, batch: Mapping[str, Any]) -> PredictionHead:
    """The head of a class that transformers lists."""
    cls, names = type(model), _names(model)
    if names & _ROW_CLASSIFIERS:
        return _row_classifier(model.config, _labels_of(batch, cls))
    for classes, head in _HEADS:
        if names & classes:
            return replace(head, soft=head.choices and _are_soft(head, batch.get("labels")))
    return _generator(model)


def _refuse_without_items(model: nn.Module) -> None:
    cls = type(model)
    if any(_REFUSED.search(name) for name in _names(model)):
        raise ValueError(
            f"R-Drop does not fit {cls.__name__}: its predictions are not made for items that two passes share one by "
            "one (a row, a token), so there is no divergence between them. Supported are models for sequence, image, "
            "audio and video classification, token classification, multiple choice, extractive question answering, "
            "masked, causal and sequence-to-sequence language modelling, and models with a loss of their own that "
            "return logits for rows or tokens."
        )


def has_listed_head(model: nn.Module) -> bool:
    """Whether transformers lists the head of a model's class, or of a class that it derives from."""
    listed = _ROW_CLASSIFIERS.union(_GENERATORS, *(classes for classes, _ in _HEADS))
    return not listed.isdisjoint(_names(model))


def base_model(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and PEFT's adapters; the wrappers of distributed training must be off."""
    model = getattr(model, "_orig_mod", model)
    inside: Any = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def batch_length(batch: Mapping[str, Any]) -> int:
    """T, the tokens of a row of text."""
    return next(batch[key] for key in ("input_ids", "inputs_embeds") if batch.get(key) is not None).shape[1]


def is_along_text(labels: torch.Tensor, batch: Mapping[str, Any]) -> bool:
    """Whether the second dimension of labels is that of a text."""
    text = batch.get("input_ids", batch.get("inputs_embeds"))
    return labels.dim() > 1 and isinstance(text, torch.Tensor) and text.shape[1:2] == labels.shape[1:2]


def _names(model: nn.Module) -> set[str]:
    """The names of the classes of transformers that a model is of."""
    return {base.__name__ for base in type(model).__mro__ if base.__module__.startswith("transformers.")}


def _labels_of(batch: Mapping[str, Any], cls: type) -> torch.Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor):
        raise ValueError(
            f"R-Drop needs `labels` as a tensor in every training batch to tell what {cls.__name__} predicts; "
            + (f"they are a {type(labels).__name__}." if labels is not None else f"got only: {', '.join(batch)}.")
            + " Rows without a label carry -100."
        )
    return labels


def _stated_problem(model: nn.Module) -> Problem | None:
    """The problem that a model's configuration states."""
    return PROBLEM_TYPES.get(getattr(getattr(model, "config", None), "problem_type", None) or "")


def _row_classifier(config: Any, labels: torch.Tensor) -> PredictionHead:
    if config.problem_type is not None:
        head = ROWS[PROBLEM_TYPES[config.problem_type]]
        return replace(head, soft=_are_soft(head, labels))
    if config.num_labels == 1:
        return REGRESSION
    return SINGLE_LABEL if labels.dtype in (torch.long, torch.int) else MULTI_LABEL


def _are_soft(head: PredictionHead, labels: Any) -> bool:
    is_float = isinstance(labels, torch.Tensor) and labels.is_floating_point()
    return head.problem == "single_label" and is_float and labels.dim() > 1


def _generator(model: nn.Module) -> PredictionHead:
    config = getattr(model, "config", None)
    return SEQ2SEQ if getattr(config, "is_encoder_decoder", False) else CAUSAL_LM


def _judged(model: nn.Module, batch: Mapping[str, Any], problem: str | None) -> PredictionHead:
    """The head of a class that transformers does not list; its problem, where that is known."""
    if all(batch.get(key) is not None for key in QUESTION_ANSWERING.labels):
        return QUESTION_ANSWERING
    labels = _labels_of(batch, type(model))
    if any(_GENERATOR_NAMES.search(base.__name__) for base in type(model).__mro__) and labels.dim() == 2:
        return _generator(model)
    several = labels.dim() > 1 and labels.shape[1:].numel() > 1
    if problem is None:
        if labels.is_floating_point():
            problem = "multi_label" if several else "regression"
        else:
            problem = "multi_label" if labels.dim() > 2 else "single_label"
    along_text = labels.dim() == 3 and is_along_text(labels, batch)
    is_class_of_token = problem == "single_label" and not labels.is_floating_point() and several
    head = (TOKENS if along_text or is_class_of_token else ROWS)[problem]
    return replace(head, soft=_are_soft(head, labels))
