"""Loading a model and its tokenizer for a task, with the labels matched by name."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ..errors import InputError
from ..glue.features import LabelMap
from ..glue.task import Task
from ..hub.model_kinds import auto_class
from .adapter import (
    AdapterArguments,
    head_modules,
    is_quantized,
    quantization_of,
    quantized_modules,
    with_new_adapter,
)
from .arguments import ModelArguments
from .model_labels import class_name, fit_labels
from .saved_adapter import with_saved_adapter
from .source import Source, load, options_of

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
    """
    source, lora = arguments.model_name_or_path, lora or AdapterArguments()
    found = Source.at(arguments)
    config, adapter = found.config, found.adapter
    if lora.use_peft and adapter is None and not will_train:
        raise InputError(f"--use_peft: {source} is no adapter, and this run does not train one; leave it out")
    labels, new_head = fit_labels(config, task, source, will_train)
    if new_head and adapter is not None:
        raise InputError(f"{source}: is an adapter for other labels; start from its base model, {found.base}")
    tokenizer = _load_tokenizer(arguments, found)
    if task.head in ("question", "tokens") or task.is_language_model:
        tokenizer.padding_side = "right"  # positions count from the left
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    cls = auto_class(class_name(task.head))
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


def _load_tokenizer(arguments: ModelArguments, found: Source) -> PreTrainedTokenizerBase:
    """A model's tokenizer, with a token to pad with."""
    source = arguments.model_name_or_path
    named = arguments.tokenizer_name or (source if found.has_tokenizer else found.base)
    tokenizer = load(AutoTokenizer, named, found.options if named == found.base else options_of(arguments))
    # Where there is none, transformers makes one without words
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(
            f"{arguments.tokenizer_name or source}: its tokenizer knows no words, because its files (tokenizer.json, "
            "vocab.txt) are missing; put them there, or give --tokenizer_name"
        )
    words = getattr(found.config.get_text_config(), "vocab_size", None) or math.inf
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= words:  # an added one may have no row in the model
        if tokenizer.eos_token is None:
            raise InputError(f"{source}: its tokenizer has no padding token and no end-of-text token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
        return load(cls, base, options)
    place = {} if is_deepspeed_zero3_enabled() else {"device_map": {"": str(device)}}
    if is_stored_so:
        config.quantization_config = quantization
        return _load_stored(cls, base, {**options, **place})
    few = {"config": copy.deepcopy(config), "quantization_config": quantization, **place}
    model, report = load(cls, base, {**options, **few})
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
        model, report = load(cls, base, options)
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
