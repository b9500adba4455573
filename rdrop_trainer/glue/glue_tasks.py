"""The tasks of GLUE, as data: reading, scoring and the leaderboard files need no `if task == ...`."""

from __future__ import annotations

from .task import Leaderboard, Task

_FILES = {"train": ("train",), "validation": ("dev",), "test": ("test",)}


def _glue(name: str, columns: str, labels: str | None, rows: int, folder: str, **fields) -> Task:
    facts = {
        "labels": tuple(labels.split()) if labels else None,
        "hub": ("nyu-mll/glue", name),
        "files": _FILES,
        "folders": (folder, name),
        "submission": {"test": (Leaderboard(f"{folder}.tsv", rows),)},
    }
    return Task(name, "glue", tuple(columns.split()), **facts | fields)


_BINARY = ("0", "1")
_NLI = "entailment neutral contradiction"
_ACCURACY_F1 = ("accuracy", "f1")
_MNLI_SOURCES = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2")}
_TSV_PAIR = ((1, 2), -1, (1, 2))

GLUE = (
    _glue(
        "cola",
        "sentence",
        "unacceptable acceptable",
        1063,
        "CoLA",
        raw_labels=_BINARY,
        metrics=("matthews_correlation",),
        headline=("matthews_correlation",),
        tsv=((3,), 1, (1,)),
        headerless=("source", "label", "notation", "sentence"),
    ),
    _glue("sst2", "sentence", "negative positive", 1821, "SST-2", raw_labels=_BINARY, tsv=((0,), 1, (1,))),
    _glue(
        "mrpc",
        "sentence1 sentence2",
        "not_equivalent equivalent",
        1725,
        "MRPC",
        raw_labels=_BINARY,
        metrics=_ACCURACY_F1,
        headline=("f1", "accuracy"),
        text_sources={"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")},
        label_sources=("label", "Quality"),
        tsv=((3, 4), 0, (3, 4)),
    ),
    _glue(
        "qqp",
        "question1 question2",
        "not_duplicate duplicate",
        390965,
        "QQP",
        raw_labels=_BINARY,
        metrics=_ACCURACY_F1,
        headline=_ACCURACY_F1,
        label_sources=("label", "is_duplicate"),
        tsv=((3, 4), 5, (1, 2)),
        tolerant=True,
    ),
    _glue(
        "stsb",
        "sentence1 sentence2",
        None,
        1379,
        "STS-B",
        metrics=("pearson", "spearmanr"),
        headline=("pearson", "spearmanr"),
        label_sources=("label", "score"),
        tsv=((7, 8), -1, (7, 8)),
        score_range=(0.0, 5.0),
    ),
    _glue(
        "mnli",
        "premise hypothesis",
        _NLI,
        9796,
        "MNLI",
        files={
            "train": ("train",),
            "validation_matched": ("dev_matched",),
            "validation_mismatched": ("dev_mismatched",),
            "test_matched": ("test_matched",),
            "test_mismatched": ("test_mismatched",),
        },
        text_sources=_MNLI_SOURCES,
        label_sources=("label", "gold_label"),
        tsv=((8, 9), -1, (8, 9)),
        tolerant=True,
        submission={
            "test_matched": (Leaderboard("MNLI-m.tsv", 9796),),
            "test_mismatched": (Leaderboard("MNLI-mm.tsv", 9847),),
        },
    ),
    _glue("qnli", "question sentence", "entailment not_entailment", 5463, "QNLI", tsv=_TSV_PAIR),
    _glue("rte", "sentence1 sentence2", "entailment not_entailment", 3000, "RTE", tsv=_TSV_PAIR),
    _glue(
        "wnli",
        "sentence1 sentence2",
        "not_entailment entailment",
        146,
        "WNLI",
        raw_labels=_BINARY,
        tsv=_TSV_PAIR,
    ),
    _glue(
        "ax",
        "premise hypothesis",
        _NLI,
        1104,
        "AX",
        metrics=(),
        headline=(),
        files={"test": ("diagnostic", "test")},
        folders=("diagnostic", "ax"),
        text_sources=_MNLI_SOURCES,
    ),
)
