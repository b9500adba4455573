"""The tasks of CLUE and FewCLUE, as data: reading, scoring and the leaderboard files need no `if task == ...`."""

from __future__ import annotations

from .task import ENTITIES, QUESTIONS, TEXTS, Leaderboard, Task

# OCNLI's own release calls its training file train.50k.json; FewCLUE's unions of its samples are *_few_all.json.
_FILES = {
    "train": ("train", "train.50k", "train_few_all"),
    "validation": ("dev", "dev_few_all"),
    "test": ("test",),
    "test_public": ("test_public",),
    "unlabeled": ("unlabeled",),
}


def _clue(name: str, columns: str, labels: str | None, *submissions: tuple, suite: str = "clue", **fields) -> Task:
    facts = {
        "labels": tuple(labels.split()) if labels else None,
        "hub": ("clue/clue", name) if suite == "clue" else None,
        "files": _FILES,
        "folders": (name, f"{name}_public"),
        "submission": {"test": tuple(Leaderboard(f"{stem}_predict.json", *rest) for stem, *rest in submissions)},
    }
    return Task(name, suite, tuple(columns.split()), **facts | fields)


_NLI = "neutral entailment contradiction"
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

CLUE = (
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
    _clue("cmnli", "sentence1 sentence2", _NLI, ("cmnli", 13880), unlabeled_rows=True),
    _clue("ocnli", "sentence1 sentence2", _NLI, ("ocnli_50k", 3000), unlabeled_rows=True),
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
        "tokens",
        "O " + " ".join(f"{prefix}-{kind}" for kind in _CLUENER_TYPES for prefix in "BI"),
        ("cluener", 1345),
        hub=None,
        folders=("cluener", "cluener2020", "cluener_public"),
        text_sources={"tokens": ("text",)},
        **(ENTITIES | {"headline": ("macro_f1", "f1")}),
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
        **QUESTIONS,
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
        **QUESTIONS,
    ),
    # The titles of CSL's abstracts, as the CLUE authors' text generation set has them; no leaderboard takes them
    _clue(
        "csl_title",
        "abstract",
        None,
        ("csl_title", None, "title"),
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
        **(TEXTS | {"headline": ("rougeL", "bleu"), "max_length": 256, "max_target_length": 64}),
    ),
    _clue("eprstmt", "sentence", "Negative Positive", ("eprstmt", 753), suite="fewclue"),
    _clue("bustm", "sentence1 sentence2", "0 1", ("bustm", 2000), suite="fewclue"),
    _clue("csldcp", "content", _CSLDCP, ("csldcp", 2999), suite="fewclue"),
)
