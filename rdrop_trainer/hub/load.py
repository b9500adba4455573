"""Loading a checkpoint: the model with its head, the tokenizer or processor, and the settings of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import metadata_load
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from ..errors import InputError
from ..training_args import RDropArguments
from .adapter import Adapter
from .card_data import BLOCK, settings_from_block
from .client import check_repo_id
from .download import download_checkpoint
from .files import read_json
from .folder import CARD, check_index, config_name
from .model_kinds import AUTO_CLASSES, auto_class, auto_class_name, classes_of
from .quantization import is_by_bitsandbytes, leaving_out


class LoadedCheckpoint(NamedTuple):
    """A checkpoint, ready to use.

    Attributes:
        model: in evaluation mode.
        processing_class: tokenizer, image processor, feature extractor or processor; None if there is none.
        settings: of R-Drop; None if the card has no valid ones.
    """

    model: PreTrainedModel
    processing_class: Any
    settings: RDropArguments | None


def load_checkpoint(
    repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    **model_arguments: Any,
) -> LoadedCheckpoint:
    """Load a checkpoint from the Hub, verified as by `download_checkpoint`, or from a folder.

    The class of the model is the one that the weights were saved from. If transformers does not have it, the card's
    task decides. Weights are read from safetensors files alone. An adapter comes as a `PeftModel` around its base
    model, which is verified in the same way. That comes as its files hold it, also where the adapter was trained
    over it in 4 bits, as the card then says: `quantization_config=BitsAndBytesConfig(...)` loads it so. What of such a
    base model is not in few bits, as its norms, is in float32, as it is in training.

    Args:
        repo_id: "user/name", or a folder.
        revision: branch, tag or commit; default main.
        token: for private repositories; None for the stored one.
        cache_dir: as of `download_checkpoint`.
        trust_remote_code: run the Python files of the repository. Read them first.
        **model_arguments: for the model's `from_pretrained`, such as `dtype`, `device_map` and
            `quantization_config`.

    Returns:
        Model, processing class and settings.

    Raises:
        InputError: there is no such folder, and the name is not valid; the model cannot be loaded without running its
            code; weights are missing, do not fit, or lie outside the folder.
        HubError: as of `download_checkpoint`.
    """
    source = str(repo_id)
    fetch = partial(download_checkpoint, token=token, cache_dir=cache_dir, with_code=trust_remote_code)
    folder = Path(source) if source and Path(source).is_dir() else _fetched(source, revision, fetch)
    config_name(folder)
    card = _card(folder)
    adapter = Adapter.of(source, folder)
    model_folder = folder if adapter is None else adapter.base_folder(source, fetch)
    config = read_json(model_folder / "config.json")
    check_index(model_folder)
    if not trust_remote_code:
        _check_no_code(source, config)
    # An adapter brings its own head, so the head of its base model says nothing
    name = (auto_class_name(adapter.classes, adapter.task) if adapter else None) or _auto_class_of(source, config, card)
    options = {"trust_remote_code": trust_remote_code}
    try:
        model = _model(source, name, model_folder, adapter, {**options, **model_arguments})
        processing_class = _processing_class(folder, options)
    except InputError:
        raise
    except Exception as error:  # configurations, weights and tokenizers raise errors of every kind
        said = " ".join(" ".join(str(error).split("\n")[:2]).split())
        if "ignore_mismatched_sizes" in said:
            said = "the shapes of its weights are not those that its config.json tells"
        raise InputError(f"{source}: cannot be loaded as {name}: {said or type(error).__name__}") from error
    return LoadedCheckpoint(model.eval(), processing_class, settings_from_block(card.get(BLOCK)))


def _fetched(source: str, revision: str | None, fetch: Callable[..., Path]) -> Path:
    try:
        check_repo_id(source)
    except InputError as error:
        raise InputError(f"{source}: there is no such folder, and it is no repository's name (USER/NAME)") from error
    return fetch(source, revision=revision)


def _model(source: str, name: str, folder: Path, adapter: Adapter | None, options: dict[str, Any]) -> Any:
    """The model. A weight that the files lack is an error: it would be random."""
    given = adapter.model_arguments if adapter else {}
    options = {**given, **options}
    if adapter:
        options = _leaving_out(adapter, name, folder, options)
    model, report = auto_class(name).from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    # Not the folder in the cache: the card of what is trained from here on names its base
    model.name_or_path = model.config.name_or_path = adapter.base if adapter else source
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if adapter:
        from peft import PeftModel, prepare_model_for_kbit_training

        lacking -= set(adapter.shapes)
        if is_by_bitsandbytes(getattr(model.config, "quantization_config", None)):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = PeftModel.from_pretrained(model, adapter.folder)
    if lacking:
        shown = ", ".join(sorted(lacking)[:4]) + " ..." * (len(lacking) > 4)
        raise InputError(f"{source}: its weights lack {shown}, which would be random: they are of no {name}")
    return model


def _leaving_out(adapter: Adapter, name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The same options, with what the adapter trained whole left out of the base model's quantization, if any."""
    # As the class of a model does, which keeps these from the configuration
    names = ("config", "dtype", "torch_dtype", "quantization_config")
    kept = {key: value for key, value in options.items() if key in names}
    config, rest = kept.get("config"), {key: value for key, value in options.items() if key not in names}
    if config is None:
        config, rest = AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **rest)
    asked, own = kept.get("quantization_config"), getattr(config, "quantization_config", None)
    if not is_by_bitsandbytes(asked if own is None else own):
        return options
    code = options["trust_remote_code"]
    with torch.device("meta"):
        model = auto_class(name).from_config(config, trust_remote_code=code)
    if own is None:
        return {**options, "quantization_config": leaving_out(asked, model, adapter.whole_modules)}
    config.quantization_config = leaving_out(own, model, adapter.whole_modules)
    return {**rest, **kept, "config": config, "trust_remote_code": code}


def _check_no_code(source: str, config: Mapping[str, Any]) -> None:
    """Refuse custom model classes and kernels of the Hub: they are code that would be fetched and run."""

    def asks(key: str, value: Any) -> bool:
        kernel = key.endswith("attn_implementation") and "/" in str(value)
        return key == "auto_map" or kernel or (isinstance(value, Mapping) and any(asks(*e) for e in value.items()))

    if any(asks(*entry) for entry in config.items()):
        raise InputError(
            f"{source}: its config.json asks for code from the Hub, for {', '.join(classes_of(config)) or 'its model'};"
            " read that code, then load it with trust_remote_code=True"
        )


def _auto_class_of(source: str, config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    task = card.get("pipeline_tag") if isinstance(card.get("pipeline_tag"), str) else None
    own = config.get("auto_map")
    brought = [name for name in own if name in AUTO_CLASSES.values()] if isinstance(own, dict) else []
    name = next(iter(brought), None) or auto_class_name(classes_of(config), task)
    if name is None:
        raise InputError(
            f"{source}: neither its class ({', '.join(classes_of(config)) or 'not told'}) nor its card's task ({task}) "
            f"says how to load it; expected a task of {', '.join(AUTO_CLASSES)}, or load it with its own class"
        )
    return name


def _processing_class(folder: Path, options: dict[str, Any]) -> Any:
    names = {path.name for path in folder.iterdir()}
    if "processor_config.json" in names:
        return AutoProcessor.from_pretrained(folder, **options)
    if names & {"tokenizer_config.json", "tokenizer.json"}:
        return AutoTokenizer.from_pretrained(folder, **options)
    if "preprocessor_config.json" in names:
        kind = read_json(folder / "preprocessor_config.json")
        auto = AutoFeatureExtractor if "feature_extractor_type" in kind else AutoImageProcessor
        return auto.from_pretrained(folder, **options)
    return None


def _card(folder: Path) -> Mapping[str, Any]:
    try:
        return metadata_load(folder / CARD) or {}
    except Exception:  # a model is loaded without a card too, or with a damaged one
        return {}
