"""The official files of CLUE and FewCLUE: labels by name, splits, marks, tags; and awkward characters in any file."""

import pytest

from rdrop_trainer.glue.tasks import TASKS
from support.task_files import NEWS, WSC, jsonl, load, tsv, write

# task, folder, raw rows of dev.json, expected columns
CLUE = [
    ("afqmc", "afqmc_public", [{"sentence1": "a", "sentence2": "b", "label": "1"}], {"sentence1": ["a"], "label": [1]}),
    ("tnews", "tnews", [NEWS, NEWS | {"label": 106}], {"sentence": ["好", "好"], "label": [4, 5], "idx": [7, 7]}),
    ("iflytek", "IFLYTEK", [{"sentence": "a\u2028b", "label": 118}], {"sentence": ["a\u2028b"], "label": [118]}),
    (
        "cmnli",
        "cmnli",
        [{"sentence1": "a", "sentence2": "b", "label": label} for label in ("neutral", "-", "contradiction")],
        {"label": [0, 2], "idx": [0, 2]},
    ),
    (
        "ocnli",
        "ocnli",
        [{"sentence1": "a", "sentence2": "b", "label": "entailment", "id": 5, "idx": 0}],
        {"label": [1], "idx": [5]},
    ),
    (
        "cluewsc2020",
        "cluewsc",
        [WSC | {"label": "true", "idx": 3}, WSC | {"label": False, "idx": 4}],
        {"text": ["_小明_说[他]来了"] * 2, "label": [0, 1], "idx": [3, 4]},
    ),
    (
        "csl",
        "csl",
        [{"id": 1, "abst": "摘要", "keyword": ["甲", "乙"], "label": "0"}],
        {"keyword": ["甲 乙"], "abst": ["摘要"], "label": [0]},
    ),
    ("eprstmt", "eprstmt", [{"id": 0, "sentence": "a", "label": "Positive"}], {"label": [1]}),
    ("bustm", "bustm", [{"id": 0, "sentence1": "a", "sentence2": "b", "label": "1"}], {"label": [1]}),
    ("csldcp", "csldcp", [{"content": "a", "label": "中国语言文学"}], {"content": ["a"], "label": [1]}),
]


@pytest.mark.parametrize("name, folder, rows, expected", CLUE, ids=[case[0] for case in CLUE])
def test_clue(tmp_path, name, folder, rows, expected):
    write(tmp_path / folder / "dev.json", jsonl(*rows))
    data = load(name, tmp_path)["validation"]
    assert {key: data[key] for key in expected} == expected


def test_test_rows_are_never_dropped(tmp_path, caplog):
    rows = [{"sentence1": "a", "sentence2": "b", "label": label, "id": i} for i, label in enumerate(("-", "neutral"))]
    for file in ("train", "dev", "test", "test_public"):
        write(tmp_path / f"ocnli/{file}.json", jsonl(*rows))
    splits = load("ocnli", tmp_path)
    assert {split: data["label"] for split, data in splits.items()} == {
        "train": [0],
        "validation": [0],
        "test": [-1, 0],
        "test_public": [-1, 0],
    }
    assert "1 rows without an agreed label were left out of validation" in caplog.text


def test_fewclue_splits(tmp_path, caplog):
    write(tmp_path / "tnews/train_few_all.json", jsonl(NEWS))
    write(tmp_path / "tnews/test.json", jsonl({"id": "0", "sentence": "x"}))
    write(tmp_path / "tnews/test_public.json", jsonl(NEWS))
    write(tmp_path / "tnews/unlabeled.json", jsonl({"id": 3, "sentence": "y", "label": "104"}))
    splits = load("tnews", tmp_path)
    assert {split: (data["idx"], data["label"]) for split, data in splits.items()} == {
        "train": ([7], [4]),
        "test": (["0"], [-1]),
        "test_public": ([7], [4]),
        "unlabeled": ([3], [-100]),
    }
    write(tmp_path / "tnews/unlabeled.json", "")
    assert "unlabeled" not in load("tnews", tmp_path)


@pytest.mark.parametrize(
    "first, second, marked",
    [
        (("他", 3), ("小明", 0), "[小明]说_他_来了"),
        (("说", 2), ("他", 3), "小明_说_[他]来了"),
        (("说他", 2), ("他", 3), None),
    ],
)
def test_wsc_marks(tmp_path, first, second, marked):
    target = dict(zip(("span1_text", "span1_index", "span2_text", "span2_index"), first + second, strict=True))
    write(tmp_path / "dev.json", jsonl({"text": WSC["text"], "target": target, "label": "true"}))
    (text,) = load("cluewsc2020", tmp_path)["validation"]["text"]
    assert text == marked if marked else text.translate(str.maketrans("", "", "_[]")) == WSC["text"]


def test_cluener(tmp_path):
    rows = [
        {"text": "小明在北京", "label": {"name": {"小明": [[0, 1]]}, "address": {"北京": [[3, 4]]}}},
        # The longer of two overlapping entities stays; of equally long ones the first.
        {"text": "北京大学生", "label": {"address": {"北京": [[0, 1]]}, "organization": {"北京大学": [[0, 3]]}}},
        {"text": "甲乙丙", "label": {"name": {"乙丙": [[1, 2]]}, "book": {"甲乙": [[0, 1]]}}},
        {"text": "无", "label": {}},
    ]
    write(tmp_path / "cluener/train.json", jsonl(*rows))
    write(tmp_path / "cluener/test.json", jsonl({"id": 9, "text": "小明"}))
    splits = load("cluener", tmp_path)
    names = [[TASKS["cluener"].labels[tag] for tag in tags] for tags in splits["train"]["labels"]]
    assert names == [
        ["B-name", "I-name", "O", "B-address", "I-address"],
        ["B-organization", "I-organization", "I-organization", "I-organization", "O"],
        ["B-book", "I-book", "O"],
        ["O"],
    ]
    assert splits["test"] == {"tokens": [["小", "明"]], "idx": [9], "labels": [[]]}


def test_awkward_characters(tmp_path):
    texts = ['an "odd quote', "u2028\u2028u0085\x85ff\x0c", "no-break\xa0bom\ufeff", "'", "𠮷 😀"]
    write(tmp_path / "SST-2/dev.tsv", "\ufeff" + tsv(["sentence", "label"], *([text, "1"] for text in texts)))
    assert load("sst2", tmp_path)["validation"]["sentence"] == texts
    write(tmp_path / "SST-2/dev.tsv", "\r\n".join(["sentence\tlabel", *(text + "\t1" for text in texts), ""]))
    assert load("sst2", tmp_path)["validation"]["sentence"] == texts
    write(tmp_path / "CoLA/test.tsv", "index\tsentence\r\n0\tlast cell\r\n")
    assert load("cola", tmp_path)["test"]["sentence"] == ["last cell"]
    write(tmp_path / "eprstmt/dev.json", "\ufeff" + jsonl(*({"sentence": t, "label": "Positive"} for t in texts)))
    assert load("eprstmt", tmp_path)["validation"]["sentence"] == texts
