"""A named task from files that are given, or from the Hub; and what is said where neither can be."""

import math

import datasets
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.tasks import TASKS
from support.task_files import jsonl, tsv, write


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


def test_broken_arguments(tmp_path):
    good = write(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel\na\tb\tentailment\n")
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


# ---- From the Hub ----


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
