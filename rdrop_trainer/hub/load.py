"""Loading a checkpoint: the model with its own head, its tokenizer or processor, and the settings of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from ..card_data import BLOCK, settings_from_block
from ..errors import InputError
from ..model_kinds import AUTO_CLASSES, auto_class, auto_class_name
from ..training_args import RDropArguments
from .download import download_checkpoint
from .folder import CARD

# The head that a PEFT adapter was trained for
_ADAPTER_TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
}


class LoadedCheckpoint(NamedTuple):
    """A checkpoint, ready to use.

    Attributes:
        model: in evaluation mode.
        processing_class: tokenizer, image processor, feature extractor or processor; None where there is none.
        settings: of R-Drop; None where the card tells none.
    """

    model: PreTrainedModel
    processing_class: Any
    settings: RDropArguments | None


def load_checkpoint(
    repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    **model_arguments,
) -> LoadedCheckpoint:
    """Load a checkpoint from the Hub, verified as by `download_checkpoint`, or from a folder.

    The class is that which the weights were saved from, or the Auto class of the card's task where transformers does
    not have that. Weights are read from safetensors files alone.

    Args:
        repo_id: "user/name", or a folder.
        revision: branch, tag or commit; default main.
        token: for private repositories; None for the stored one.
        trust_remote_code: run the Python files that the repository brings. Read them first.
        **model_arguments: for `from_pretrained` of the model, such as `dtype` and `device_map`.

    Returns:
        Model, processing class and settings.

    Raises:
        InputError: no name of a repository; no model that can be loaded without running its code; weights are missing.
        HubError: as of `download_checkpoint`.
    """
    folder = Path(repo_id)
    if not folder.is_dir():
        folder = download_checkpoint(str(repo_id), revision=revision, token=token, with_code=trust_remote_code)
    card = _card(folder)
    adapter = folder / "adapter_config.json"
    config = _config(adapter if adapter.is_file() else folder / "config.json")
    if "auto_map" in config and not trust_remote_code:
        raise InputError(
            f"{repo_id}: its model is a class of its own, {_shown(config)}; read that code, then load it with "
            "trust_remote_code=True"
        )
    task = _ADAPTER_TASKS.get(config.get("task_type")) or card.get("pipeline_tag")
    name = auto_class_name(config.get("architectures"), task)
    if name is None:
        raise InputError(
            f"{repo_id}: neither its class ({_shown(config)}) nor its card's task ({task}) says how to load it; "
            f"expected a task of {', '.join(AUTO_CLASSES)}, or load it with its own class"
        )
    options = {"trust_remote_code": trust_remote_code}
    if adapter.is_file():
        _need_peft(repo_id)
        model = auto_class(name).from_pretrained(folder, **options, **model_arguments)
    else:
        model = _model(str(repo_id), name, folder, {**options, **model_arguments})
    return LoadedCheckpoint(model.eval(), _processing_class(folder, options), settings_from_block(card.get(BLOCK)))


def _model(source: str, name: str, folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    try:
        model, report = auto_class(name).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be loaded as {name}: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{source}: its weights lack {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}, which would be "
            f"random: they are of no {name}"
        )
    return model


def _processing_class(folder: Path, options: dict[str, Any]) -> Any:
    names = {path.name for path in folder.iterdir()}
    if "processor_config.json" in names:
        return AutoProcessor.from_pretrained(folder, **options)
    if names & {"tokenizer_config.json", "tokenizer.json"}:
        return AutoTokenizer.from_pretrained(folder, **options)
    if "preprocessor_config.json" in names:
        kind = _config(folder / "preprocessor_config.json")
        auto = AutoFeatureExtractor if "feature_extractor_type" in kind else AutoImageProcessor
        return auto.from_pretrained(folder, **options)
    return None


def _need_peft(source: str | Path) -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(f"{source}: is an adapter; pip install peft to load it") from error


def _card(folder: Path) -> dict[str, Any]:
    try:
        card = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except Exception:  # no card, or one that is damaged, is no reason not to load a model
        return {}
    return card.data.to_dict()


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _shown(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return ", ".join(map(str, names)) if isinstance(names, list) and names else "not told"
