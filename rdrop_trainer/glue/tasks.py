"""The tasks: their inputs and labels, their scores, and the form of their official files.

Everything here is a fact about GLUE, CLUE or FewCLUE, written as data, so that reading, scoring and the leaderboard
files need no `if task == ...`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..errors import InputError

GLUE_FILES = {"train": ("train",), "validation": ("dev",), "test": ("test",)}
# OCNLI's own release calls its training file train.50k.json; FewCLUE's unions of its samples are *_few_all.json.
CLUE_FILES = {
    "train": ("train", "train.50k", "train_few_all"),
    "validation": ("dev", "dev_few_all"),
    "test": ("test",),
    "test_public": ("test_public",),
    "unlabeled": ("unlabeled",),
}


class Leaderboard(NamedTuple):
    """A file that a leaderboard takes.

    Attributes:
        file: its name.
        rows: the number of predictions it must hold; None where no source states it.
        form: of a .json file. "label", "answer" and "title": a line per row, {"id": ..., "label": ...}, {"id": ...,
            "answer": ...} and so on. "object": one object of all predictions by id.
    """

    file: str
    rows: int | None
    form: Literal["label", "answer", "title", "object"] = "label"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: the task's name, as in `TASKS`; "custom" for a user's own files.
        suite: "glue", "clue", "fewclue" or "custom".
        text_columns: names of the one or two text columns of the loaded data.
        labels: label names in id order. None for a regression, and where the answer is one of the choices of a row, a
            part of its text, or a new text.
        head: kind of model head: "sequence", "tokens", "choice" (multiple choice), "question" (extractive answers) or
            "seq2seq" (texts from texts).
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
        score_range: lowest and highest value of a regression in a leaderboard file.
        submission: split -> each leaderboard that takes it, the main one first.
        max_length: default for the longest input, in tokens.
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
    score_range: tuple[float, float] | None = None
    submission: Mapping[str, tuple[Leaderboard, ...]] = field(default_factory=dict, hash=False)
    max_length: int = 128

    @property
    def is_regression(self) -> bool:
        """Whether the task predicts a number."""
        return self.labels is None and self.head == "sequence"

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


def _glue(name: str, columns: str, labels: str | None, rows: int, folder: str, **fields) -> Task:
    facts = {
        "labels": tuple(labels.split()) if labels else None,
        "hub": ("nyu-mll/glue", name),
        "files": GLUE_FILES,
        "folders": (folder, name),
        "submission": {"test": (Leaderboard(f"{folder}.tsv", rows),)},
    }
    return Task(name, "glue", tuple(columns.split()), **facts | fields)


def _clue(name: str, columns: str, labels: str | None, *submissions: tuple, suite: str = "clue", **fields) -> Task:
    facts = {
        "labels": tuple(labels.split()) if labels else None,
        "hub": ("clue/clue", name) if suite == "clue" else None,
        "files": CLUE_FILES,
        "folders": (name, f"{name}_public"),
        "submission": {"test": tuple(Leaderboard(f"{stem}_predict.json", *rest) for stem, *rest in submissions)},
    }
    return Task(name, suite, tuple(columns.split()), **facts | fields)


_BINARY = ("0", "1")
_NLI = "entailment neutral contradiction"
_CLUE_NLI = "neutral entailment contradiction"
_ACCURACY_F1 = ("accuracy", "f1")
_EXACT_F1 = ("exact_match", "f1")
_QUESTIONS: Mapping[str, Any] = {"head": "question", "metrics": _EXACT_F1, "headline": _EXACT_F1, "max_length": 512}
_MNLI_SOURCES = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2")}
_TSV_PAIR = ((1, 2), -1, (1, 2))

# Names and ids 100 to 116 of the news categories; 105 and 111 do not exist.
_TNEWS = (
    "100 story 101 culture 102 entertainment 103 sports 104 finance 106 house 107 car 108 edu 109 tech 110 military "
    "112 travel 113 world 114 stock 115 agriculture 116 game"
).split()
_CLUENER_TYPES = "address book company game government movie name organization position scene".split()
_CSLDCP = """
中医学/中药学 中国语言文学 交通运输工程 体育学 作物学 信息与通信工程 光学工程 公共卫生与预防医学 公共管理
兵器科学与技术 军事学 农业工程 农业资源利用 农林经济管理 冶金工程 力学 动力工程及工程热物理 化学/化学工程与技术
历史学 口腔医学 哲学 园艺学 图书馆、情报与档案管理 土木工程 地球物理学 地理学 地质学/地质资源与地质工程
基础医学/临床医学 大气科学 天文学 工商管理 应用经济学 建筑学 心理学 控制科学与工程 政治学 教育学 数学 新闻传播学
机械工程 材料科学与工程 林学/林业工程 核科学与技术 植物保护 民族学 水产 水利工程 法学 测绘科学与技术 海洋科学 物理学
环境科学与工程 理论经济学 生物学/生物科学与工程 电子科学与技术 电气工程 畜牧学/兽医学 石油与天然气工程 矿业工程
社会学 纺织科学与工程 航空宇航科学与技术 船舶与海洋工程 艺术学 药学 计算机科学与技术 食品科学与工程
"""

_ALL = (
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
    _clue("afqmc", "sentence1 sentence2", "0 1", ("afqmc", 3861)),
    _clue(
        "tnews",
        "sentence",
        " ".join(f"news_{name}" for name in _TNEWS[1::2]),
        ("tnews11", 10000),
        ("tnewsf", 1500),
        raw_labels=tuple(_TNEWS[::2]),
    ),
    _clue("iflytek", "sentence", " ".join(map(str, range(119))), ("iflytek", 2600), ("iflytekf", 2279)),
    _clue("cmnli", "sentence1 sentence2", _CLUE_NLI, ("cmnli", 13880), unlabeled_rows=True),
    _clue("ocnli", "sentence1 sentence2", _CLUE_NLI, ("ocnli_50k", 3000), unlabeled_rows=True),
    _clue(
        "cluewsc2020",
        "text",
        "true false",
        ("cluewsc11", 2574),
        ("cluewscf", 290),
        folders=("cluewsc2020", "cluewsc", "cluewsc2020_public"),
    ),
    _clue("csl", "keyword abst", "0 1", ("csl", 3000)),
    _clue(
        "cluener",
        "text",
        "O " + " ".join(f"{prefix}-{kind}" for kind in _CLUENER_TYPES for prefix in "BI"),
        ("cluener", 1345),
        head="tokens",
        metrics=("f1", "macro_f1", "precision", "recall"),
        headline=("macro_f1", "f1"),
        hub=None,
        folders=("cluener", "cluener2020", "cluener_public"),
    ),
    # The test sets of CLUE 1.1 and, where its form is the same, of 1.0, which is C3's own
    _clue(
        "c3",
        "context question",
        None,
        ("c311", 1625),
        ("c310", 3892),
        head="choice",
        files={
            "train": ("train", "d-train+m-train", "c3-d-train+c3-m-train"),
            "validation": ("dev", "d-dev+m-dev", "c3-d-dev+c3-m-dev"),
            "test": ("test1.1", "test", "test1.0", "c3-d-test+c3-m-test"),
        },
        max_length=512,
    ),
    # CLUE's rows have several blanks, and no source says how many its test set has; FewCLUE's rows have one each
    _clue(
        "chid",
        "context question",
        None,
        ("chid11", None, "object"),
        ("chidf", 2000, "answer"),
        head="choice",
        files={
            "train": ("train", "train_few_all"),
            "validation": ("dev", "dev_few_all"),
            "test": ("test1.1", "test", "test1.0"),
            "test_public": ("test_public",),
        },
    ),
    _clue(
        "cmrc2018",
        "context question",
        None,
        ("cmrc2018", 2000, "object"),
        files={
            "train": ("train", "cmrc2018_train"),
            "validation": ("dev", "cmrc2018_dev"),
            "test": ("test",),
            "test_public": ("trial", "cmrc2018_trial"),
        },
        **_QUESTIONS,
    ),
    # No leaderboard takes it any more; the file is of CMRC 2018's form
    _clue(
        "drcd",
        "context question",
        None,
        ("drcd", 3493, "object"),
        files={
            "train": ("train", "DRCD_training"),
            "validation": ("dev", "DRCD_dev"),
            "test": ("test", "DRCD_test"),
        },
        **_QUESTIONS,
    ),
    # The titles of CSL's abstracts, as the CLUE authors' text generation set has them; no leaderboard takes them
    _clue(
        "csl_title",
        "abstract",
        None,
        ("csl_title", None, "title"),
        head="seq2seq",
        metrics=("rouge1", "rouge2", "rougeL", "bleu"),
        headline=("rougeL", "bleu"),
        hub=None,
        files={
            "train": ("csl_title_train", "train"),
            "validation": ("csl_title_dev", "dev"),
            "test": ("csl_title_test", "test"),
        },
        text_sources={"abstract": ("abstract", "abst", "content")},
        label_sources=("title",),
        headerless=("title", "abstract"),
        headerless_splits=("train", "validation", "test"),
        max_length=256,
    ),
    _clue("eprstmt", "sentence", "Negative Positive", ("eprstmt", 753), suite="fewclue"),
    _clue("bustm", "sentence1 sentence2", "0 1", ("bustm", 2000), suite="fewclue"),
    _clue("csldcp", "content", _CSLDCP, ("csldcp", 2999), suite="fewclue"),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """The task of a name, or of the name of a folder such as "SST-2", in upper or lower case.

    Args:
        name: the task's name.

    Returns:
        The task.

    Raises:
        InputError: no task has this name; the message suggests similar names and lists all.

    Examples:
        >>> get_task("SST-2").labels
        ('negative', 'positive')
    """
    spellings = {spelling.lower(): task for task in _ALL for spelling in (task.name, *task.folders)}
    key = name.strip().lower()
    if key in spellings:
        return spellings[key]
    close = difflib.get_close_matches(key, TASKS, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"unknown task {name!r}:{hint} The tasks are {', '.join(TASKS)}.")
