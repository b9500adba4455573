"""The checkpoint in a saved folder: its files, whether they are whole, and whether others may see them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open

from ..errors import InputError
from .client import TOKEN
from .model_card import NO_REPO, bare_card, card_for_hub

CARD = "README.md"
# Files of a model and of its tokenizer or processor. Nothing else is pushed: optimizer states, pickled arguments (which
# hold tokens and paths), logs, data and predictions
_DESCRIPTIONS = (
    "config.json generation_config.json tokenizer_config.json preprocessor_config.json processor_config.json "
    "video_preprocessor_config.json adapter_config.json tokenizer.json special_tokens_map.json added_tokens.json "
    "vocab.json vocab.txt merges.txt bpe.codes dict.txt *.model *.spm *.tiktoken *_vocab.json entity_vocab.json "
    "normalizer.json emoji.json chat_template.jinja chat_template.json additional_chat_templates/*.jinja LICENSE"
).split()
_WEIGHTS = ("model", "adapter_model")
_WEIGHT_FILES = tuple(f"{stem}{end}" for stem in _WEIGHTS for end in ("*.safetensors", ".safetensors.index.json"))
# Files of an earlier checkpoint in a repository. They would be read with those of a new one, or in place of them
_REPLACED = (
    *_DESCRIPTIONS[:-1],
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_model.bin",
)
_TOKEN = re.compile(TOKEN.encode())


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint in a folder.

    Attributes:
        folder: where it is.
        files: name in the repository -> file.
        card: text of the model card.
        has_card: whether the folder has a card; else `card` is a short one made from the configuration.
    """

    folder: Path
    files: dict[str, Path]
    card: str
    has_card: bool

    def contents(self, repo_id: str) -> dict[str, Path | bytes]:
        """What a repository of this name gets: name -> file, or content without local paths."""
        contents: dict[str, Path | bytes] = dict(self.files)
        for name, path in self.files.items():
            if fnmatch(name, "*.json") and (clean := _without_local_names(path)) is not None:
                contents[name] = clean
        return {**contents, CARD: card_for_hub(self.card, repo_id).encode()}

    def replaces(self, name: str) -> bool:
        """Whether a file in the repository belongs to an earlier checkpoint."""
        return name not in self.files and any(_matches(name, pattern) for pattern in _REPLACED)


def read_checkpoint(folder: str | Path, token: str | bool | None = None) -> Checkpoint:
    """Find the checkpoint in a folder, and check that it is whole. Nothing is written.

    Args:
        folder: what `save_pretrained`, `save_model` or a training left.
        token: a token to look for in the files, besides everything that looks like one.

    Raises:
        InputError: there is no model, or no safetensors weights; a file is damaged or missing; a file holds a token;
            the card's metadata cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one that holds a saved model")
    config_name = next((n for n in ("config.json", "adapter_config.json") if (folder / n).is_file()), None)
    if config_name is None:
        raise InputError(f"{folder}: holds no config.json, so no saved model; expected what save_pretrained writes")
    config = read_json(folder / config_name)
    _check_adapter(folder)
    # Unlike rglob, walk does not fail when a training deletes an old checkpoint meanwhile
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    card_file = folder / CARD
    has_card = card_file.is_file()
    card = _read_text(card_file) if has_card else bare_card(config)
    _check_card(card_file, card)
    chosen = {name for name in names if any(_matches(name, pattern) for pattern in _DESCRIPTIONS)}
    chosen |= _weights(folder)
    if "auto_map" in config:  # a custom class, which cannot be loaded without its code
        chosen |= {name for name in names if fnmatch(name, "*.py") and "/" not in name}
    pictures = [name for name in names if name.endswith((".png", ".svg"))]
    chosen |= {name for name in pictures if f"]({name})" in card or f"]({quote(name)})" in card}
    checkpoint = Checkpoint(folder, {name: folder / name for name in sorted(chosen)}, card, has_card)
    _check_no_token(checkpoint, token)
    return checkpoint


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def is_part(name: str) -> bool:
    """Whether a file of this name can belong to a checkpoint."""
    return any(_matches(name, pattern) for pattern in (*_DESCRIPTIONS, *_WEIGHT_FILES))


def _weights(folder: Path) -> set[str]:
    """The safetensors files with the weights. Each is opened, to check that it is whole."""
    found: set[str] = set()
    for stem in _WEIGHTS:
        index = folder / f"{stem}.safetensors.index.json"
        if (folder / f"{stem}.safetensors").is_file():  # read first by transformers, whatever else is there
            found.add(f"{stem}.safetensors")
        elif index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index}: has no weight_map; save the model again")
            found |= {index.name, *map(str, weight_map.values())}
    shards = sorted(name for name in found if not name.endswith(".index.json"))
    if not shards:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern))
        has = f"only {', '.join(pickled[:3])}, which can run code where it is loaded" if pickled else "no weights"
        raise InputError(
            f"{folder}: holds {has}; expected model.safetensors: load the model and save it with save_pretrained"
        )
    for name in shards:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise InputError(f"{path}: is missing, although the index names it; save the model again")
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is damaged or not finished ({error}); save the model again") from error
    return found


def _check_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    base = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    if base is not None and Path(base).exists():
        raise InputError(
            f"{path}: is an adapter of the model in {base}, which others do not have; set base_model_name_or_path to "
            "its name on the Hub, or merge the adapter (merge_and_unload) and save the whole model"
        )


def _without_local_names(path: Path) -> bytes | None:
    """A configuration without the local path it was loaded from; None if it names none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return None
    names = [n for n in ("_name_or_path", "name_or_path") if isinstance(content.get(n), str) and "/" in content[n]]
    local = [name for name in names if Path(content[name]).is_absolute() or Path(content[name]).exists()]
    if not local:
        return None
    return (json.dumps({k: v for k, v in content.items() if k not in local}, indent=2, ensure_ascii=False)).encode()


def _check_card(path: Path, text: str) -> None:
    try:
        card_for_hub(text, NO_REPO)
    except Exception as error:  # YAML and types raise their own errors
        said = " ".join(str(error).split())
        raise InputError(f"{path}: its metadata cannot be read: {said}; mend it, or delete the file") from error


def _check_no_token(checkpoint: Checkpoint, token: str | bool | None) -> None:
    given = token.strip().encode() if isinstance(token, str) else b""
    contents = {name: path.read_bytes() for name, path in checkpoint.files.items() if not name.endswith(".safetensors")}
    for name, content in {**contents, CARD: checkpoint.card.encode()}.items():
        if _TOKEN.search(content) or (given and given in content):
            raise InputError(f"{checkpoint.folder / name}: holds what looks like a token; take it out before pushing")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}; save the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, got {type(content).__name__}")
    return content
