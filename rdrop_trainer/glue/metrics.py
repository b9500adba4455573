"""The scores of the tasks, as `evaluate` metrics that need no download and write nothing to disk."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import evaluate
import numpy as np

from .._extras import import_optional
from ..errors import InputError
from .answer_scores import cmrc_scores, squad_scores
from .language_models import perplexity
from .overlap import bleu, chrf, is_chinese, rouge
from .tag_scores import are_entities, entity_f1, tag_accuracy
from .task import Task

logger = logging.getLogger(__name__)

CORRELATIONS = frozenset({"pearson", "spearmanr"})


def load_metric(task: Task) -> evaluate.Metric:
    """The metric of a task.

    Returns:
        A metric whose `compute(predictions=..., references=...)` returns the keys of `task.metrics`. Predictions and
        references are label ids for classification and multiple choice, numbers for a regression, a list of tag names
        per row for token tasks, and a text per row for sequence to sequence. For questions a prediction is a text, a
        reference a list of texts.
    """
    if not task.metrics:
        raise InputError(f"{task.name} has no labels to score against; predict it and submit the file")
    return _METRICS.get(task.head, TaskMetric)(task)


def with_metrics(task: Task, names: Sequence[str]) -> Task:
    """The task with other scores to report first; its own are computed too.

    Args:
        names: for classification of rows accuracy, f1 (of two labels: that of the second), macro_f1 or
            matthews_correlation; for a regression pearson or spearmanr; for other heads those that the task has. None:
            the task stays as it is.
    """
    if not names:
        return task
    known = set(task.metrics)
    if task.head == "sequence" and task.metrics:
        known = CORRELATIONS if task.is_regression else _SCORES.keys() - CORRELATIONS
    for name in names:
        if name not in known:
            what = " (a regression)" if task.is_regression else ""
            expected = ", ".join(sorted(known)) or "none, as it has no labels to score against"
            raise InputError(f"--metric {name}: not a score of {task.name}{what}; expected {expected}")
    if "f1" in names and task.labels and task.head == "sequence":
        if len(task.labels) > 2:
            raise InputError(
                f"--metric f1: is of two labels, and {task.name} has {len(task.labels)}; choose macro_f1, which is the "
                "mean over labels"
            )
        logger.warning("f1 is that of the label %r; macro_f1 is the mean over both", task.labels[1])
    return replace(task, metrics=tuple(dict.fromkeys([*names, *task.metrics])), headline=tuple(names))


class _InMemoryMetric(evaluate.Metric):
    """An `evaluate` metric that touches no file, so it works on read-only disks and in parallel processes.

    A class states the `packages` that it needs, with their extra, and the types of a prediction (`feature`) and of a
    `reference`, if that is another.
    """

    packages: Mapping[str, str] = {}
    feature: Any
    reference: Any = None

    def __init__(self, task: Task):
        for package, extra in self.packages.items():
            import_optional(package, extra)
        self.task = task
        super().__init__(config_name=task.name, keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # the parent class would make a folder, which is not needed

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{', '.join(self.task.metrics)} of {self.task.name}",
            citation="",
            inputs_description="\npredictions and references are lists of equal length.",
            features=datasets.Features(
                {"predictions": self.feature, "references": self.reference or self.feature},
            ),
        )


class TaskMetric(_InMemoryMetric):
    """Accuracy, F1, macro F1 and Matthews correlation of label ids; Pearson and Spearman correlation of numbers.

    The correlation with a constant is not defined: Pearson and Spearman are NaN then. The Matthews correlation is 0,
    which is its limit, and what scikit-learn returns.
    """

    def __init__(self, task: Task):
        self.packages = {"scipy.stats" if task.is_regression else "sklearn.metrics": "glue"}
        self.feature = datasets.Value("float64" if task.is_regression else "int64")
        super().__init__(task)

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {key: _SCORES[key](predictions, references) for key in self.task.metrics}


class TagScores(_InMemoryMetric):
    """F1 of whole entities, or accuracy and macro F1 of tags that are no entities; see `tag_scores`."""

    packages = {"seqeval": "glue"}
    feature = datasets.List(datasets.Value("string"))

    def _compute(self, predictions: Sequence[list[str]], references: Sequence[list[str]]) -> dict[str, float]:
        return (entity_f1 if are_entities(self.task.labels) else tag_accuracy)(predictions, references)


class AnswerMatch(_InMemoryMetric):
    """Exact match and F1 of answers, as CMRC counts for its own tasks and where an answer is Chinese, else as SQuAD."""

    feature = datasets.Value("string")
    reference = datasets.List(feature)

    def _compute(self, predictions: Sequence[str], references: Sequence[list[str]]) -> dict[str, float]:
        by_characters = self.task.suite != "custom" or any(is_chinese(answer) for row in references for answer in row)
        return (cmrc_scores if by_characters else squad_scores)(predictions, references)


class Perplexity(_InMemoryMetric):
    """exp of the mean loss of tokens; predictions are sums of losses in nats, references their numbers of tokens."""

    feature = datasets.Value("float64")

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"perplexity": perplexity(list(zip(predictions, references, strict=True)))}


class TextOverlap(_InMemoryMetric):
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1, and BLEU and chrF, from 0 to 100, of generated texts.

    Chinese is compared character by character, other scripts word by word; see `overlap`.
    """

    packages = {"rouge_score": "seq2seq", "sacrebleu": "seq2seq"}
    feature = datasets.Value("string")

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        overlap = {"bleu": bleu(predictions, references), "chrf": chrf(predictions, references)}
        return {**rouge(predictions, references), **overlap}


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float((predictions == references).mean())


def _f1(average: str, predictions: np.ndarray, references: np.ndarray) -> float:
    """Of the second label ("binary"), or the mean over the labels that occur in either ("macro")."""
    score = import_optional("sklearn.metrics").f1_score
    return float(score(references, predictions, average=average, zero_division=0.0))


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(import_optional("sklearn.metrics").matthews_corrcoef(references, predictions))


def _correlation(name: str, predictions: np.ndarray, references: np.ndarray) -> float:
    if len(predictions) < 2:
        return float("nan")
    with warnings.catch_warnings():  # SciPy returns NaN for a constant, and warns
        warnings.simplefilter("ignore")
        return float(getattr(import_optional("scipy.stats"), name)(predictions, references).statistic)


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": partial(_f1, "binary"),
    "macro_f1": partial(_f1, "macro"),
    "matthews_correlation": _matthews,
    "pearson": partial(_correlation, "pearsonr"),
    "spearmanr": partial(_correlation, "spearmanr"),
}
_METRICS = {
    "tokens": TagScores,
    "question": AnswerMatch,
    "seq2seq": TextOverlap,
    "causal": Perplexity,
    "masked": Perplexity,
}
