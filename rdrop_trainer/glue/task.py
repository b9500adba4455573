"""What a task is: its inputs and labels, its scores, and the form of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Leaderboard(NamedTuple):
    """A file that a leaderboard takes, or of the predictions for a user's own file.

    Attributes:
        file: its name.
        rows: the number of predictions it must hold; None where no source states it.
        form: of a file of JSON. "label", "answer", "title" and "prediction": a line per row, {"id": ..., "label": ...},
            {"id": ..., "answer": ...} and so on. "object": one object of all predictions by id.
    """

    file: str
    rows: int | None
    form: Literal["label", "answer", "title", "prediction", "perplexity", "object"] = "label"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: the task's name, as in `TASKS`; "custom" for a user's own files.
        suite: "glue", "clue", "fewclue" or "custom".
        text_columns: names of the one or two text columns of the loaded data; a token task has one, of lists.
        labels: label names in id order. None for a regression, and where the answer is one of the choices of a row, a
            part of its text, or a new text.
        head: kind of model head: "sequence", "tokens", "choice" (multiple choice), "question" (extractive answers),
            "seq2seq" (texts from texts), "causal" or "masked" (language models).
        raw_labels: the labels as the official files write them, in id order; None when they are `labels`.
        metrics: keys of the scores; empty when nothing can be scored.
        headline: the keys to report first; the first of them selects models.
        hub: dataset and configuration on the Hub, or None.
        files: split name -> stems of file names for it, first choice first; "a+b" means two files that are one split
            together.
        folders: names that the task's folder may have below a data directory, in upper or lower case.
        text_sources: text column -> names that it may have in files, if not just its own.
        label_sources: names that the label column may have in files.
        id_column: name of the column of ids in a user's own files, which predictions keep; None for their numbers.
        tsv: columns of the classic .tsv, 0-based: texts and label of train and dev, then texts of test.
        headerless: names of the columns of .tsv files without a header line.
        headerless_splits: the splits whose .tsv files have no header line.
        tolerant: whether the official files have rows with missing or extra cells, and empty texts.
        unlabeled_rows: whether the official files have rows labeled "-", on which the annotators disagreed.
        unanswerable: whether some questions have no answer in their passage, as in SQuAD 2.0.
        score_range: lowest and highest value of a regression in a leaderboard file.
        submission: split -> each leaderboard that takes it, the main one first.
        max_length: default for the longest input, in tokens.
        max_target_length: default for the longest text that is written, in tokens.
    """

    name: str
    suite: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    head: str = "sequence"
    raw_labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    headline: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str] | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    folders: tuple[str, ...] = ()
    text_sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    label_sources: tuple[str, ...] = ("label",)
    id_column: str | None = None
    tsv: tuple[tuple[int, ...], int, tuple[int, ...]] | None = None
    headerless: tuple[str, ...] | None = None
    headerless_splits: tuple[str, ...] = ("train", "validation")
    tolerant: bool = False
    unlabeled_rows: bool = False
    unanswerable: bool = False
    score_range: tuple[float, float] | None = None
    submission: Mapping[str, tuple[Leaderboard, ...]] = field(default_factory=dict, hash=False)
    max_length: int = 128
    max_target_length: int = 64

    @property
    def is_regression(self) -> bool:
        """Whether the task predicts a number."""
        return self.labels is None and self.head == "sequence"

    @property
    def is_language_model(self) -> bool:
        """Whether texts alone are learned."""
        return self.head in ("causal", "masked")

    @property
    def reads_passages(self) -> bool:
        """Whether a row asks something about a passage and has the answer in itself."""
        return self.head in ("choice", "question")

    @property
    def label_aliases(self) -> dict[str, str]:
        """Every spelling of a label in files -> the name of the label."""
        names = self.labels or ()
        aliases = dict(zip(self.raw_labels or (), names, strict=False))
        if self.suite == "glue":  # exports of GLUE write the ids
            aliases |= {str(index): name for index, name in enumerate(names)}
        return aliases | {name: name for name in names}

    def sources(self, column: str) -> tuple[str, ...]:
        """Names that a text column may have in files."""
        return self.text_sources.get(column, (column,))

    def split(self, kind: str) -> str | None:
        """Name of the first split of a kind ("train", "validation", "test"); None if the task has none."""
        return next((split for split in self.files if split.split("_")[0] == kind), None)


# What the tasks with one kind of head have in common: fields of a `Task`
ENTITIES: dict[str, Any] = {
    "head": "tokens",
    "metrics": ("f1", "macro_f1", "precision", "recall"),
    "headline": ("f1", "macro_f1"),
}
OTHER_TAGS: dict[str, Any] = ENTITIES | {"metrics": ("accuracy", "macro_f1"), "headline": ("accuracy", "macro_f1")}
QUESTIONS: dict[str, Any] = {
    "head": "question",
    "metrics": ("exact_match", "f1"),
    "headline": ("exact_match", "f1"),
    "max_length": 512,
}
TEXTS: dict[str, Any] = {
    "head": "seq2seq",
    "metrics": ("rouge1", "rouge2", "rougeL", "bleu", "chrf"),
    "headline": ("rougeL", "bleu", "chrf"),
    "max_length": 512,
    "max_target_length": 128,
}
LANGUAGE: dict[str, Any] = {"metrics": ("perplexity",), "headline": ("perplexity",), "max_length": 512}

# The kinds of tasks that a user's own files may be for -> the head; of "lm" the model decides, causal or masked
HEADS: dict[str, str] = {
    "classification": "sequence",
    "tokens": "tokens",
    "seq2seq": "seq2seq",
    "qa": "question",
    "lm": "causal",
}
