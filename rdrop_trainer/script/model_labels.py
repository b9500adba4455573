"""The labels and the head of a model: what it predicts, and whether that is what a task asks for."""

from __future__ import annotations

import logging
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import InputError
from ..glue.features import LabelMap, are_nameless, match_labels
from ..glue.task import Task
from ..hub.model_kinds import AUTO_CLASSES
from .arguments import ModelArguments
from .processors import PROCESSORS
from .source import Source

logger = logging.getLogger(__name__)

# Some classes are called otherwise than the Auto class
_LANGUAGE_SUFFIXES = {"causal": ("ForCausalLM", "LMHeadModel"), "masked": ("ForMaskedLM", "ForPreTraining")}


def fit_labels(config: Any, task: Task, source: str, will_train: bool) -> tuple[LabelMap | None, bool]:
    """Write the task's labels into the configuration; returns their map, and whether the head must be a new one."""
    if task.head == "seq2seq":
        if not config.is_encoder_decoder:
            raise InputError(
                f"{source} ({config.model_type}) is no encoder-decoder, and {task.name} writes texts; choose a model "
                "such as BART, T5 or mT5"
            )
        return None, False  # it writes the words it reads: there is no head to replace
    has_head = _has_head(config, task.head)
    if not has_head and not will_train:
        raise InputError(
            f"{source} has no trained head ({_model_suffix(task.head)}), so it would predict at random; train it on "
            f"{task.name} first (--do_train), or choose a trained model"
        )
    if task.is_language_model:
        return None, False
    if task.reads_passages:
        if task.head == "question":
            config.num_labels = 2  # start and end; a classifier's configuration has its number of labels
        return None, not has_head
    if task.is_regression:
        if has_head and config.num_labels != 1 and not will_train:
            raise InputError(f"{source} predicts {config.num_labels} labels, but {task.name} is a regression")
        new_head = has_head and config.num_labels != 1
        config.num_labels = 1
        config.problem_type = "regression"
        return None, new_head
    labels = match_labels(task, config.id2label) if has_head else None
    new_head = has_head and labels is None
    if new_head:
        names = ", ".join(map(str, list(config.id2label.values())[:8]))
        message = f"{source} predicts other labels ({names}) than {task.name} has ({', '.join(task.labels[:8])})"
        if not will_train:
            raise InputError(f"{message}; train it on {task.name} first (--do_train), or choose another model")
        logger.warning(f"{message}; its head is replaced by a new one")
    if labels is None:
        labels = LabelMap(tuple(range(len(task.labels))))
    config.id2label = dict(sorted((labels.to_model[i], name) for i, name in enumerate(task.labels)))
    config.label2id = {name: i for i, name in config.id2label.items()}
    config.problem_type = "single_label_classification" if task.head == "sequence" else None
    return labels, new_head


def labels_of_checkpoint(arguments: ModelArguments, head: str = "sequence") -> list[str] | None:
    """The labels that a trained classifier of rows or tokens predicts, in its order; empty for a regression, None if
    unknown.
    """
    config = Source.at(arguments).config
    if head not in ("sequence", "tokens") or not _has_head(config, head):
        return None
    if head == "sequence" and (config.problem_type == "regression" or config.num_labels == 1):
        return []
    names = [str(name) for _, name in sorted(config.id2label.items())]
    return None if are_nameless(names) else names


def language_model_head(arguments: ModelArguments) -> str:
    """The head of a language model, "causal" or "masked": that of its class, else the one that its kind has."""
    config = Source.at(arguments).config
    known = next((head for head in _LANGUAGE_SUFFIXES if _has_head(config, head)), None)
    kinds = {"masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES, "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    known = known or next((head for head, names in kinds.items() if config.model_type in names), None)
    if config.is_encoder_decoder or known is None:
        raise InputError(
            f"{arguments.model_name_or_path} ({config.model_type}) is no language model of texts alone; choose one "
            "such as GPT-2 or Llama (causal) or BERT or RoBERTa (masked), or for encoder-decoders --task_type seq2seq"
        )
    return known


def _has_head(config: Any, head: str) -> bool:
    suffixes = _LANGUAGE_SUFFIXES.get(head) or (_model_suffix(head),)
    return any(name.endswith(suffixes) for name in config.architectures or ())


def class_name(head: str) -> str:
    return AUTO_CLASSES[PROCESSORS[head].pipeline]


def _model_suffix(head: str) -> str:
    """How the names of models with this head end, such as "ForSequenceClassification"."""
    return class_name(head).removeprefix("AutoModel")
