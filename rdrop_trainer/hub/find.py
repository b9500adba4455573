"""Finding R-Drop checkpoints on the Hub by their cards. Anybody can write a card, so nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from huggingface_hub.utils import build_hf_headers, paginate

from ..training_args import RDropArguments
from .card_data import BLOCK, TAG, settings_from_block
from .client import check_repo_id, connect, failure, with_retries


class Result(NamedTuple):
    """A score in a card."""

    metric: str
    value: float


@dataclass(frozen=True)
class CheckpointRecord:
    """What the card of a checkpoint says. Texts hold printable characters only.

    Attributes:
        repo_id: its name, for `load_checkpoint`.
        task: the Hub's task, such as "text-classification".
        base_model: the model that was fine-tuned.
        settings: of R-Drop; None if the card has no valid ones.
        results: scores.
    """

    repo_id: str
    task: str | None = None
    base_model: str | None = None
    settings: RDropArguments | None = None
    results: tuple[Result, ...] = ()

    @property
    def alpha(self) -> float | None:
        """Weight of the divergence; None if the card does not say."""
        return None if self.settings is None else self.settings.rdrop_alpha


def list_checkpoints(
    task: str | None = None,
    base_model: str | None = None,
    author: str | None = None,
    *,
    alpha: float | None = None,
    token: str | bool | None = None,
) -> list[CheckpointRecord]:
    """The R-Drop checkpoints on the Hub: repositories with the tag "r-drop", from all pages of the Hub's list.

    Args:
        task: the Hub's task, such as "text-classification", or a benchmark's, such as "mrpc".
        base_model: name of the model that was fine-tuned.
        author: user or organisation.
        alpha: those trained with just this weight of the divergence.
        token: to see private ones; None for the stored one.

    Returns:
        Records, in the Hub's order.

    Raises:
        InputError: the base model's name is not valid.
        HubError: the Hub refused or could not be reached.
    """
    tags = [TAG] + ([task] if task else []) + ([f"base_model:{check_repo_id(base_model)}"] if base_model else [])
    api = connect(token)
    query = {
        "filter": tags,
        "expand": ["cardData", "model-index", "pipeline_tag"],
        **({"author": author} if author else {}),
    }

    def ask() -> list[CheckpointRecord]:
        # Not api.list_models, which a single odd card brings down
        listed = paginate(
            f"{api.endpoint}/api/models", query, build_hf_headers(token=api.token, library_name=api.library_name)
        )
        return [record for record in map(_record, listed) if alpha is None or record.alpha == alpha]

    try:
        return with_retries(ask)
    except Exception as error:
        raise failure("the Hub's list could not be read", error) from None


def _record(listed: Mapping[str, Any]) -> CheckpointRecord:
    card = listed.get("cardData")
    card = card if isinstance(card, Mapping) else {}
    base = card.get("base_model")
    return CheckpointRecord(
        repo_id=_text(listed.get("id")) or "",
        task=_text(listed.get("pipeline_tag") or card.get("pipeline_tag")),
        base_model=_text(base[0] if isinstance(base, list) and base else base),
        settings=settings_from_block(card.get(BLOCK)),
        results=tuple(_results(listed.get("model-index") or card.get("model-index"))),
    )


def _results(index: Any) -> Iterator[Result]:
    """The scores of a model-index that have a name and a finite value."""
    metrics = (
        metric
        for model in _dicts(index)
        for result in _dicts(model.get("results"))
        for metric in _dicts(result.get("metrics"))
    )
    for metric in metrics:
        name, value = _text(metric.get("name") or metric.get("type")), metric.get("value")
        if name and isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300:
            yield Result(name, float(value))


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    """A short text without control characters; None if the value is none."""
    if not isinstance(value, str):
        return None
    return "".join(character if character.isprintable() else "?" for character in value[:200])
