"""Model cards of R-Drop checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData
from transformers.modelcard import TrainingSummary, make_markdown_table

from ..training_args import RDropArguments
from .card_data import BLOCK, TAG, EvaluationSet, eval_results, is_hub_name, numbers, set_of
from .model_kinds import PIPELINES, auto_class_name, classes_of, pipeline_tag_of

NO_REPO = "your-name/this-model"  # stands in a card until it is pushed
_FRAMEWORKS = {"Transformers": "transformers", "Pytorch": "torch", "Datasets": "datasets", "Tokenizers": "tokenizers"}


@dataclass
class CardFacts:
    """What a card says and a trainer does not know by itself. Set it as `trainer.card_facts`.

    Attributes:
        task: the Hub's task, such as "summarization"; by default that of the model's class.
        language: code of the data's language, such as "en".
        tags: more tags, such as the task's name.
        evaluation_sets: prefix of scores ("eval", "eval_mm", ...) -> their data; by default the origin of the
            evaluation data set.
        scores: more scores of the model, with their prefix, such as those of a prediction.
        baseline: scores of the same run without R-Drop, under the same names.
        stability: figures of stability by name.
        pictures: PNG files -> what they show; they are copied beside the card.
        weights: which checkpoint of the training the weights are, in words.
    """

    task: str | None = None
    language: str | None = None
    tags: Sequence[str] = ()
    evaluation_sets: Mapping[str, EvaluationSet] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] | None = None
    stability: Mapping[str, float] | None = None
    pictures: Mapping[str | Path, str] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class TrainedModel:
    """What a trainer knows of the model in a card.

    Attributes:
        architecture: class name.
        base: name or path of the model that training started from; empty for random weights.
        settings: of R-Drop.
        block: the `r_drop` entry of `settings_block`.
        scores: of the present weights, with their prefix.
        evaluation_sets: prefix of scores -> their data.
        repo_id: repository to push to; None if not known yet.
        is_adapter: whether it is one of PEFT's; transformers alone loads it with the labels of its base model.
    """

    architecture: str
    base: str
    settings: RDropArguments
    block: Mapping[str, Any]
    scores: Mapping[str, float]
    evaluation_sets: Mapping[str, EvaluationSet]
    repo_id: str | None
    is_adapter: bool = False


def trainer_card(summary: TrainingSummary, trained: TrainedModel, facts: CardFacts) -> ModelCard:
    """The whole card of a model.

    Args:
        summary: what `Trainer` knows of the training. Its scores are not used: they are those of its last log, which
            may be of other weights.
        trained: the model.
        facts: what the trainer does not know.
    """
    data = ModelCardData(**summary.create_metadata(), ignore_metadata_errors=True)
    forget_local_base(data)
    if data.base_model:
        origin = f"is a fine-tuned version of [{data.base_model}](https://huggingface.co/{data.base_model})"
    elif summary.finetuned_from or trained.base:
        origin = "is a fine-tuned version of a local model"
    else:
        origin = "was trained from scratch"
    return _render(
        data,
        trained,
        facts,
        title=summary.model_name,
        origin=origin,
        trained_on=_named(summary.dataset),
        hyperparameters=summary.hyperparameters,
        training_results=make_markdown_table(summary.eval_lines) if summary.eval_lines else None,
        versions={name: version(package) for name, package in _FRAMEWORKS.items()},
    )


def extended_card(card: ModelCard, trained: TrainedModel, facts: CardFacts) -> ModelCard:
    """A card that another trainer wrote from a template of its own, with our metadata and our section at its end."""
    hide_local_base(card)
    return _render(card.data, trained, facts, base_text=card.text.strip())


def _render(data: ModelCardData, trained: TrainedModel, facts: CardFacts, **more: Any) -> ModelCard:
    scores, baseline = numbers({**trained.scores, **facts.scores}), numbers(facts.baseline or {})
    sets = {**trained.evaluation_sets, **facts.evaluation_sets}
    _extend_metadata(data, trained, facts, scores, sets)
    known = [data_set.name for data_set in sets.values() if data_set.name != EvaluationSet.name]
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("templates/card.md").read_text(encoding="utf-8"),
        alpha=trained.settings.rdrop_alpha,
        scores={key: _score(value) for key, value in scores.items()},
        settings={name: _shown(value) for name, value in trained.block.items() if name != "version"},
        results=[_result(key, value, sets, baseline) for key, value in scores.items()],
        has_baseline=bool(baseline),
        data_names=list(dict.fromkeys(known)),
        stability={name: _shown(value) for name, value in (facts.stability or {}).items()},
        pictures={quote(Path(path).name): caption for path, caption in facts.pictures.items()},
        weights=facts.weights,
        pipeline=data.pipeline_tag if data.pipeline_tag in PIPELINES else None,
        repo_id=trained.repo_id or NO_REPO,
        is_adapter=trained.is_adapter,
        auto_class=auto_class_name([trained.architecture], data.pipeline_tag) or "AutoModel",
        **more,
    )


def _extend_metadata(
    data: ModelCardData,
    trained: TrainedModel,
    facts: CardFacts,
    scores: Mapping[str, float],
    sets: Mapping[str, EvaluationSet],
) -> None:
    data.pipeline_tag = facts.task or data.get("pipeline_tag") or pipeline_tag_of(trained.architecture)
    data.language = data.language or facts.language
    # A baseline has the settings in its card, but shall not be found as an R-Drop model
    tags = [TAG] * (trained.settings.rdrop_alpha > 0) + [data.pipeline_tag] * (data.pipeline_tag is not None)
    data.tags = list(dict.fromkeys([*tags, *facts.tags, *(data.tags or ())]))
    data[BLOCK] = dict(trained.block)
    results = eval_results(scores, sets, data.pipeline_tag)
    data.model_name = data.model_name or (trained.repo_id or "").split("/")[-1] or "model"
    data.eval_results = results or None
    data.metrics = list(dict.fromkeys(result.metric_type for result in results)) or None
    datasets = [data_set.type for data_set in sets.values() if data_set.config or data_set.revision]
    data.datasets = list(dict.fromkeys([*datasets, *_listed(data.datasets)])) or None


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _named(datasets: str | Sequence[str] | None) -> str:
    """Data sets in words, as `Trainer` puts them."""
    names = _listed(datasets)
    if len(names) < 2:
        return "".join(f"the {name} dataset" for name in names)
    return ", ".join(f"the {name}" for name in names[:-1]) + f" and the {names[-1]} datasets"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _result(key: str, value: float, sets: Mapping[str, EvaluationSet], baseline: Mapping[str, float]) -> list[str]:
    """A row of the table of results."""
    name, data = set_of(key, sets)
    row = [data.name, data.split or key.removesuffix(f"_{name}"), name, _score(value)]
    if baseline:
        other = baseline.get(key)
        row += [_score(other), "" if other is None else f"{value - other:+.4f}"]
    return row


def _score(value: float | None) -> str:
    return "" if value is None else "not defined" if math.isnan(value) else f"{value:.4f}"


def forget_local_base(data: ModelCardData) -> set[str]:
    """Take base models that are not on the Hub out of a card's metadata: a local path is nobody else's business.

    Returns:
        The names that were taken out.

    Raises:
        TypeError: a base model is a list or a mapping.
    """
    given = _listed(data.base_model)
    local = {name for name in given if not is_hub_name(name)}
    if local:
        data.base_model = [name for name in given if name not in local] or None
    return local


def hide_local_base(card: ModelCard) -> None:
    """Take a local base model out of a card that we did not write, in place: out of its metadata and its text."""
    text = card.text.replace("is a fine-tuned version of [](https://huggingface.co/)", "was trained from scratch")
    for name in forget_local_base(card.data):
        text = text.replace(f"[{name}](https://huggingface.co/{name})", "a local model")
        if "/" in name:  # any other may be a word of the text
            text = text.replace(name, "a local model")
    card.text = text


def card_for_hub(text: str, repo_id: str) -> str:
    """A card as it is pushed: without local paths, and with the repository's name in the lines that load it."""
    card = ModelCard(text, ignore_metadata_errors=True)
    hide_local_base(card)
    card.text = card.text.replace(NO_REPO, repo_id)
    return str(card)


def bare_card(config: Mapping[str, Any]) -> str:
    """The card of a folder that has none, from its configuration."""
    tag = next(map(pipeline_tag_of, classes_of(config)), None)
    base = config.get("base_model_name_or_path")
    data = ModelCardData(
        library_name="peft" if base else "transformers",
        pipeline_tag=tag,
        base_model=base if is_hub_name(base) else None,
        tags=[TAG, *([tag] if tag else [])],
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {NO_REPO}\n\nPushed by rdrop-trainer. The settings of its training were not "
        "saved with it.\n"
    )
