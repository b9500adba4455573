"""Reading tasks: every layout, awkward characters, label order, and what is said about broken files."""

import json
import logging
import math

import datasets
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.glue.tasks import TASKS


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(task, data_dir, **options):
    return {
        split: {name: list(data[name]) for name in data.column_names}
        for split, data in load_task(TASKS[task], data_dir=data_dir, **options).items()
    }


STSB = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
MNLI = "index promptID pairID genre b1 b2 p1 p2 sentence1 sentence2".split()
ROW8 = list("01234567")

# folder, files, split -> (columns of text, labels)
GLUE = {
    "cola": (
        "CoLA",
        {
            "train.tsv": tsv(["gj04", "0", "*", 'He said "no.'], ["gj04", "1", "", "Fine."]),
            "dev.tsv": tsv(["gj04", "1", "", "Good."]).rstrip("\n"),
            "test.tsv": tsv(["index", "sentence"], ["0", "Unseen."]),
        },
        {
            "train": ([['He said "no.', "Fine."]], [0, 1]),
            "validation": ([["Good."]], [1]),
            "test": ([["Unseen."]], [-1]),
        },
    ),
    "sst2": (
        "SST-2",
        {
            "train.tsv": tsv(["sentence", "label"], ["a hit ", "1"]),
            "test.tsv": tsv(["index", "sentence"], ["0", "x"]),
        },
        {"train": ([["a hit "]], [1]), "test": ([["x"]], [-1])},
    ),
    "mrpc": (
        "mrpc",
        {
            "dev.tsv": "\ufeff"
            + tsv(["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["1", "7", "8", '" a', "b"]),
            "test.tsv": tsv(["index", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["0", "7", "8", "c", 'd "']),
        },
        {"validation": ([['" a'], ["b"]], [1]), "test": ([["c"], ['d "']], [-1])},
    ),
    "stsb": (
        "STS-B",
        {
            "train.tsv": tsv([*STSB, "score"], [*ROW8[:7], "a", "b", "3.75"]),
            "test.tsv": tsv(STSB, [*ROW8[:7], "c", "d"]),
        },
        {"train": ([["a"], ["b"]], [3.75]), "test": ([["c"], ["d"]], [math.nan])},
    ),
    "qqp": (
        "QQP",
        {
            "train.tsv": tsv(
                ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
                ["133", "1", "2", "a", "b", "1"],
                ["134", "1", "2", "broken"],
                ["135", "1", "2", "", "d", "0"],
            ),
            "test.tsv": tsv(["id", "question1", "question2"], ["0", "e", "f"]),
        },
        {"train": ([["a", ""], ["b", "d"]], [1, 0]), "test": ([["e"], ["f"]], [-1])},
    ),
    "mnli": (
        "MNLI",
        {
            "train.tsv": tsv(
                [*MNLI, "label1", "gold_label"],
                [*ROW8, "a", "b", "neutral", "neutral"],
                [*ROW8, "c", "d", "more", "neutral", "entailment"],
            ),
            "dev_matched.tsv": tsv(
                [*MNLI, *(f"label{i}" for i in range(1, 6)), "gold_label"],
                [*ROW8, "e", "f", *["neutral"] * 5, "contradiction"],
            ),
            "test_mismatched.tsv": tsv(MNLI, [*ROW8, "g", "h"]),
        },
        {
            "train": ([["a", "c"], ["b", "d"]], [1, 0]),
            "validation_matched": ([["e"], ["f"]], [2]),
            "test_mismatched": ([["g"], ["h"]], [-1]),
        },
    ),
    "qnli": (
        "QNLI",
        {"dev.tsv": tsv(["index", "question", "sentence", "label"], ["0", "q?", 's "', "not_entailment"])},
        {"validation": ([["q?"], ['s "']], [1])},
    ),
    "rte": (
        "RTE",
        {
            "train.tsv": tsv(["index", "sentence1", "sentence2", "label"], ["0", "a", "b", "entailment"]),
            "test.tsv": tsv(["index", "sentence1", "sentence2"], ["0", "c", "d"]),
        },
        {"train": ([["a"], ["b"]], [0]), "test": ([["c"], ["d"]], [-1])},
    ),
    "wnli": (
        "WNLI",
        {"train.tsv": tsv(["index", "sentence1", "sentence2", "label"], ["0", "a", "b", "1"])},
        {"train": ([["a"], ["b"]], [1])},
    ),
    "ax": (
        "diagnostic",
        {"diagnostic.tsv": tsv(["index", "sentence1", "sentence2"], ["0", "a", "b"])},
        {"test": ([["a"], ["b"]], [-1])},
    ),
}


@pytest.mark.parametrize("below", [True, False], ids=["glue_data", "own folder"])
@pytest.mark.parametrize("name", GLUE)
def test_classic_glue(tmp_path, name, below):
    folder, files, expected = GLUE[name]
    folder = tmp_path / (folder if below else "anything")
    for file, content in files.items():
        write(folder / file, content)
    splits = load(name, tmp_path if below else folder)
    assert set(splits) == set(expected)
    for split, (texts, labels) in expected.items():
        data = splits[split]
        assert list(data) == [*TASKS[name].text_columns, "idx", "label"]
        assert [data[column] for column in TASKS[name].text_columns] == texts
        assert data["label"] == pytest.approx(labels, nan_ok=True)


def test_types_and_ids(tmp_path):
    write(tmp_path / "stsb/dev.tsv", tsv([*STSB, "score"], [*ROW8[:7], "a", "b", "2"], [*ROW8[:7], "a", "b", "0.5"]))
    data = load_task(TASKS["stsb"], data_dir=tmp_path)["validation"]
    assert data.features["label"] == datasets.Value("float32") and list(data["idx"]) == [0, 1]
    write(tmp_path / "QQP/test.tsv", tsv(["id", "question1", "question2"], ["10", "e", "f"]))
    data = load_task(TASKS["qqp"], data_dir=tmp_path)["test"]
    assert data.features["label"] == datasets.Value("int64") and list(data["idx"]) == [10]


@pytest.mark.parametrize("name", [name for name in GLUE if name != "ax"])
def test_columns_by_place(tmp_path, name):
    """The classic layouts are also read under headers nobody knows."""
    folder, files, expected = GLUE[name]
    for file, content in files.items():
        head, _, rest = content.partition("\n")
        if not (name == "cola" and file != "test.tsv"):
            head = "\t".join(f"c{place}" for place in range(head.count("\t") + 1))
        write(tmp_path / folder / file, f"{head}\n{rest}")
    splits = load(name, tmp_path)
    for split, (texts, labels) in expected.items():
        assert [splits[split][column] for column in TASKS[name].text_columns] == texts
        assert splits[split]["label"] == pytest.approx(labels, nan_ok=True)


@pytest.mark.parametrize("file", ["train.tsv", "test.tsv"])
def test_a_label_is_never_taken_for_a_text(tmp_path, file):
    write(tmp_path / "RTE" / file, tsv(["x", "y", "label"], ["a", "b", "entailment"]))
    with pytest.raises(InputError, match="no column 'sentence2'"):
        load("rte", tmp_path)


def test_skipped_and_long_rows_are_reported(tmp_path, caplog):
    write(tmp_path / "QQP/train.tsv", GLUE["qqp"][1]["train.tsv"])
    write(tmp_path / "MNLI/train.tsv", GLUE["mnli"][1]["train.tsv"])
    load("qqp", tmp_path)
    load("mnli", tmp_path)
    assert "1 rows have fewer cells than the header and were left out (the first is line 3)" in caplog.text
    assert "1 rows have more cells than the header" in caplog.text


NEWS = {"id": 7, "sentence": "好", "label": "104", "label_desc": "news_finance"}
WSC = {"text": "小明说他来了", "target": {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 3}}

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


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_explicit_files(tmp_path, suffix):
    file = tmp_path / f"mine.{suffix}"
    rows = [{"premise": 'x, "y"', "hypothesis": "two", "label": "neutral"}]
    if suffix == "csv":
        write(file, 'premise,hypothesis,label\r\n"x, ""y""",two,neutral\r\n')
    elif suffix == "tsv":
        write(file, tsv(rows[0], rows[0].values()))
    elif suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        write(file, jsonl(*rows))
    splits = load_task(TASKS["mnli"], train_file=file, validation_file=str(file), test_file=file)
    assert set(splits) == {"train", "validation_matched", "test_matched"}
    assert splits["train"][0] == {"premise": 'x, "y"', "hypothesis": "two", "idx": 0, "label": 1}


def test_exported_test_rows(tmp_path):
    """A table saved from the Hub has -1 for the missing labels and label ids instead of names."""
    file = write(tmp_path / "a.csv", "sentence1,sentence2,label,idx\na,b,-1,5\nc,d,1,6\n")
    data = load_task(TASKS["rte"], test_file=file)["test"]
    assert list(data["label"]) == [-1, 1] and list(data["idx"]) == [5, 6]
    with pytest.raises(InputError, match="a.csv:2: the row has no label"):
        load_task(TASKS["rte"], train_file=file)


def test_named_columns(tmp_path):
    file = write(tmp_path / "a.csv", "label,left,right,gold\nx,l,r,entailment\n")
    data = load_task(TASKS["rte"], train_file=file, text_columns=["right", "left"], label_column="gold")["train"]
    assert data[0] == {"sentence1": "r", "sentence2": "l", "idx": 0, "label": 0}


def test_unlabeled_text(tmp_path):
    train = write(tmp_path / "a.csv", "sentence,label\nx,Positive\n")
    extra = write(tmp_path / "more.txt", 'one\n\ntwo, "three\n')
    data = load_task(TASKS["eprstmt"], train_file=train, unlabeled_file=extra)["unlabeled"]
    assert list(data["sentence"]) == ["one", 'two, "three'] and list(data["label"]) == [-100, -100]


@pytest.fixture
def hub(monkeypatch):
    """Puts a dataset in the Hub's place; what it returns collects the calls."""

    def put(**splits):
        calls = []

        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            return datasets.DatasetDict(splits)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return put


def test_hub_labels_go_by_name(hub):
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["not_entailment", "entailment"]),
            "idx": datasets.Value("int32"),
        }
    )
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [11, 12]}
    labeled = datasets.Dataset.from_dict(rows, features=features)
    unlabeled = datasets.Dataset.from_dict(rows | {"label": [-1, -1]}, features=features)
    calls = hub(train=labeled, test=unlabeled, surplus=labeled)
    splits = load_task(TASKS["rte"], cache_dir="cache", token="secret")
    assert calls == [(("nyu-mll/glue", "rte"), {"cache_dir": "cache", "token": "secret"})]
    assert set(splits) == {"train", "test"}
    assert list(splits["train"]["label"]) == [1, 0] and list(splits["train"]["idx"]) == [11, 12]
    assert list(splits["test"]["label"]) == [-1, -1]


def test_hub_tnews_cmnli_and_stsb(hub):
    label = datasets.ClassLabel(names=["116", "104", "100"])
    news = datasets.Dataset.from_dict(
        {"sentence": ["a", "b", "c"], "label": [0, 1, 2], "idx": [0, 1, 2]},
        features=datasets.Features(
            {"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
        ),
    )
    hub(train=news)
    assert list(load_task(TASKS["tnews"])["train"]["label"]) == [14, 4, 0]
    text = datasets.Value("string")
    pairs = datasets.Features(
        {
            "sentence1": text,
            "sentence2": text,
            "label": datasets.ClassLabel(names=["contradiction", "neutral", "entailment"]),
        }
    )
    rows = {"sentence1": ["a"] * 3, "sentence2": ["b"] * 3, "label": [0, -1, 2]}
    hub(train=datasets.Dataset.from_dict(rows, features=pairs), test=datasets.Dataset.from_dict(rows, features=pairs))
    splits = load_task(TASKS["cmnli"])
    assert list(splits["train"]["label"]) == [2, 1] and list(splits["train"]["idx"]) == [0, 2]
    assert list(splits["test"]["label"]) == [2, -1, 1]
    hub(test=datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [-1.0], "idx": [0]}))
    assert math.isnan(load_task(TASKS["stsb"])["test"]["label"][0])


def test_no_hub(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="could not be reached.*--data_dir"):
        load_task(TASKS["rte"])
    with pytest.raises(InputError, match="bustm is not on the Hub.*--data_dir"):
        load_task(TASKS["bustm"])


@pytest.mark.parametrize(
    "header, row, columns",
    [
        ("sentence1,sentence2,label", "a,b,dog", ("sentence1", "sentence2")),
        ("label,text,other", "dog,a,b", ("text",)),
        ("id,text_a,text_b,label", "1,a,b,dog", ("text_a", "text_b")),
        ("label,remark", "dog,a", ("remark",)),
    ],
)
def test_custom_columns(tmp_path, header, row, columns):
    file = write(tmp_path / "a.csv", f"{header}\n{row}\n{row.replace('dog', 'cat')}\n")
    splits, task = load_files(train_file=file)
    assert task.name == "custom" and task.text_columns == columns and task.labels == ("cat", "dog")
    assert list(splits["train"]["label"]) == [1, 0] and task.metrics == ("accuracy",)


@pytest.mark.parametrize(
    "values, labels, expected",
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([1, -1, 1], ("-1", "1"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["0.5", "2", "1"], None, [0.5, 2.0, 1.0]),
        ([0.5, 2.0, 1.0], None, [0.5, 2.0, 1.0]),
    ],
)
def test_custom_labels(tmp_path, values, labels, expected):
    file = write(tmp_path / "a.json", jsonl(*({"text": "x", "label": value} for value in values)))
    test = write(tmp_path / "b.json", jsonl({"text": "y"}))
    splits, task = load_files(train_file=file, validation_file=file, test_file=test)
    assert task.labels == labels and list(splits["validation"]["label"]) == expected
    assert list(splits["test"]["label"]) == pytest.approx([math.nan if labels is None else -1], nan_ok=True)
    if labels is None:
        assert task.metrics == ("pearson", "spearmanr")


def test_custom_with_known_labels(tmp_path):
    file = write(tmp_path / "a.tsv", "text\nx\n\ny\n")
    splits, task = load_files(test_file=file, labels=["no", "yes"])
    assert task.labels == ("no", "yes") and list(splits["test"]["text"]) == ["x", "", "y"]
    assert load_files(test_file=file, labels=[])[1].is_regression
    with pytest.raises(InputError, match="no column 'label', the columns are text"):
        load_files(test_file=file)


RTE = "sentence1\tsentence2\tlabel\n"
GOOD = "a\tb\tentailment\n"
NER = {"text": "小明", "label": {"name": {"小明": [[0, 1]]}}}

# task, file, content, what the message says after the file's name
BROKEN = {
    "short row": ("rte", "train.tsv", RTE + GOOD + "a\tb\n", ":3: the row has 2 cells, expected 3"),
    "long row": ("rte", "train.tsv", RTE + "a\tb\tc\tentailment\n", ":2: the row has 4 cells, expected 3"),
    "short test row": ("qqp", "test.tsv", "id\tquestion1\tquestion2\n0\ta\n", ":2: the row has 2 cells"),
    "short headerless row": ("cola", "train.tsv", "gj04\t1\t\tFine.\ngj04\t1\n", ":2: the row has 2 cells, expected 4"),
    "missing column": (
        "rte",
        "train.tsv",
        "sentence1\tlabel\na\tentailment\n",
        ":2: no column 'sentence2', the columns",
    ),
    "doubled column": ("rte", "train.tsv", "sentence1\tsentence1\tlabel\n", ":1: the header names 'sentence1' twice"),
    "no label column": ("rte", "train.csv", "sentence1,sentence2\na,b\n", ":2: no column 'label', the columns are s"),
    "no label column in dev": ("rte", "dev.csv", "sentence1,sentence2\na,b\n", ":2: no column 'label'"),
    "unknown label": (
        "rte",
        "train.tsv",
        RTE + GOOD + "a\tb\tmaybe\n",
        ":3: unknown label 'maybe', expected one of ent",
    ),
    "unknown label in test": ("rte", "test.tsv", RTE + "a\tb\tmaybe\n", ":2: unknown label 'maybe'"),
    "label of no category": (
        "tnews",
        "dev.json",
        jsonl(NEWS | {"label": 105}),
        ":1: unknown label 105, expected one of 1",
    ),
    "empty label": ("rte", "dev.tsv", RTE + "a\tb\t\n", ":2: the row has no label ('')"),
    "null label": (
        "afqmc",
        "train.json",
        '{"sentence1": "a", "sentence2": "b", "label": null}',
        ":1: the row has no label",
    ),
    "empty text": ("rte", "train.tsv", RTE + GOOD + "a\t \tentailment\n", ":3: the text is empty"),
    "text is a number": (
        "eprstmt",
        "dev.json",
        '{"sentence": 5, "label": "Positive"}',
        ":1: the column 'sentence' holds 5",
    ),
    "surrogate": ("eprstmt", "test.json", '{"sentence": "\\ud83d"}', ":1: broken JSON (it holds half"),
    "empty file": ("rte", "train.tsv", "", ":1: is empty"),
    "header only": ("rte", "train.tsv", RTE, ": is empty"),
    "empty json": ("tnews", "train.json", "\n\n", ": is empty"),
    "only rows without label": (
        "ocnli",
        "train.json",
        jsonl({"sentence1": "a", "sentence2": "b", "label": "-"}),
        ": is empty",
    ),
    "broken json": ("tnews", "train.json", jsonl(NEWS) + '{"id": 1, \n', ":2: broken JSON"),
    "deep json": ("tnews", "train.json", "[" * 200_000, ":1: broken JSON"),
    "json list": ("tnews", "train.json", "[1]\n", ":1: holds a JSON list, expected one object per line"),
    "json key missing later": (
        "tnews",
        "test.json",
        jsonl(NEWS, {"text": "a"}),
        ":2: no column 'sentence', the columns",
    ),
    "not utf-8": (
        "rte",
        "train.tsv",
        (RTE + GOOD).encode() + b"caf\xe9\tb\tentailment\n",
        ":3: byte 0xe9 at position 4",
    ),
    "utf-16": ("rte", "train.tsv", (RTE + GOOD).encode("utf-16"), ":1: begins with the mark of UTF-16"),
    "nul byte": ("rte", "train.tsv", RTE + "a\0\tb\tentailment\n", ":2: holds a NUL byte"),
    "nul in csv": ("rte", "train.csv", "sentence1,sentence2,label\na\0,b,entailment\n", ":2: holds a NUL byte"),
    "gzip": ("rte", "train.tsv", b"\x1f\x8b\x08\0", ": is gzip-compressed"),
    "unclosed quote": ("rte", "train.csv", 'sentence1,sentence2,label\n"a,b,entailment\n', ":2: broken CSV"),
    "short csv row": ("rte", "train.csv", "sentence1,sentence2,label\na,b\n", ":2: the row has 2 cells, expected 3"),
    "not parquet": ("rte", "train.parquet", b"PAR1 no", ": broken parquet file"),
    "score is a word": (
        "stsb",
        "train.csv",
        "sentence1,sentence2,label\na,b,high\n",
        ":2: the label is 'high', expected a n",
    ),
    "score is infinite": (
        "stsb",
        "dev.csv",
        "sentence1,sentence2,label\na,b,inf\n",
        ":2: the label is 'inf', expected a nu",
    ),
    "span outside": ("cluener", "train.json", jsonl(NER | {"text": "小"}), ":1: the name '小明' is not at [0, 1]"),
    "span beside": ("cluener", "train.json", jsonl(NER | {"text": "明小明"}), ":1: the name '小明' is not at [0, 1]"),
    "span reversed": (
        "cluener",
        "dev.json",
        jsonl({"text": "小明", "label": {"name": {"": [[1, 0]]}}}),
        ":1: the name '' is not at [1, 0]",
    ),
    "unknown entity": (
        "cluener",
        "train.json",
        jsonl(NER, {"text": "小明", "label": {"animal": {"小明": [[0, 1]]}}}),
        ":2: unknown kind of entity 'animal', expected one of address, book",
    ),
    "no entities": ("cluener", "train.json", jsonl({"text": "小明", "label": "name"}), ":1: the label is 'name'"),
    "wsc without target": ("cluewsc2020", "dev.json", '{"text": "a", "label": "true"}', ":1: no column 'target'"),
    "wsc span beside": (
        "cluewsc2020",
        "dev.json",
        jsonl(WSC | {"text": "他", "label": "true"}),
        ":1: the column 'target'",
    ),
    "csl keywords": (
        "csl",
        "dev.json",
        '{"keyword": "a", "abst": "b", "label": "1"}',
        ":1: the column 'keyword' holds 'a'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("source", ["folder", "file"])
def test_broken_files(tmp_path, case, source):
    name, file, content, message = BROKEN[case]
    path = write(tmp_path / name / file, content)
    kind = {"train": "train_file", "dev": "validation_file", "test": "test_file"}[path.stem]
    with pytest.raises(InputError) as error:
        load_task(TASKS[name], **({"data_dir": tmp_path} if source == "folder" else {kind: path}))
    text = str(error.value)
    assert text.startswith(f"{path}{message}") and "\n" not in text


def test_broken_arguments(tmp_path):
    good = write(tmp_path / "a.tsv", RTE + GOOD)
    rte, missing = TASKS["rte"], tmp_path / "none.csv"
    for expected, options in [
        ("none.csv: no such file", {"train_file": missing}),
        ("is a directory, expected a file", {"train_file": tmp_path}),
        ("unknown kind of file '.xlsx'", {"train_file": write(tmp_path / "a.xlsx", "PK")}),
        ("no such directory", {"data_dir": tmp_path / "none"}),
        ("is not a directory", {"data_dir": good}),
        (r"no data for rte, expected train, dev, test \(.tsv or .json\)", {"data_dir": tmp_path}),
        ("both data_dir and train_file are given", {"data_dir": tmp_path, "train_file": good}),
        ("text_columns names 1 columns", {"train_file": good, "text_columns": ["a"]}),
        ("no column 'left'", {"train_file": good, "text_columns": ["left", "right"]}),
        ("no column 'gold'", {"train_file": good, "label_column": "gold"}),
        ("can only hold the unlabeled texts", {"train_file": write(tmp_path / "a.txt", "x")}),
        ("can only hold the unlabeled texts", {"train_file": good, "unlabeled_file": tmp_path / "a.txt"}),
    ]:
        with pytest.raises(InputError, match=expected):
            load_task(rte, **options)
    with pytest.raises(InputError, match="ax has no train split"):
        load_task(TASKS["ax"], train_file=good)
    with pytest.raises(InputError, match="csl reads the fields of its official files"):
        load_task(TASKS["csl"], train_file=good, text_columns=["a", "b"])


def test_broken_custom_data(tmp_path):
    def fails(expected, content, **options):
        file = write(tmp_path / "a.csv", content)
        with pytest.raises(InputError, match=expected):
            load_files(train_file=file, **options)

    fails("a.csv: is empty", "text,label\n")
    fails("no column of text", "id,label\n1,a\n")
    fails("every row has the label 'a'", "text,label\nx,a\n")
    fails("no column 'label', the columns are text, gold; did you mean --label_column gold", "text,gold\nx,a\n")
    fails("the columns are text, id; --label_column says which of them has the labels", "text,id\nx,a\n")
    fails("a.csv:2: no column 'body'", "text,label\nx,a\ny,b\n", text_columns=["body"])
    fails("a.csv:3: the label is 'nan', expected a number", "text,label\nx,0.5\ny,nan\n")
    fails("none called idx", "idx,label\nx,a\n", text_columns=["idx"])
    fails("one or two different ones", "text,label\nx,a\n", text_columns=["text", "text"])
    with pytest.raises(InputError, match="no data"):
        load_files()
    train = write(tmp_path / "a.csv", "text,label\nx,a\ny,b\n")
    other = write(tmp_path / "b.csv", "text,label\nx,a\ny,c\n")
    with pytest.raises(InputError, match="b.csv:3: unknown label 'c', expected one of a, b"):
        load_files(train_file=train, validation_file=other)


def test_guessed_columns_are_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_files(train_file=write(tmp_path / "a.csv", "title,label\nx,a\ny,b\n"))
    assert "taking title for the text" in caplog.text
