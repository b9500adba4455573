"""Finding R-Drop checkpoints on the Hub by their cards. Anybody can write a card, so nothing in it is trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import HfApi, ModelCardData, ModelInfo, metadata_load

from ..errors import HubError, InputError
from ..training_args import RDropArguments
from .card_data import BLOCK, TAG, settings_from_block
from .client import check_repo_id, connect, failure, with_retries
from .folder import CARD

logger = logging.getLogger(__name__)
T = TypeVar("T")
_FACTS = ["downloads", "lastModified", "pipeline_tag", "private", "sha"]
_OF_CARDS = ["cardData", "model-index"]
_LARGEST_CARD = 1_000_000  # bytes
_MOST = 100  # entries of a list that are read; by references a small card can hold billions


class Result(NamedTuple):
    """A score in a card."""

    metric: str
    value: float
    dataset: str
    config: str | None
    split: str | None


@dataclass(frozen=True)
class CheckpointRecord:
    """What the Hub and the card say of a checkpoint. Texts hold printable characters only.

    Attributes:
        repo_id: its name, for `load_checkpoint`.
        task: the Hub's task, such as "text-classification".
        base_model: the model that was fine-tuned.
        settings: of R-Drop; None if the card has no valid ones.
        results: scores.
        dropout: dropout probabilities by the name of their setting.
        version: of the package that wrote the card.
        revision: commit.
        last_modified: time of that commit.
        downloads: of the last 30 days.
        private: whether the repository is private.
    """

    repo_id: str
    task: str | None = None
    base_model: str | None = None
    settings: RDropArguments | None = None
    results: tuple[Result, ...] = ()
    dropout: Mapping[str, float] = field(default_factory=dict)
    version: str | None = None
    revision: str | None = None
    last_modified: datetime | None = None
    downloads: int | None = None
    private: bool = False

    @property
    def alpha(self) -> float | None:
        """Weight of the divergence; None if the card does not say."""
        return None if self.settings is None else self.settings.rdrop_alpha


def list_checkpoints(
    task: str | None = None,
    base_model: str | None = None,
    author: str | None = None,
    *,
    limit: int | None = None,
    token: str | bool | None = None,
) -> list[CheckpointRecord]:
    """The R-Drop checkpoints on the Hub: repositories with the tag "r-drop", from all pages of the Hub's list.

    Args:
        task: the Hub's task, such as "text-classification", or a benchmark's, such as "mrpc".
        base_model: name of the model that was fine-tuned.
        author: user or organisation.
        limit: at most so many.
        token: to see private ones; None for the stored one.

    Returns:
        Records, in the Hub's order. If a card cannot be read, its record holds what the Hub itself knows.

    Raises:
        InputError: the base model's name is not valid; the limit is below 1.
        HubError: the Hub refused or could not be reached.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected at least 1, got {limit}")
    tags = [TAG] + ([task] if task else []) + ([f"base_model:{check_repo_id(base_model, False)}"] if base_model else [])
    api = connect(token)
    found = _asked(
        lambda expand: list(api.list_models(filter=tags, author=author, limit=limit, expand=expand)),
        "the Hub's list could not be read",
    )
    records = []
    for info in found:
        try:
            check_repo_id(info.id, with_owner=False)
            records.append(_record(info, _card_of(api, info)))
        except InputError as error:
            logger.warning(f"left out: {error}")
        except HubError as error:
            logger.warning(str(error))
            records.append(_record(info, {}))
    return records


def show_checkpoint(repo_id: str, revision: str | None = None, *, token: str | bool | None = None) -> CheckpointRecord:
    """What the Hub and the card say of one checkpoint.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; default main.
        token: to see private ones; None for the stored one.

    Returns:
        The record.

    Raises:
        InputError: the name is not valid.
        HubError: there is no such repository, or the Hub could not be reached.
    """
    check_repo_id(repo_id)
    api = connect(token)
    found = _asked(
        lambda expand: api.model_info(repo_id, revision=revision, expand=expand),
        f"{repo_id}{f' at {revision}' if revision else ''} cannot be shown",
    )
    return _record(found, _card_of(api, found))


def _asked(ask: Callable[[list[Any]], T], failed: str) -> T:
    """What the Hub knows, with the cards; without them where the client cannot read one, and each is read here."""
    try:
        try:
            return with_retries(lambda: ask(_FACTS + _OF_CARDS))
        except (TypeError, ValueError, AttributeError, KeyError):
            return with_retries(lambda: ask(_FACTS))
    except Exception as error:
        raise failure(failed, error) from None


def _record(info: ModelInfo, card: Mapping[str, Any]) -> CheckpointRecord:
    block = card.get(BLOCK)
    block = block if isinstance(block, Mapping) else {}
    base = card.get("base_model")
    dropout = block.get("dropout")
    dropout = list(dropout.items())[:_MOST] if isinstance(dropout, Mapping) else []
    return CheckpointRecord(
        repo_id=info.id,
        task=_text(info.pipeline_tag or card.get("pipeline_tag")),
        base_model=_text(base[0] if isinstance(base, list) and base else base),
        settings=settings_from_block(block),
        results=tuple(islice(_results(card.get("model-index")), _MOST)),
        dropout={_text(name): float(value) for name, value in dropout if _text(name) and _is_number(value)},
        version=_text(block.get("version")),
        revision=_text(info.sha),
        last_modified=info.last_modified,
        downloads=info.downloads,
        private=bool(info.private),
    )


def _card_of(api: HfApi, info: ModelInfo) -> Mapping[str, Any]:
    """The metadata of a card: from the Hub's list, or else from the card itself."""
    data = info.card_data
    if not isinstance(data, ModelCardData) or BLOCK not in data:
        return _read_card(api, info.id, info.sha or "main")
    known = {name: data.get(name) for name in (BLOCK, "base_model", "pipeline_tag")}
    return {**known, "model-index": info.model_index or data.to_dict().get("model-index")}


def _read_card(api: HfApi, repo_id: str, revision: str) -> Mapping[str, Any]:
    """The metadata of a repository's README.md; empty if there is none, or none that can be read."""
    # Not into the client's cache, in which a card alone would stand for the checkpoint
    with TemporaryDirectory() as folder:
        try:
            paths = with_retries(lambda: api.get_paths_info(repo_id, CARD, revision=revision))
            if not paths or paths[0].size > _LARGEST_CARD:
                return {}
            path = with_retries(lambda: api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder))
        except Exception as error:
            raise failure(f"the card of {repo_id} could not be read", error) from None
        try:
            return metadata_load(path) or {}
        except Exception:  # YAML, types and encodings each raise their own errors
            return {}


def _results(index: Any) -> Iterator[Result]:
    """The scores of a model-index that have a name and a finite value."""
    for model in _dicts(index):
        for result in _dicts(model.get("results")):
            data = result.get("dataset")
            data = data if isinstance(data, Mapping) else {}
            for metric in _dicts(result.get("metrics")):
                name = _text(metric.get("name") or metric.get("type"))
                if name and _is_number(metric.get("value")):
                    names = [_text(data.get(key)) for key in ("name", "config", "split")]
                    yield Result(name, float(metric["value"]), names[0] or "unknown", *names[1:])


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value[:_MOST] if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _text(value: Any) -> str | None:
    """A short text without control characters; None if the value is not a text or a number."""
    if isinstance(value, (int, float)):  # a version that reads like a number
        value = f"{value:.6g}" if _is_number(value) else None
    if not isinstance(value, str):
        return None
    return "".join(character if character.isprintable() else "?" for character in value[:200])
