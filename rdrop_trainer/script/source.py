"""What a model's name stands for, a model or an adapter over one, and loading a part of it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig

from ..errors import InputError
from ..hub.adapter import Adapter
from ..hub.client import offline_if_unreached
from .arguments import ModelArguments
from .saved_adapter import describe_base, saved_adapter


class Source(NamedTuple):
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
    def at(cls, arguments: ModelArguments) -> Source:
        source, options = arguments.model_name_or_path, options_of(arguments)
        adapter = saved_adapter(source, options)
        if adapter is None:
            return cls(load(AutoConfig, source, options), source, options)
        base = str(adapter.base_folder(source, lambda name, revision: name))
        options["revision"] = adapter.revision or "main"
        config = load(AutoConfig, base, options)
        describe_base(config, adapter)
        return cls(config, base, options, adapter, (adapter.folder / "tokenizer_config.json").is_file())


def options_of(arguments: ModelArguments) -> dict[str, Any]:
    return {
        "cache_dir": arguments.cache_dir,
        "revision": arguments.model_revision,
        "token": arguments.token,
        "trust_remote_code": arguments.trust_remote_code,
    }


def load(cls: type[Any], source: str, options: dict[str, Any]) -> Any:
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
