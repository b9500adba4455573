"""PEFT adapters: their base model, their head, and the two put together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from ..errors import InputError
from .client import check_repo_id
from .files import read_json

T = TypeVar("T")
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
}
_WRAPPED = "base_model.model."  # prefix of the base model's names of weights
_HEAD = re.compile(r"(classifier|score)(\.out_proj)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder.

    Attributes:
        folder: where it is.
        base: name or path of the base model.
        revision: of the base model; None for its newest.
        task: the Hub's task that it was trained for; None where it is not known.
        shapes: name of a tensor, as in the base model -> its shape.
        config: what PEFT wrote down.
    """

    folder: Path
    base: str
    revision: str | None
    task: str | None
    shapes: dict[str, list[int]]
    config: dict[str, Any]

    @classmethod
    def of(cls, source: str, folder: Path) -> Adapter | None:
        """The adapter in a folder; None if it holds none.

        Args:
            source: name of the folder or repository, for messages.
            folder: where to look.
        """
        if not (folder / _CONFIG).is_file():
            return None
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise InputError(f"{source}: is an adapter; pip install peft to load it") from error
        if not (folder / _WEIGHTS).is_file():
            raise InputError(f"{source}: holds no {_WEIGHTS}; pickled weights can run code and are not loaded")
        config = read_json(folder / _CONFIG)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if not isinstance(base, str) or not isinstance(revision, str | None):
            raise InputError(f"{source}: its {_CONFIG} does not name the model that it is an adapter of")
        try:
            with safe_open(folder / _WEIGHTS, framework="pt") as tensors:
                shapes = {n.removeprefix(_WRAPPED): tensors.get_slice(n).get_shape() for n in tensors.keys()}
        except SafetensorError as error:
            raise InputError(f"{source}: {_WEIGHTS} is damaged: {error}") from error
        return cls(folder, base, revision, _TASKS.get(str(config.get("task_type"))), shapes, config)

    def base_folder(self, source: str, fetch: Callable[..., T]) -> Path | T:
        """The folder of the base model. Only an adapter in a local folder may name another local folder.

        Args:
            source: name of the adapter's folder or repository.
            fetch: downloads a repository, by name and `revision`, and returns its folder.
        """
        if self.folder == Path(source) and Path(self.base).is_dir():
            return Path(self.base)
        try:
            check_repo_id(self.base)
        except InputError as error:
            raise InputError(
                f"{source}: is an adapter of the model in {self.base}, which is not there; put that there, or set "
                f"base_model_name_or_path in its {_CONFIG} to where it is now"
            ) from error
        return fetch(self.base, revision=self.revision)

    @property
    def _of_base(self) -> dict[str, Any]:
        """What the adapter says of its base model, which anybody may have written: its class, or its labels."""
        found = self.config.get("auto_mapping")
        return found if isinstance(found, dict) else {}

    @property
    def classes(self) -> list[str]:
        """The name of the base model's class, which PEFT writes down where it has no name for the task."""
        name = self._of_base.get("base_model_class")
        return [name] if isinstance(name, str) else []

    @property
    def whole_modules(self) -> list[str]:
        """The names of modules that were trained whole, such as the head: a base model in few bits leaves them out."""
        found = self.config.get("modules_to_save")
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of the base model's `from_pretrained`, so that the adapter's head takes the place of its own."""
        head = next((name for name in self.shapes if _HEAD.fullmatch(name)), None)
        found: dict[str, Any] = {}
        if head is not None:
            found |= {"num_labels": self.shapes[head][0], "ignore_mismatched_sizes": True}
        labels, padding = self._of_base.get("id2label"), self._of_base.get("pad_token_id")
        names = [labels.get(str(i)) for i in range(len(labels))] if isinstance(labels, dict) else []
        if names and all(isinstance(name, str) for name in names):
            found |= {"num_labels": len(names), "ignore_mismatched_sizes": True}
            found |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        return found | ({"pad_token_id": padding} if type(padding) is int else {})
