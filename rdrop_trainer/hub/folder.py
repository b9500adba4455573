"""The checkpoint in a saved folder: its files, whether they are whole, and whether others may see them."""

from __future__ import annotations

import math
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..run_folder import read_results
from .card_data import is_hub_name
from .client import TOKEN
from .files import content_of, read_json, read_text
from .model_card import NO_REPO, card_for_others

CARD = "README.md"
CONFIGS = ("config.json", "adapter_config.json")
# Files of a model and of its tokenizer or processor. Nothing else is pushed: optimizer states, pickled arguments (which
# hold tokens and paths), logs, data and predictions
_DESCRIPTIONS = (
    *CONFIGS,
    *"generation_config.json tokenizer_config.json preprocessor_config.json processor_config.json "
    "video_preprocessor_config.json tokenizer.json special_tokens_map.json added_tokens.json vocab.json vocab.txt "
    "merges.txt bpe.codes dict.txt *.model *.spm *.tiktoken *_vocab.json entity_vocab.json normalizer.json emoji.json "
    "chat_template.jinja chat_template.json additional_chat_templates/*.jinja".split(),
)
_LICENSE = "LICENSE"
_WEIGHTS = ("model", "adapter_model")
_WEIGHT_FILES = tuple(f"{stem}{end}" for stem in _WEIGHTS for end in ("*.safetensors", ".safetensors.index.json"))
# Weights of an earlier checkpoint in a repository, which would be read with those of a new one, or in place of them
_OTHER_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "adapter_model.bin")
_SHOWN = (".png", ".svg", "report.md")  # pushed where the card shows or links them


class Weights(NamedTuple):
    """A file of weights, and its state when it was checked."""

    path: Path
    state: tuple[int, int, int]

    @classmethod
    def at(cls, path: Path) -> Weights:
        """The file as it is now."""
        found = path.stat()
        return cls(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint in a folder, as it was when it was checked. That is what is sent, whatever comes to the folder.

    Attributes:
        folder: where it is.
        files: name in the repository -> content without local paths, or the file of weights.
    """

    folder: Path
    files: dict[str, bytes | Weights]

    def contents(self, repo_id: str) -> dict[str, bytes | Path]:
        """What a repository of this name gets: name -> content, or the file of weights. The card has the name in it."""
        contents = {name: file.path if isinstance(file, Weights) else file for name, file in self.files.items()}
        if isinstance(card := contents.get(CARD), bytes):
            contents[CARD] = card.replace(NO_REPO.encode(), repo_id.encode())
        return contents

    def replaces(self, name: str) -> bool:
        """Whether a file in the repository belongs to an earlier checkpoint."""
        return name not in self.files and _matches(name, *_DESCRIPTIONS, *_OTHER_WEIGHTS)

    def check_unchanged(self) -> None:
        """Refuse weights that are no longer those that were checked."""
        for file in self.files.values():
            if isinstance(file, Weights) and not (file.path.is_file() and Weights.at(file.path) == file):
                raise InputError(f"{file.path}: was changed while it was being pushed; push again when it is finished")

    def copied_to(self, folder: Path, finished: Path | None = None) -> Checkpoint:
        """The same checkpoint, with copies of its weights, which nobody else writes.

        Args:
            folder: an empty folder, for the copies.
            finished: a folder with the same weights, in which no file is written again: links to them are enough.
        """
        files = dict(self.files)
        for name in [name for name, file in files.items() if isinstance(file, Weights)]:
            try:
                os.link("" if finished is None else finished / name, folder / name)
            except OSError:  # nothing to link to, or another file system
                shutil.copyfile(self.folder / name, folder / name)
            files[name] = Weights.at(folder / name)
        return replace(self, files=files)


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
    config = read_json(folder / config_name(folder))
    _check_adapter(folder)
    # Unlike rglob, walk does not fail when a training deletes an old checkpoint meanwhile
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    names = {path.relative_to(folder).as_posix() for path in paths if path.is_file()}
    chosen = {name for name in names if _matches(name, *_DESCRIPTIONS, _LICENSE)}
    if "auto_map" in config:  # a custom class, which cannot be loaded without its code
        chosen |= {name for name in names if _matches(name, "*.py")}
    files: dict[str, bytes | Weights] = {}
    if CARD in names:
        card = read_text(folder / CARD)
        files[CARD] = _card_to_send(folder / CARD, card)
        shown = (name for name in names if name.endswith(_SHOWN))
        chosen |= {name for name in shown if f"]({name})" in card or f"]({quote(name)})" in card}
    weights = _weights(folder)
    chosen |= {name for name in check_index(folder) if name not in weights}
    files |= {name: content_of(folder / name) for name in sorted(chosen)}
    _check_no_token(folder, files, token)
    return Checkpoint(folder, {**files, **weights})


def _matches(name: str, *patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def is_part(name: str) -> bool:
    """Whether a file of this name can belong to a checkpoint."""
    return _matches(name, *_DESCRIPTIONS, *_WEIGHT_FILES, _LICENSE, CARD)


def config_name(folder: Path) -> str:
    """The name of the configuration in the folder of a saved model or adapter.

    Raises:
        InputError: there is none. The message names the models below; of a comparison's, the best with R-Drop first.
    """
    found = next((name for name in CONFIGS if (folder / name).is_file()), None)
    if found is None:
        inside = {path.parent for name in CONFIGS for at in ("*", "*/*") for path in folder.glob(f"{at}/{name}")}
        models = sorted(map(_rank, inside))
        more = f", and {len(models) - 4} more" if len(models) > 4 else ""
        listed = ", ".join(name for *_, name in models[:4]) + more
        order = ", the best with R-Drop first," if models and not models[0][0] else ""
        expected = f"saved models{order} are in {listed}" if models else "expected what save_pretrained writes"
        raise InputError(f"{folder}: holds no config.json, so no saved model; {expected}")
    return found


def _rank(folder: Path) -> tuple[bool, float, str]:
    """What sorts models: finished runs with R-Drop before others, of them those with the better first score."""
    with suppress(InputError, LookupError, TypeError):
        results = read_results(folder)
        score = next((score for score in results["headline"].values() if score is not None), -math.inf)
        return not results["settings"]["rdrop_alpha"] > 0, -score, str(folder)
    return True, math.inf, str(folder)


def check_index(folder: Path) -> set[str]:
    """The names of the index of shards, if weights are read by one, and of its shards. It must name files of its own
    folder alone: nobody would have verified others.
    """
    found: set[str] = set()
    for stem in _WEIGHTS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file() and not (folder / f"{stem}.safetensors").is_file():  # read first, whatever else is there
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index}: has no weight_map; save the model again")
            found |= {index.name, *map(str, weight_map.values())}
    for name in sorted(found):
        if re.search(r"[/\\]", name) or not (folder / name).is_file():
            raise InputError(f"{folder / name}: is missing, although the index names it; save the model again")
    return found


def _weights(folder: Path) -> dict[str, Weights]:
    """The safetensors files with the weights. Each of them is opened, to check that it is whole."""
    whole = {f"{stem}.safetensors" for stem in _WEIGHTS if (folder / f"{stem}.safetensors").is_file()}
    names = sorted(whole | {name for name in check_index(folder) if not name.endswith(".index.json")})
    if not names:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern))
        has = f"only {', '.join(pickled[:3])}, which can run code where it is loaded" if pickled else "no weights"
        raise InputError(
            f"{folder}: holds {has}; expected model.safetensors: load the model and save it with save_pretrained"
        )
    weights = {name: Weights.at(folder / name) for name in names}
    for name, (path, _) in weights.items():
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is damaged or not finished ({error}); save the model again") from error
        if not is_part(name):
            raise InputError(f"{path}: would not be downloaded; save the model again, as save_pretrained does")
    return weights


def _check_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    base = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    if base is not None and not is_hub_name(base):
        raise InputError(
            f"{path}: is an adapter of the model in {base}, which others do not have; set base_model_name_or_path to "
            "its name on the Hub, or merge the adapter (merge_and_unload) and save the whole model"
        )


def _card_to_send(path: Path, text: str) -> bytes:
    try:
        return card_for_others(text).encode()
    except Exception as error:  # YAML and types raise their own errors
        said = " ".join(str(error).split())
        raise InputError(f"{path}: its metadata cannot be read: {said}; mend it, or delete the file") from error


def _check_no_token(folder: Path, files: dict[str, bytes | Weights], token: str | bool | None) -> None:
    given = token.strip().encode() if isinstance(token, str) else b""
    for name, content in files.items():
        if isinstance(content, bytes) and (re.search(TOKEN.encode(), content) or (given and given in content)):
            raise InputError(f"{folder / name}: holds what looks like a token; take it out before pushing")
