"""The head of a model, by its class, its configuration and its labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

from ..head import Head
from ..losses.validation import PROBLEMS, Problem
from .ctc import CTCHead
from .heads import (
    CAUSAL_LM,
    MASKED_LM,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    QUESTION_ANSWERING,
    REGRESSION,
    ROWS,
    SEQ2SEQ,
    SINGLE_LABEL,
    TOKEN,
    TOKENS,
    PredictionHead,
    is_along_text,
)

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
_CTC = _class_names("CTC")
_LISTED = _ROW_CLASSIFIERS.union(_GENERATORS, _CTC, *(classes for classes, _ in _HEADS))
_GENERATOR_NAMES = re.compile(r"For(CausalLM|ConditionalGeneration)$|LMHeadModel$")
# Heads whose predictions have no fixed item to compare: boxes matched to objects, transducers, maps of pixels, sounds,
# embeddings of voices (`logits` in front of the classes)
_REFUSED = re.compile(
    r"For(RNNT|TDT|XVector|AudioFrameClassification|TableQuestionAnswering|MaskGeneration|Prediction|Retrieval)$"
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
        they are integers or have several columns, else regression. Labels (B,) are rows for a class with tokens too.

    Raises:
        ValueError: a head that R-Drop does not fit, labels that are no tensor, or an unknown problem.
    """
    if problem not in ("auto", *PROBLEMS):
        raise ValueError(f"problem={problem!r} is unknown; expected one of auto, {', '.join(PROBLEMS)}.")
    is_listed = has_listed_head(model)
    own_loss = not is_listed if own_loss is None else own_loss
    stated: Any = _stated_problem(model) if problem == "auto" else problem
    if not is_listed:
        _refuse_without_items(model)
        head = _unlisted(model, batch, stated)
    else:
        head = _listed(model, batch)
        labels = batch.get("labels")
        if head.tokens and isinstance(labels, torch.Tensor) and labels.dim() == 1:
            # A language model that chooses among some tokens at one place, say: its class is not what it predicts
            return replace(_of_labels(labels, batch, stated), own_loss=True)
        reads_config = own_loss and not head.language_model and not head.positions
        wanted = stated if problem != "auto" or reads_config else None
        if wanted is None and own_loss and isinstance(labels, torch.Tensor):
            wanted = _read_by_own_loss(head, labels, model.config)
        if wanted not in (None, head.problem) and not isinstance(head, CTCHead):
            name = (TOKENS if head.tokens else ROWS)[wanted].name
            head = replace(head, name=name, problem=wanted, stock=head.problem, language_model=False, soft=False)
            head = _with_soft_labels(head, batch.get("labels"))
    return replace(head, own_loss=True) if own_loss else head


def heads_of(model: nn.Module, batch: Mapping[str, Any], heads: Sequence[Head], own_loss: bool) -> list[PredictionHead]:
    """The heads that the user named, one part each, as far as the labels of a batch tell.

    Raises:
        ValueError: a head that R-Drop does not fit, or labels that are missing.
    """
    if len(heads) == 1 and (heads[0].logits, heads[0].labels) == ("logits", "labels"):
        found = [head_of(model, batch, heads[0].problem, own_loss)]
    else:
        _refuse_without_items(model)
        found = [replace(_named(batch, head), own_loss=True) for head in heads]
    return [
        replace(_placed(part, head), weights=tuple(head.weight * w for w in part.part_weights))
        for part, head in zip(found, heads, strict=True)
    ]


def _named(batch: Mapping[str, Any], head: Head) -> PredictionHead:
    """The head of some labels, by their type."""
    if head.labels in QUESTION_ANSWERING.labels:
        part = replace(SINGLE_LABEL, name="positions in the text", positions=True)
    else:
        labels = batch.get(head.labels)
        if not isinstance(labels, torch.Tensor):
            raise ValueError(
                f"rdrop_heads names the labels {head.labels!r}, which must be a tensor in every training batch; "
                + (f"they are a {type(labels).__name__}." if labels is not None else f"got only: {', '.join(batch)}.")
            )
        part = _of_labels(labels, batch, None if head.problem == "auto" else head.problem)
    return replace(part, outputs=(str(head.logits),), labels=(head.labels,))


def _placed(part: PredictionHead, head: Head) -> PredictionHead:
    """A head with its labels where the user says that they are."""
    if head.align == "auto":
        return part
    if head.align == "rows":
        return replace(part, name=ROWS[part.problem].name, tokens=False, shifted=False, language_model=False)
    if head.align == "shifted":
        return replace(part, tokens=True, shifted=True, unlabeled_mask=None)
    name = TOKENS[part.problem].name if not part.tokens else part.name
    mask = TOKEN.unlabeled_mask if not part.tokens or part.shifted else part.unlabeled_mask
    place: Any = "start" if head.align == "first" else "end"
    return replace(part, name=name, tokens=True, shifted=False, place=place, unlabeled_mask=mask)


def _listed(model: nn.Module, batch: Mapping[str, Any]) -> PredictionHead:
    """The head of a class that transformers lists."""
    cls, names = type(model), _names(type(model).__mro__)
    if is_ctc(model):
        return CTCHead.of(model)
    if names & _ROW_CLASSIFIERS:
        return _row_classifier(model.config, _required_labels(batch, cls))
    for classes, head in _HEADS:
        if names & classes:
            return _with_soft_labels(head, batch.get("labels")) if head.choices else head
    return _generator(model)


def _refuse_without_items(model: nn.Module) -> None:
    cls = type(model)
    if any(_REFUSED.search(name) for name in _names(cls.__mro__)):
        raise ValueError(
            f"R-Drop does not fit {cls.__name__}: its predictions are no logits of items that two passes share one by "
            "one (a row, a token), so there is no divergence between them. Supported are models for sequence, image, "
            "audio and video classification, token classification, multiple choice, extractive question answering, "
            "masked, causal and sequence-to-sequence language modelling, speech recognition by CTC, and models with a "
            "loss of their own that return logits for rows or tokens. Train others with Trainer."
        )


def is_ctc(model: nn.Module) -> bool:
    """Whether a model is one of transformers for speech recognition by CTC."""
    return not _CTC.isdisjoint(_names(type(model).__mro__))


def has_listed_head(model: nn.Module) -> bool:
    """Whether transformers lists the head of a model's class, or of a class that it derives from."""
    return not _LISTED.isdisjoint(_names(type(model).__mro__))


def runs_own_code(model: nn.Module) -> bool:
    """Whether a model's outputs are those of a forward that is not transformers'."""
    return not (
        has_listed_head(model) and type(model).forward.__module__.startswith(("transformers.", "liger_kernel."))
    )


def base_model(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and PEFT's adapters; the wrappers of distributed training must be off."""
    model = getattr(model, "_orig_mod", model)
    inside: Any = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def config_value(model: nn.Module, name: str, default: Any = None) -> Any:
    """An entry of a model's configuration; the default where there is no such entry, or no configuration."""
    return getattr(getattr(model, "config", None), name, default)


@cache
def _names(classes: tuple[type, ...]) -> frozenset[str]:
    """The names of those of some classes that transformers defines."""
    return frozenset(cls.__name__ for cls in classes if cls.__module__.startswith("transformers."))


def _required_labels(batch: Mapping[str, Any], cls: type) -> torch.Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor):
        raise ValueError(
            f"R-Drop needs `labels` as a tensor in every training batch to tell what {cls.__name__} predicts; "
            + (f"they are a {type(labels).__name__}." if labels is not None else f"got only: {', '.join(batch)}.")
            + " Rows without a label carry -100. Labels of other names, or of several heads, are named by "
            'rdrop_heads=[Head(logits="...", labels="...")]. A model that learns without labels, by contrast or from '
            "its own input, does not fit R-Drop: train it with Trainer."
        )
    return labels


def _stated_problem(model: nn.Module) -> Problem | None:
    """The problem that a model's configuration states."""
    return PROBLEM_TYPES.get(config_value(model, "problem_type") or "")


def _row_classifier(config: Any, labels: torch.Tensor) -> PredictionHead:
    if config.problem_type is not None:
        return _with_soft_labels(ROWS[PROBLEM_TYPES[config.problem_type]], labels)
    if config.num_labels == 1:
        return REGRESSION
    return SINGLE_LABEL if labels.dtype in (torch.long, torch.int) else MULTI_LABEL


def _read_by_own_loss(head: PredictionHead, labels: torch.Tensor, config: Any) -> Problem | None:
    """The problem of a classifier of several classes whose labels only a loss of the user's takes."""
    if head is SINGLE_LABEL and labels.shape[1:] == (config.num_labels,):
        return "multi_label"  # yes or no of each class, as integers
    is_one_number = labels.is_floating_point() and labels.shape[1:].numel() == 1
    return "regression" if head is MULTI_LABEL and is_one_number else None


def _with_soft_labels(head: PredictionHead, labels: Any) -> PredictionHead:
    """A head whose labels are probabilities of the classes where their form says so."""
    is_float = isinstance(labels, torch.Tensor) and labels.is_floating_point()
    are_soft = head.problem == "single_label" and is_float and labels.dim() > 1
    return replace(head, soft=True) if are_soft else head


def _generator(model: nn.Module) -> PredictionHead:
    return SEQ2SEQ if config_value(model, "is_encoder_decoder") else CAUSAL_LM


def _unlisted(model: nn.Module, batch: Mapping[str, Any], problem: str | None) -> PredictionHead:
    """The head of a class that transformers does not list; its problem, where that is known."""
    if all(batch.get(key) is not None for key in QUESTION_ANSWERING.labels):
        return QUESTION_ANSWERING
    labels = _required_labels(batch, type(model))
    if any(_GENERATOR_NAMES.search(base.__name__) for base in type(model).__mro__) and labels.dim() == 2:
        return _generator(model)
    return _of_labels(labels, batch, problem)


def _of_labels(labels: torch.Tensor, batch: Mapping[str, Any], problem: str | None) -> PredictionHead:
    """The head that the type and the shape of labels speak for."""
    several = labels.dim() > 1 and labels.shape[1:].numel() > 1
    if problem is None:
        if labels.is_floating_point():
            problem = "multi_label" if several else "regression"
        else:
            problem = "multi_label" if labels.dim() > 2 else "single_label"
    along_text = labels.dim() == 3 and is_along_text(labels, batch)
    is_class_of_token = problem == "single_label" and not labels.is_floating_point() and several
    return _with_soft_labels((TOKENS if along_text or is_class_of_token else ROWS)[problem], labels)
