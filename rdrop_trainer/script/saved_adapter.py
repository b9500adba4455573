"""A model that is a saved adapter, in a folder or on the Hub: what it says of itself, and its base model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import InputError
from ..hub.adapter import Adapter
from ..hub.client import offline_if_unreached
from ..hub.files import read_json
from ..hub.model_kinds import AUTO_CLASSES
from .adapter import is_quantized

# Flags -> PEFT's names
_OWN_SETTINGS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
}


def saved_adapter(source: str, options: Mapping[str, Any]) -> Adapter | None:
    """The adapter in a folder or on the Hub; None where there is none, as where a whole model is."""
    folder = Path(source)
    if folder.is_dir():
        return None if any(folder.glob("model*.safetensors*")) else Adapter.of(source, folder)
    if find_spec("peft") is None:  # then transformers does not look for one either
        return None
    how = {name: options[name] for name in ("cache_dir", "revision", "token")}
    how["_raise_exceptions_for_missing_entries"] = how["_raise_exceptions_for_connection_errors"] = False
    how["_raise_exceptions_for_gated_repo"] = False  # said where the model is loaded
    try:
        with offline_if_unreached():
            found = cached_file(source, "adapter_config.json", **how)
            for name in ("adapter_model.safetensors", "tokenizer_config.json") if found else ():
                cached_file(source, name, **how)
    except (OSError, ValueError):  # no such repository, no such name: said there as well
        return None
    return None if found is None else Adapter.of(source, Path(found).parent)


def describe_base(config: Any, adapter: Adapter) -> None:
    """Write what an adapter knows of its head into the configuration of its base model, in place."""
    for name, value in adapter.model_arguments.items():
        if name != "ignore_mismatched_sizes":
            setattr(config, name, value)
    known = AUTO_CLASSES.get(adapter.task, "").removeprefix("AutoModel")
    config.architectures = [known] if known else adapter.classes or config.architectures


def with_saved_adapter(
    model: Any, adapter: Adapter, given: Mapping[str, Any], lacking: Collection[str], source: str, will_train: bool
) -> Any:
    """A base model with its adapter: a `PeftModel`.

    Args:
        given: the values of the flags that the user gave; an adapter that exists has its own.
        lacking: names of the weights that the base model's checkpoint did not hold, or in another shape.
    """
    from peft import PeftModel, prepare_model_for_kbit_training

    if random := set(lacking) - set(adapter.shapes):
        raise InputError(
            f"{source}: neither the adapter nor its base model holds {', '.join(sorted(random)[:4])}, which would be "
            "random; train it again"
        )
    for flag in _OWN_SETTINGS.keys() & given.keys() if will_train else ():
        name = _OWN_SETTINGS[flag]
        value, own = _listed(given[flag]), _listed(adapter.config.get(name))
        if value - own or (own - value and name != "modules_to_save"):  # where the head is always one of them
            raise InputError(
                f"--{flag} {_shown(value)}: {source} is an adapter with {_shown(own)} already; leave it out to train "
                f"that one on, or start from its base model, {adapter.base}"
            )
    if is_quantized(model):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return PeftModel.from_pretrained(model, adapter.folder, is_trainable=will_train)


def check_same_adapter(model: Any, checkpoint: str) -> None:
    """Refuse to go on from a checkpoint whose weights are not those that a model trains."""
    folder, now = Path(checkpoint), getattr(model, "peft_config", None)
    path = folder / "adapter_config.json"
    before = read_json(path) if path.is_file() else None
    if before is None and now is not None and any(folder.glob("model*.safetensors*")):  # FSDP writes other files
        raise InputError(f"--resume_from_checkpoint {checkpoint}: holds a whole model; leave out --use_peft")
    if before is not None and now is None:
        raise InputError(f"--resume_from_checkpoint {checkpoint}: holds an adapter alone; add --use_peft")
    if before is None or now is None:
        return
    config = now["default"].to_dict()
    for flag, name in _OWN_SETTINGS.items():
        value, own = _listed(config.get(name)), _listed(before.get(name))
        if value != own and name != "lora_dropout":  # which may change, as a learning rate may
            raise InputError(
                f"--{flag} {_shown(value)}: the adapter in --resume_from_checkpoint {checkpoint} has {_shown(own)}; "
                "give that, or another checkpoint"
            )


def _listed(value: Any) -> set[Any]:
    """The names in a setting of several, or the one value of another."""
    return set(value) if isinstance(value, list | set) else set() if value is None else {value}


def _shown(values: Collection[Any]) -> str:
    return " ".join(sorted(map(str, values))) or "none"
