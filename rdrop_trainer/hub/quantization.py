"""Base models in few bits: what is left out, and what is said of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any


def as_mapping(quantization: Any) -> Mapping[str, Any]:
    """The settings of a quantization, an object of transformers or the entry of a config.json; empty for None."""
    return quantization if isinstance(quantization, Mapping) else {} if quantization is None else quantization.to_dict()


def is_by_bitsandbytes(quantization: Any) -> bool:
    """Whether it is in the 4 or 8 bits of bitsandbytes."""
    settings = as_mapping(quantization)
    return bool(settings.get("load_in_4bit") or settings.get("load_in_8bit"))


def in_words(quantization: Any) -> str | None:
    """How a model's weights are held, such as "4 bits (nf4, computed in bfloat16)"; None for whole weights."""
    settings = as_mapping(quantization)
    if not settings:
        return None
    if settings.get("load_in_4bit"):
        compute = settings.get("bnb_4bit_compute_dtype") or "float32"
        return f"4 bits ({settings.get('bnb_4bit_quant_type', 'fp4')}, computed in {compute})"
    if settings.get("load_in_8bit"):
        return "8 bits (LLM.int8)"
    method = settings.get("quant_method")
    method, bits = getattr(method, "value", method), settings.get("bits")
    return f"{bits} bits ({method})" if bits else str(method)


def bitsandbytes_arguments(quantization: Any) -> str | None:
    """The arguments of a `BitsAndBytesConfig`, as code; None for other quantizations.

    The modules that are left out are not named: `load_checkpoint` leaves out what the adapter trained whole.
    """
    settings = as_mapping(quantization)
    if settings.get("load_in_8bit"):
        return "load_in_8bit=True"
    if not settings.get("load_in_4bit"):
        return None
    kinds = ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant")
    given = [f"{name}={settings[name]!r}" for name in kinds if settings.get(name)]
    return ", ".join(["load_in_4bit=True", *given]).replace("'", '"')


def leaving_out(quantization: Any, model: Any, names: Iterable[str]) -> Any:
    """A quantization by bitsandbytes that leaves some modules whole; any other comes back as it is.

    Args:
        quantization: as of `as_mapping`.
        model: on the meta device say. Its output embeddings stay whole, too: they do where transformers
            has no list of names.
    """
    if not is_by_bitsandbytes(quantization):
        return quantization
    settings = as_mapping(quantization)
    outputs = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    of_outputs = [name for name, module in model.named_modules() if module is outputs and outputs is not None]
    whole = list(dict.fromkeys([*(settings.get("llm_int8_skip_modules") or ()), *names, *of_outputs])) or None
    if isinstance(quantization, Mapping):
        return {**quantization, "llm_int8_skip_modules": whole}
    changed = copy.deepcopy(quantization)
    changed.llm_int8_skip_modules = whole
    return changed
