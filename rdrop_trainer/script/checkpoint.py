"""Loading a model and its tokenizer for a task, with the labels matched by name."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import InputError
from ..glue.features import LabelMap, are_nameless, match_labels
from ..glue.task import Task
from ..hub.adapter import Adapter
from ..hub.client import offline_if_unreached
from ..hub.model_kinds import AUTO_CLASSES, auto_class
from .adapter import (
    AdapterArguments,
    head_modules,
    is_quantized,
    quantization_of,
    quantized_modules,
    with_new_adapter,
)
from .arguments import ModelArguments
from .processors import PROCESSORS
from .saved_adapter import base_of, describe_base, saved_adapter, with_saved_adapter

logger = logging.getLogger(__name__)

# Tables of the positions of tokens; those of layouts, pictures and sounds are called otherwise
_POSITION_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")


def load_checkpoint(
    arguments: ModelArguments,
    task: Task,
    will_train: bool,
    lora: AdapterArguments | None = None,
    device: torch.device | str = "cpu",
    given: Collection[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, LabelMap | None]:
    """Load a model and its tokenizer for a task.

    Args:
        task: its labels become the model's, unless the model has the same labels in another order.
        lora: whether the model gets an adapter to train; default none. A model that is a saved adapter comes with its
            base model, and as a `PeftModel`.
        device: where weights in few bits are put; all others are on the CPU until a trainer moves them.
        given: names of the settings that the user gave.

    Returns:
        Model, tokenizer, and how the task's label ids map to the model's (None for a task without label names).

    Raises:
        InputError: the model cannot be loaded, or its labels are not the task's and it will not be trained.
    """
    source, lora = arguments.model_name_or_path, lora or AdapterArguments()
    found = _Found.at(arguments)
    config, adapter = found.config, found.adapter
    if lora.use_peft and adapter is None and not will_train:
        raise InputError(f"--use_peft: {source} is no adapter, and this run does not train one; leave it out")
    labels, new_head = _fit_labels(config, task, source, will_train)
    if new_head and adapter is not None:
        raise InputError(f"{source}: is an adapter for other labels; start from its base model, {found.base}")
    named = arguments.tokenizer_name or (source if found.has_tokenizer else found.base)
    tokenizer = _load(AutoTokenizer, named, found.options if named == found.base else _options(arguments))
    # Where there is none, transformers makes one without words
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(
            f"{arguments.tokenizer_name or source}: its tokenizer knows no words, because its files (tokenizer.json, "
            "vocab.txt) are missing; put them there, or give --tokenizer_name"
        )
    words = getattr(config.get_text_config(), "vocab_size", None) or math.inf
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= words:  # an added one may have no row in the model
        if tokenizer.eos_token is None:
            raise InputError(f"{source}: its tokenizer has no padding token and no end-of-text token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if task.head in ("question", "tokens") or task.is_language_model:
        tokenizer.padding_side = "right"  # positions count from the left
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    cls = auto_class(_class_name(task.head))
    options = {**found.options, "config": config, "dtype": arguments.dtype, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = new_head or adapter is not None
    whole = list(lora.lora_modules_to_save or ()) if adapter is None else adapter.whole_modules
    model, report = _load_in_few_bits(cls, found.base, options, arguments, lora.load_in_4bit, whole, device)
    if will_train and is_quantized(model) and not lora.use_peft and adapter is None:
        raise InputError(f"{source}: its weights are stored in few bits, which cannot be trained; add --use_peft")
    if hasattr(model, "score"):  # a decoder's classifier, which looks for the last token that is no padding
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if adapter is not None:
        asked = {name: value for name, value in vars(lora).items() if name in given}
        return with_saved_adapter(model, adapter, asked, lacking, source, will_train), tokenizer, labels
    if new_head:
        model = _with_new_head(model)
    if lora.use_peft:
        model = with_new_adapter(model, lora, task.head, lacking, source, arguments.model_revision)
    return model, tokenizer, labels


class _Found(NamedTuple):
    """What a name stands for.

    Attributes:
        config: of the model; of an adapter that of its base model, with the adapter's labels.
        base: name or folder of the model.
        options: of `from_pretrained`.
        adapter: the one that the name stands for; None for a whole model.
        has_tokenizer: whether the name has a tokenizer of its own.
    """

    config: Any
    base: str
    options: dict[str, Any]
    adapter: Adapter | None = None
    has_tokenizer: bool = True

    @classmethod
    def at(cls, arguments: ModelArguments) -> _Found:
        source, options = arguments.model_name_or_path, _options(arguments)
        adapter = saved_adapter(source, options)
        if adapter is None:
            return cls(_load(AutoConfig, source, options), source, options)
        base, revision = base_of(adapter, source)
        options["revision"] = revision
        config = _load(AutoConfig, base, options)
        describe_base(config, adapter)
        return cls(config, base, options, adapter, (adapter.folder / "tokenizer_config.json").is_file())


def _load_in_few_bits(
    cls: Any,
    base: str,
    options: dict[str, Any],
    arguments: ModelArguments,
    in_4_bits: bool,
    whole: Collection[str],
    device: torch.device | str,
) -> tuple[Any, dict[str, Any]]:
    """The model, in few bits if its files or `in_4_bits` say so, and what of it was not in its files.

    What is missing would be random, so it is trained, and therefore whole.
    """
    config = options["config"]
    is_stored_so = getattr(config, "quantization_config", None) is not None
    # Files in few bits hold no whole weights of their body
    quantization = quantization_of(cls, config, arguments, in_4_bits, () if is_stored_so else whole)
    if quantization is None:
        return _load(cls, base, options)
    place = {} if is_deepspeed_zero3_enabled() else {"device_map": {"": str(device)}}
    if is_stored_so:
        config.quantization_config = quantization
        return _load_stored(cls, base, {**options, **place})
    few = {"config": copy.deepcopy(config), "quantization_config": quantization, **place}
    model, report = _load(cls, base, {**options, **few})
    random = quantized_modules(model) & {key.rpartition(".")[0] for key in report["missing_keys"]}
    if random:
        return _load_in_few_bits(cls, base, options, arguments, in_4_bits, [*whole, *random], device)
    return model, report


def _load_stored(cls: Any, base: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same of files that hold few bits. What is trained whole must be so there."""
    advice = (
        "Its weights are stored in few bits: then the head must be whole, and nothing missing that the task needs; "
        "else start from the model with whole weights, and add --load_in_4bit"
    )
    try:
        model, report = _load(cls, base, options)
    except InputError as error:
        raise InputError(f"{error}. {advice}") from error
    heads = [model.get_submodule(name) for name in head_modules(model)]
    if not all(weight.is_floating_point() for head in heads for weight in head.parameters()):
        raise InputError(f"{base}: its head is held in few bits. {advice}")
    return model, report


def _with_new_head(model: Any) -> Any:
    """The same body under a head with random weights; one of the same shape would have kept the old head's."""
    if is_quantized(model):  # its body cannot be copied
        for name in head_modules(model):
            for module in model.get_submodule(name).modules():
                for weight in module.parameters(recurse=False):
                    vars(weight).pop("_is_hf_initialized", None)
                model._init_weights(module)
        return model
    fresh = type(model)._from_config(model.config, dtype=model.dtype)
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    return fresh


def _fit_labels(config: Any, task: Task, source: str, will_train: bool) -> tuple[LabelMap | None, bool]:
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


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest input that a model has positions for, in tokens; None if nothing limits it.

    Its tables of positions are asked. Of some the first rows are no position: those up to that of the padding token
    (RoBERTa, MPNet), or a fixed number of them (BART, OPT).
    """
    limits = [getattr(model.config, "max_position_embeddings", None) or 0]
    for name, module in model.named_modules():
        table = getattr(module, "weight", None)
        if name.split(".")[-1] in _POSITION_TABLES and table is not None:
            rows, padding = getattr(module, "num_embeddings", len(table)), getattr(module, "padding_idx", None)
            limits.append(rows - (getattr(module, "offset", 0) if padding is None else padding + 1))
    return min((limit for limit in limits if limit > 0), default=None)


def labels_of_checkpoint(arguments: ModelArguments, head: str = "sequence") -> list[str] | None:
    """The labels that a trained classifier of rows or tokens predicts, in its order; empty for a regression, None if
    unknown.
    """
    config = _Found.at(arguments).config
    if head not in ("sequence", "tokens") or not _has_head(config, head):
        return None
    if head == "sequence" and (config.problem_type == "regression" or config.num_labels == 1):
        return []
    names = [str(name) for _, name in sorted(config.id2label.items())]
    return None if are_nameless(names) else names


def language_model_head(arguments: ModelArguments) -> str:
    """The head of a language model, "causal" or "masked": that of its class, else the one that its kind has."""
    config = _Found.at(arguments).config
    known = next((head for head in _LANGUAGE_SUFFIXES if _has_head(config, head)), None)
    kinds = {"masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES, "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    known = known or next((head for head, names in kinds.items() if config.model_type in names), None)
    if config.is_encoder_decoder or known is None:
        raise InputError(
            f"{arguments.model_name_or_path} ({config.model_type}) is no language model of texts alone; choose one "
            "such as GPT-2 or Llama (causal) or BERT or RoBERTa (masked), or for encoder-decoders --task_type seq2seq"
        )
    return known


# Some classes are called otherwise than the Auto class
_LANGUAGE_SUFFIXES = {"causal": ("ForCausalLM", "LMHeadModel"), "masked": ("ForMaskedLM", "ForPreTraining")}


def _has_head(config: Any, head: str) -> bool:
    suffixes = _LANGUAGE_SUFFIXES.get(head) or (_model_suffix(head),)
    return any(name.endswith(suffixes) for name in config.architectures or ())


def _class_name(head: str) -> str:
    return AUTO_CLASSES[PROCESSORS[head].pipeline]


def _model_suffix(head: str) -> str:
    """How the names of models with this head end, such as "ForSequenceClassification"."""
    return _class_name(head).removeprefix("AutoModel")


def _options(arguments: ModelArguments) -> dict[str, Any]:
    return {
        "cache_dir": arguments.cache_dir,
        "revision": arguments.model_revision,
        "token": arguments.token,
        "trust_remote_code": arguments.trust_remote_code,
    }


def _load(cls: type[Any], source: str, options: dict[str, Any]) -> Any:
    if (source.startswith((".", "/", "~")) or "\\" in source) and not Path(source).is_dir():
        raise InputError(f"{source}: no such folder, expected a model")
    try:
        with nullcontext() if Path(source).is_dir() else offline_if_unreached():
            return cls.from_pretrained(source, **options)
    except Exception as error:  # damaged files raise errors of many kinds
        # OSError carries paragraphs of advice; the first sentence says what happened
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            reason = f"{reason.rstrip(' .')}: read it, then pass --trust_remote_code"
        what = "" if Path(source).is_dir() else "no folder here has this name, and from the Hub it "
        raise InputError(f"{source}: {what}cannot be loaded as {cls.__name__}: {reason}") from error
