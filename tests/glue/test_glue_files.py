"""The official files of GLUE: every layout, types and ids, and columns that are known by place."""

import math

import datasets
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.tasks import TASKS
from support.task_files import load, tsv, write

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


@pytest.mark.parametrize("name, below", [*((name, True) for name in GLUE), ("cola", False), ("mnli", False)])
def test_classic_glue(tmp_path, name, below):
    """In their folders below glue_data, or in a folder of any name."""
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
