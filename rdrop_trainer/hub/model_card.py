"""Model cards of R-Drop checkpoints: what `Trainer`'s card does not tell, added to it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData

from ..training_args import RDropArguments
from .card_data import BLOCK, TAG, EvaluationSet, eval_results, is_hub_name, set_of
from .model_kinds import auto_class_name, pipeline_tag_of

PAPER = "https://arxiv.org/abs/2106.14448"
NO_REPO = "your-name/this-model"  # stands in a card until it is pushed


@dataclass
class CardFacts:
    """What a card tells that a trainer does not know by itself; set them as `trainer.card_facts`.

    Attributes:
        task: the Hub's task, such as "summarization"; by default the one of the model's class.
        language: code of the language of the data, such as "en".
        tags: more tags, such as the task's name.
        evaluation_sets: prefix of scores ("eval", "eval_mm", ...) -> their data; by default what the evaluation data
            set knows of itself.
        scores: more scores of the model, with their prefix, such as those of a prediction.
        baseline: scores of the run without R-Drop, all else equal, under the same names.
        stability: figures of steadiness by name.
        pictures: PNG files -> what they show; they are copied beside the card.
    """

    task: str | None = None
    language: str | None = None
    tags: Sequence[str] = ()
    evaluation_sets: Mapping[str, EvaluationSet] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] | None = None
    stability: Mapping[str, float] | None = None
    pictures: Mapping[str | Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedModel:
    """What a trainer knows of the model that its card is of.

    Attributes:
        architecture: its class name.
        base: name or path of the model that training began from; empty for random weights.
        settings: of R-Drop.
        block: the `r_drop` entry, `settings_block`'s.
        scores: of the weights it has now, with their prefix.
        evaluation_sets: prefix -> the data of its scores.
        repo_id: where it will be; None where that is not known.
    """

    architecture: str
    base: str
    settings: RDropArguments
    block: Mapping[str, Any]
    scores: Mapping[str, float]
    evaluation_sets: Mapping[str, EvaluationSet]
    repo_id: str | None


def extend_card(card: ModelCard, trained: TrainedModel, facts: CardFacts) -> None:
    """Add to the card of the trainer behind, in place, what it does not tell: metadata, scores, a section on R-Drop."""
    scores = {**trained.scores, **facts.scores}
    sets = {**trained.evaluation_sets, **facts.evaluation_sets}
    _extend_metadata(card.data, trained, facts, scores, sets)
    text = _without_local_base(card.text, card.data)
    if trained.base and not is_hub_name(trained.base):
        text = text.replace("model was trained from scratch", "model is a fine-tuned version of a local model")
    names = list(dict.fromkeys(data.name for data in sets.values() if data.name != EvaluationSet.name))
    text = text.replace(" on an unknown dataset.", f" on {', '.join(names)}." if names else ".")
    text = _with_scores(text, scores)
    template = files(__package__).joinpath("templates/rdrop_section.md").read_text(encoding="utf-8")
    section = Template(template).substitute(
        summary=_summary(trained.settings, trained.block["version"]),
        settings="\n".join(f"| {name} | {_shown(v)} |" for name, v in trained.block.items() if name != "version"),
        results=_results(scores, sets, facts.baseline),
        stability=_stability(facts.stability),
        pictures="".join(f"![{caption}]({quote(Path(path).name)})\n\n" for path, caption in facts.pictures.items()),
        repo_id=trained.repo_id or NO_REPO,
        auto_class=auto_class_name([trained.architecture], card.data.pipeline_tag) or "AutoModel",
    )
    # Before what Trainer leaves to be written by hand
    before, heading, after = text.partition("\n## Model description\n")
    card.text = f"{before.rstrip()}\n\n{section.rstrip()}\n{heading}{after}"


def _extend_metadata(
    data: ModelCardData,
    trained: TrainedModel,
    facts: CardFacts,
    scores: Mapping[str, float],
    sets: Mapping[str, EvaluationSet],
) -> None:
    data.pipeline_tag = facts.task or data.get("pipeline_tag") or pipeline_tag_of(trained.architecture)
    data.language = data.language or facts.language
    # A baseline's card tells of R-Drop, but is not to be found as a model of it
    tags = [TAG] * (trained.settings.rdrop_alpha > 0) + [data.pipeline_tag] * (data.pipeline_tag is not None)
    data.tags = list(dict.fromkeys([*tags, *facts.tags, *(data.tags or ())]))
    data[BLOCK] = dict(trained.block)
    results = eval_results(scores, sets, data.pipeline_tag)
    data.model_name = data.model_name or (trained.repo_id or "").split("/")[-1] or "model"
    data.eval_results = results or None
    data.metrics = list(dict.fromkeys(result.metric_type for result in results)) or None
    datasets = [data_set.type for data_set in sets.values() if data_set.config or data_set.revision]
    data.datasets = list(dict.fromkeys([*datasets, *(data.datasets or ())])) or None


def _summary(settings: RDropArguments, version: str) -> str:
    tool = f"rdrop-trainer {version}"
    if settings.rdrop_alpha == 0:
        return (
            f"Trained with {tool} and alpha 0: plain fine-tuning, the baseline that runs with [R-Drop]({PAPER}) are "
            "compared with."
        )
    return (
        f"Trained with [R-Drop]({PAPER}) (Liang et al., *R-Drop: Regularized Dropout for Neural Networks*, NeurIPS "
        f"2021) by {tool}: every example goes through the model {settings.rdrop_num_passes} times with different "
        "dropout, and the symmetric KL divergence between the predictions (in a regression, their squared difference) "
        f"is added to the loss: loss = task loss + alpha / 2 * divergence, with alpha {settings.rdrop_alpha:g}."
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _results(
    scores: Mapping[str, float], sets: Mapping[str, EvaluationSet], baseline: Mapping[str, float] | None
) -> str:
    if not scores:
        return ""
    columns = ["data", "split", "score", "this model"] + ["baseline, alpha 0", "difference"] * bool(baseline)
    rows = ["### Results", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, value in scores.items():
        name, data = set_of(key, sets)
        row = f"| {data.name} | {data.split or key.removesuffix(f'_{name}')} | {name} | {_score(value)} |"
        if baseline:
            other = baseline.get(key)
            row += f" {_score(other)} | {'' if other is None else f'{value - other:+.4f}'} |"
        rows.append(row)
    if baseline:
        rows += ["", "Single runs: small differences come and go with the seed."]
    return "\n".join(rows) + "\n\n"


def _score(value: float | None) -> str:
    return "" if value is None else "not defined" if math.isnan(value) else f"{value:.4f}"


def _stability(stability: Mapping[str, float] | None) -> str:
    if not stability:
        return ""
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in stability.items())
    return f"### Steadiness\n\n| figure | value |\n|---|---|\n{rows}\n\n"


def forget_guessed_data(card: ModelCard) -> None:
    """Take the data set out that `Trainer` made up of how it was loaded, such as "generator" or "None"."""
    card.data.datasets = None
    card.text = re.sub(r" on the .* datasets?\.\n", " on an unknown dataset.\n", card.text, count=1)


def _with_scores(text: str, scores: Mapping[str, float]) -> str:
    """`Trainer` lists its last log, which may be of other weights than those that are pushed."""
    lines = "".join(f"- {key}: {_score(value)}\n" for key, value in scores.items())
    listed = r"It achieves the following results on the evaluation set:\n(- .*\n)*"
    return re.sub(listed, lambda _: f"It achieves the following results:\n{lines}" if lines else "", text)


def _without_local_base(text: str, data: ModelCardData) -> str:
    """Take a local path out of metadata and text: it is no model on the Hub, and nobody else's business."""
    given = [data.base_model] if isinstance(data.base_model, str) else list(data.base_model or ())
    kept = [name for name in given if is_hub_name(name)]
    if kept != given:
        data.base_model = kept or None
    text = text.replace("is a fine-tuned version of [](https://huggingface.co/)", "was trained from scratch")
    for name in set(given) - set(kept):
        text = text.replace(f"[{name}](https://huggingface.co/{name})", "a local model")
        if "/" in name:  # any other may be a word of the text
            text = text.replace(name, "a local model")
    return text


def card_for_hub(text: str, repo_id: str) -> str:
    """A card as it is pushed: without local paths, and with the repository's name in the lines that load it."""
    card = ModelCard(text, ignore_metadata_errors=True)
    card.text = _without_local_base(card.text, card.data).replace(NO_REPO, repo_id)
    return str(card)


def bare_card(config: Mapping[str, Any]) -> str:
    """The card of a folder that came without one: what its configuration tells."""
    architectures = config.get("architectures") or []
    tag = pipeline_tag_of(architectures[0]) if architectures else None
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


def write_card(path: Path, card: ModelCard) -> None:
    """Write a card so that it is whole or as it was."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(str(card), encoding="utf-8")
    os.replace(temporary, path)
