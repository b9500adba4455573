"""LoRA and QLoRA: the flags, what they need, and a model with a new adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arguments import ModelArguments, flag

# What PEFT calls the tasks; without a name it wraps a model of any other task as well
_TASK_TYPES = {"sequence": "SEQ_CLS", "tokens": "TOKEN_CLS", "question": "QUESTION_ANS", "seq2seq": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class AdapterArguments:
    """Whether an adapter is trained, and which; names and defaults are those of trl's `ModelConfig`."""

    _argument_group_name = "adapter (LoRA and QLoRA)"

    use_peft: bool = flag(
        False,
        "Train a LoRA adapter and the head, and leave the other weights as they are. output_dir then holds the adapter "
        'alone, which is loaded with its base model. Needs: pip install "rdrop-trainer[peft]".',
    )
    lora_r: int = flag(16, "Rank of the adapter's matrices.")
    lora_alpha: int = flag(32, "The adapter's output is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = flag(
        0.05,
        "Dropout of the adapter's inputs. It is noise enough for R-Drop where the model has no dropout of its own; "
        "--dropout, where given, sets this one too.",
    )
    lora_target_modules: list[str] | None = flag(
        None,
        "Names of the modules to adapt, or all-linear, or a regular expression of whole paths. Default: PEFT's choice "
        "for the model, often the query and value projections.",
    )
    lora_modules_to_save: list[str] | None = flag(
        None, "Names of modules to train whole and to save with the adapter. The head is always one of them."
    )
    load_in_4bit: bool = flag(
        False,
        "QLoRA: hold the weights below the adapter in 4 bits (NF4), computed in --dtype. Needs bitsandbytes.",
    )

    def __post_init__(self):
        for name in ("lora_r", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), got {self.lora_dropout}.")
        if isinstance(pattern := _targets(self.lora_target_modules), str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"lora_target_modules must be names, all-linear or a regular expression, got {pattern!r}: {error}."
                ) from error


def check_adapter_flags(adapter: AdapterArguments, given: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, what would have no effect or what this machine cannot do."""
    if not adapter.use_peft:
        idle = {f.name for f in fields(AdapterArguments) if given.get(f.name)} - {"use_peft"}
        if idle and "use_peft" not in given:  # given as False, it overrules a recipe whose other flags stay
            raise InputError(f"--{min(idle)} has no effect without --use_peft: add that, or leave this out")
        return
    if find_spec("peft") is None:
        raise InputError('--use_peft: peft is needed and not installed: pip install "rdrop-trainer[peft]"')
    if adapter.load_in_4bit and find_spec("bitsandbytes") is None:
        raise InputError(
            "--load_in_4bit: bitsandbytes is needed and not installed: pip install bitsandbytes; without it, "
            "--use_peft trains the same adapter over weights in --dtype"
        )


def quantization_of(
    build: Any, config: Any, arguments: ModelArguments, in_4_bits: bool, whole: Collection[str]
) -> Any | None:
    """The quantization that a model is loaded in: its own, where its files hold one, or that of QLoRA; None for none.

    Args:
        build: the class of the model.
        config: of the model.
        in_4_bits: whether --load_in_4bit is given.
        whole: names of modules that are trained whole, besides the head.
    """
    import torch
    import transformers

    from ..hub.quantization import as_mapping, in_words, leaving_out

    own = getattr(config, "quantization_config", None)
    if own is None and not in_4_bits:
        return None
    if own is not None and in_4_bits and not as_mapping(own).get("load_in_4bit"):
        raise InputError(
            f"--load_in_4bit: {arguments.model_name_or_path} is stored in {in_words(own)} already; leave the flag out, "
            "or start from the model with whole weights"
        )
    with torch.device("meta"):
        model = build.from_config(config, trust_remote_code=arguments.trust_remote_code)
    if own is None:
        compute = getattr(config, "dtype", None) if arguments.dtype == "auto" else arguments.dtype
        own = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    return leaving_out(own, model, [*head_modules(model), *whole])


def head_modules(model: Any) -> list[str]:
    """The names of a model's modules beside its body, as far as they have weights: its head."""
    body = model.base_model
    beside = [(name, child) for name, child in model.named_children() if child is not body] if body is not model else []
    return [name for name, child in beside if next(child.parameters(), None) is not None]


def with_new_adapter(
    model: Any, arguments: AdapterArguments, head: str, lacking: Collection[str], source: str, revision: str
) -> Any:
    """A model with an adapter to train: a `PeftModel`.

    Args:
        model: its weights no longer train, but for the head and what its checkpoint lacked, which are saved with the
            adapter: random weights would be other ones where the model is loaded again.
        lacking: names of weights that the checkpoint did not hold.
        source: where the model came from; a folder is written down by its whole path.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = [name for name, _ in model.named_modules()]
    targets = _targets(arguments.lora_target_modules)
    asked = {"lora_modules_to_save": arguments.lora_modules_to_save, "lora_target_modules": targets}
    for option, wanted in ((each, name) for each, given in asked.items() if isinstance(given, list) for name in given):
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            raise InputError(f"--{option} {wanted}: {type(model).__name__} has no module of this name")
    own = [] if head == "seq2seq" else head_modules(model)
    random = {name.rpartition(".")[0] for name in lacking} - {""}
    random = {name for name in random if not any(name == part or name.startswith(f"{part}.") for part in own)}
    saved = list(dict.fromkeys([*own, *sorted(random), *(arguments.lora_modules_to_save or ())]))
    if is_quantized(model):
        _check_whole(model, saved, source)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the trainer turns that on
    config = LoraConfig(
        task_type=_TASK_TYPES.get(head),
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        revision=None if revision == "main" else revision,
        auto_mapping=_of_base(model.config, head),
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{source} ({type(model).__name__}) cannot be adapted: {said} Name its modules with "
            "--lora_target_modules, or give all-linear"
        ) from error
    if Path(source).is_dir():
        config.base_model_name_or_path = os.path.abspath(source)
    return adapted


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are held in few bits."""
    return getattr(model, "hf_quantizer", None) is not None


def quantized_modules(model: Any) -> set[str]:
    """The names of the modules that hold weights in few bits."""
    return {name for name, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")}


def _check_whole(model: Any, names: Collection[str], source: str) -> None:
    held = [f".{name}." for name in quantized_modules(model)]
    if found := [name for name in names if any(f".{name}." in own for own in held)]:
        raise InputError(
            f"{source} holds {', '.join(found[:4])} in few bits, and only whole weights can be trained and saved with "
            "the adapter; leave out --lora_modules_to_save, or start from the model with whole weights"
        )


def _targets(names: list[str] | None) -> list[str] | str | None:
    """As PEFT takes them: it reads a text alone as a regular expression, so one plain name stays in a list."""
    alone = names is not None and len(names) == 1
    is_name = alone and names[0].replace(".", "").replace("_", "").isalnum()
    return names[0] if alone and not is_name else names


def _of_base(config: Any, head: str) -> dict[str, Any] | None:
    """What the configuration of the base model does not say and `hub.adapter` reads: labels, and the padding token."""
    if head not in ("sequence", "tokens"):
        return None
    labels = {} if config.num_labels == 1 else {"id2label": {str(i): name for i, name in config.id2label.items()}}
    return {**labels, "pad_token_id": config.get_text_config().pad_token_id}


def adapter_facts(model: Any) -> dict[str, Any] | None:
    """Of a `PeftModel` its `base` model, how many `weights` it has, and how many of them train (`trained`)."""
    if not hasattr(model, "get_nb_trainable_parameters"):
        return None
    trained, weights = model.get_nb_trainable_parameters()
    return {"base": model.active_peft_config.base_model_name_or_path, "trained": trained, "weights": weights}


def check_pushable(model: Any) -> None:
    """Refuse, before a training, to push an adapter of a model that others do not have; any other model may pass."""
    from ..hub.card_data import is_hub_name

    facts = adapter_facts(model)
    if facts is not None and not is_hub_name(facts["base"]):
        raise InputError(
            f"--push_to_hub: the base model of the adapter is the folder {facts['base']}, which others do not have; "
            "push that first and give its name on the Hub, or leave --push_to_hub out"
        )
