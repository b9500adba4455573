"""Finding R-Drop checkpoints on the Hub by their cards, which anybody writes, so that nothing in one is trusted."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCard, ModelCardData, ModelInfo

from ..card_data import BLOCK, TAG, settings_from_block
from ..errors import HubError, InputError
from ..training_args import RDropArguments
from .client import check_repo_id, connect, failure, patient, status_of

logger = logging.getLogger(__name__)
_FACTS = ["cardData", "downloads", "lastModified", "model-index", "pipeline_tag", "private", "sha", "tags"]
_LARGEST_CARD = 1_000_000  # bytes


class Result(NamedTuple):
    """A score that a card tells."""

    metric: str
    value: float
    dataset: str
    config: str | None
    split: str | None


@dataclass(frozen=True)
class CheckpointRecord:
    """What the Hub and a checkpoint's card tell of it. Texts hold printable characters only.

    Attributes:
        repo_id: its name, for `load_checkpoint`.
        task: the Hub's task, such as "text-classification".
        base_model: the model that was fine-tuned.
        settings: of R-Drop; None where the card has none that make sense.
        results: scores.
        dropout: dropout probabilities by the name of their setting.
        version: of the package that wrote the card.
        revision: commit.
        last_modified: time of that commit.
        downloads: of the last 30 days.
        private: whether only some can see it.
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
        """Weight of the divergence; None where the card does not tell."""
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

    Raises:
        HubError: the Hub refused or could not be reached.
    """
    tags = [TAG] + ([task] if task else []) + ([f"base_model:{check_repo_id(base_model, False)}"] if base_model else [])
    api = connect(token)

    def infos(expand: list[str] | None) -> list[ModelInfo]:
        return list(api.list_models(filter=tags, author=author, limit=limit, expand=expand))

    try:
        try:
            found = patient(lambda: infos(_FACTS))
        except (TypeError, AttributeError, KeyError):  # a card of a form that the client does not take; read each
            found = patient(lambda: infos(None))
    except Exception as error:
        raise failure("the Hub's list could not be read", error) from None
    records = []
    for info in found:
        try:
            records.append(_record(api, info))
        except (InputError, HubError) as error:
            logger.warning(f"left out: {error}")
    return records


def show_checkpoint(repo_id: str, revision: str | None = None, *, token: str | bool | None = None) -> CheckpointRecord:
    """What is known of one checkpoint.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; default main.
        token: to see private ones; None for the stored one.

    Raises:
        InputError: no name of a repository.
        HubError: there is none, or the Hub could not be reached.
    """
    check_repo_id(repo_id)
    api = connect(token)
    try:
        info = patient(lambda: api.model_info(repo_id, revision=revision))
    except Exception as error:
        raise failure(f"{repo_id}{f' at {revision}' if revision else ''} cannot be shown", error) from None
    return _record(api, info)


def _record(api: HfApi, info: ModelInfo) -> CheckpointRecord:
    check_repo_id(info.id, with_owner=False)
    data = info.card_data
    if data is None or BLOCK not in data:
        data = _read_card(api, info) or data or ModelCardData()
    block = data.get(BLOCK)
    block = block if isinstance(block, Mapping) else {}
    base = data.get("base_model")
    dropout = block.get("dropout")
    return CheckpointRecord(
        repo_id=info.id,
        task=_text(info.pipeline_tag or data.get("pipeline_tag")),
        base_model=_text(base[0] if isinstance(base, list) and base else base),
        settings=settings_from_block(block),
        results=tuple(_results(data)),
        dropout={_text(k): float(v) for k, v in dropout.items() if _is_number(v)} if isinstance(dropout, dict) else {},
        version=_text(block.get("version")),
        revision=info.sha,
        last_modified=info.last_modified,
        downloads=info.downloads,
        private=bool(info.private),
    )


def _read_card(api: HfApi, info: ModelInfo) -> ModelCardData | None:
    """The metadata of a repository's README.md; None where there is none that can be read."""
    # Not into the cache, whose paths are made of what the server answers
    with TemporaryDirectory() as folder:
        try:
            path = patient(
                lambda: api.hf_hub_download(info.id, "README.md", revision=info.sha or "main", local_dir=folder)
            )
            if Path(path).stat().st_size > _LARGEST_CARD:
                return None
            return ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        except Exception as error:  # YAML, types and encodings fail in errors of their own kinds
            if status_of(error) not in (None, 404):
                raise failure(f"the card of {info.id} could not be read", error) from None
            return None


def _results(data: ModelCardData) -> Iterator[Result]:
    for result in data.get("eval_results") or ():
        if _is_number(result.metric_value):
            yield Result(
                _text(result.metric_name or result.metric_type),
                float(result.metric_value),
                _text(result.dataset_name),
                _text(result.dataset_config),
                _text(result.dataset_split),
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str | None:
    """A short text without the characters that steer a terminal."""
    if value is None:
        return None
    return "".join(character if character.isprintable() else "?" for character in str(value))[:200]
