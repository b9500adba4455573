"""Model cards of R-Drop checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCard

from .card_data import BLOCK, TAG, EvaluationSet, eval_results, is_hub_name, numbers, set_of
from .model_kinds import PIPELINES, auto_class_name, pipeline_tag_of
from .quantization import bitsandbytes_arguments, in_words

NO_REPO = "your-name/this-model"  # stands in a card until it is pushed
# What `Trainer` writes: the scores of its last log, which may be of other weights, and a table that may have no rows
_LAST_SCORES = re.compile(r"\nIt achieves the following results on the evaluation set:\n.*?(?=\n\n)", re.DOTALL)
_NO_TABLE = "\n### Training results\n\n\n"
_TAG_OF_BASE = "base_model:adapter:"  # begins a tag of PEFT's
_FIRST_SECTION = "\n## Model description\n"  # ours stands before it
_RESULTS = "\n### Results\n\n"  # in the template
_CAUTION = "\n\nSingle runs: small differences come and go with the seed."
_OWN = 4  # columns of the table of results without those of the baseline


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


def rdrop_card(
    card: ModelCard,
    facts: CardFacts,
    block: Mapping[str, Any],
    *,
    architecture: str,
    base: str,
    repo_id: str | None,
    is_adapter: bool = False,
    quantization: Any = None,
) -> ModelCard:
    """The card that a trainer wrote, with our metadata, our section, and the scores of the weights that it is about.

    Args:
        card: of `Trainer`, or of another trainer with a template of its own.
        facts: what the card is to say, with all scores of the present weights.
        block: the `r_drop` entry of `settings_block`.
        architecture: class name of the model.
        base: name or path of the model that training started from; empty for random weights.
        repo_id: repository to push to; None if not known yet.
        is_adapter: whether it is one of PEFT's; transformers alone loads it with the labels of its base model.
        quantization: of the base model while the adapter trained, where the base model's files are not in it.
    """
    hide_local_base(card)
    data, sets, scores = card.data, facts.evaluation_sets, numbers(facts.scores)
    baseline = numbers(facts.baseline or {})
    results = [_result(key, value, sets, baseline) for key, value in scores.items()]
    names = ", ".join(dict.fromkeys(data_set.name for data_set in sets.values() if data_set.name != EvaluationSet.name))
    text = _LAST_SCORES.sub("", card.text).replace(_NO_TABLE, "")
    text = text.replace(" on an unknown dataset.", f" on {names}." if names else ".")
    if base:
        text = text.replace("model was trained from scratch", "model is a fine-tuned version of a local model")
    before, mark, after = text.strip().partition(_FIRST_SECTION)

    data.pipeline_tag = facts.task or data.get("pipeline_tag") or pipeline_tag_of(architecture)
    data.language = data.language or facts.language
    # A baseline has the settings in its card, but shall not be found as an R-Drop model
    tags = [TAG] * (block["alpha"] > 0) + [data.pipeline_tag] * (data.pipeline_tag is not None)
    data.tags = list(dict.fromkeys([*tags, *facts.tags, *(data.tags or ())]))
    data[BLOCK] = dict(block)
    data.model_name = data.model_name or (repo_id or "model").split("/")[-1]
    data.eval_results = eval_results(scores, sets, data.pipeline_tag) or None
    data.metrics = list(dict.fromkeys(result.metric_type for result in data.eval_results or ())) or None
    datasets = [data_set.type for data_set in sets.values() if data_set.config or data_set.revision]
    data.datasets = list(dict.fromkeys([*datasets, *_listed(data.datasets)])) or None
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("templates/card.md").read_text(encoding="utf-8"),
        before=before.strip(),
        after=(mark + after).strip(),
        settings={name: shown(value) for name, value in block.items() if name != "version"},
        results=_table(results) if results else None,
        stability={name: shown(value) for name, value in (facts.stability or {}).items()},
        pictures={quote(Path(path).name): caption for path, caption in facts.pictures.items()},
        weights=facts.weights,
        pipeline=data.pipeline_tag if data.pipeline_tag in PIPELINES else None,
        repo_id=repo_id or NO_REPO,
        is_adapter=is_adapter,
        base_weights=in_words(quantization),
        quantization_arguments=bitsandbytes_arguments(quantization),
        auto_class=auto_class_name([architecture], data.pipeline_tag) or "AutoModel",
    )


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def shown(value: Any) -> str:
    """An entry of a card's metadata in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _result(key: str, value: float, sets: Mapping[str, EvaluationSet], baseline: Mapping[str, float]) -> list[str]:
    """A row of the table of results."""
    name, data = set_of(key, sets)
    row = [data.name, data.split or key.removesuffix(f"_{name}"), name, _score(value)]
    return row + (_beside(value, baseline.get(key)) if baseline else [])


def _beside(value: float, other: float | None) -> list[str]:
    """A score of the baseline, and the difference."""
    return [_score(other), "" if other is None else f"{value - other:+.4f}"]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The rows of the table of results, with the baseline's scores or without, and what to think of them."""
    header = ["data", "split", "score", "this model", "baseline, alpha 0", "difference"][: len(rows[0])]
    lines = (f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
    return "\n".join(lines) + (_CAUTION if len(header) > _OWN else "")


def with_baseline(text: str, scores: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """A card with the scores of a baseline that had not ended when it was written; another baseline's give way.

    Args:
        text: of the card; one without a table of `scores` stays as it is.
        scores: of the model, in the order of the table.
        baseline: its scores.
    """
    before, title, rest = text.partition(_RESULTS)
    table, gap, after = rest.partition("\n\n")
    rows = [line[2:-2].split(" | ") for line in table.split("\n")[2:]]
    own, other = numbers(scores), numbers(baseline)
    if not rows or not other or len(rows) != len(own) or len(rows[0]) < _OWN:
        return text
    rows = [[*row[:_OWN], *_beside(value, other.get(key))] for row, (key, value) in zip(rows, own.items(), strict=True)]
    return f"{before}{title}{_table(rows)}{(gap + after).removeprefix(_CAUTION)}"


def _score(value: float | None) -> str:
    return "" if value is None else "not defined" if math.isnan(value) else f"{value:.4f}"


def hide_local_base(card: ModelCard) -> None:
    """Take base models that are not on the Hub out of a card's metadata and text, in place: a local path is nobody
    else's business.

    Raises:
        TypeError: a base model is a list or a mapping.
    """
    given = _listed(card.data.base_model)
    local = {name for name in given if not is_hub_name(name)}
    if local:
        card.data.base_model = [name for name in given if name not in local] or None
    tags = _listed(card.data.tags)
    of_local = [tag for tag in tags if str(tag).startswith(_TAG_OF_BASE) and not is_hub_name(tag[len(_TAG_OF_BASE) :])]
    if of_local:
        card.data.tags = [tag for tag in tags if tag not in of_local] or None
        local |= {tag[len(_TAG_OF_BASE) :] for tag in of_local}
    text = card.text.replace("is a fine-tuned version of [](https://huggingface.co/)", "was trained from scratch")
    for name in local - {""}:
        text = text.replace(f"[{name}](https://huggingface.co/{name})", "a local model")
        if re.search(r"[/\\]", name):  # any other may be a word of the text
            text = text.replace(name, "a local model")
    card.text = text


def card_for_others(text: str) -> str:
    """A card as it is pushed: without local paths."""
    card = ModelCard(text, ignore_metadata_errors=True)
    hide_local_base(card)
    return str(card)
