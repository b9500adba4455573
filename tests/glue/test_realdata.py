"""The public files themselves: rows and labels per split, against counts taken from the files by other means."""

import os
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rdrop_trainer.glue.choice import make_choice_features
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.passages import BLANK
from rdrop_trainer.glue.tasks import TASKS
from rdrop_trainer.script.scratch import make_bert

pytestmark = pytest.mark.realdata

ROWS = {
    "cola": {"train": 8551, "validation": 1043, "test": 1063},
    "mrpc": {"train": 3668, "validation": 408, "test": 1725},
    "qnli": {"validation": 5463, "test": 5463},
    "sst2": {"train": 67349, "validation": 872, "test": 1821},
    "wnli": {"train": 635, "validation": 71, "test": 146},
    "tnews": {"train": 1185, "validation": 1098, "test": 1500, "test_public": 2010, "unlabeled": 20000},
    "bustm": {"train": 160, "validation": 160, "test": 2000, "test_public": 1772, "unlabeled": 4251},
    "cluewsc2020": {"train": 160, "validation": 159, "test": 290, "test_public": 976},
    "csldcp": {"train": 2036, "validation": 2068, "test": 2999, "test_public": 1784},
    "eprstmt": {"train": 160, "validation": 160, "test": 753, "test_public": 610, "unlabeled": 19565},
    "cluener": {"train": 10748, "validation": 1343, "test": 1345},
    "chid": {"train": 202, "validation": 202, "test": 2000, "test_public": 2002},
}

# Counts in the order of the label ids.
LABELS = {
    ("cola", "train"): [2528, 6023],
    ("cola", "validation"): [322, 721],
    ("mrpc", "train"): [1194, 2474],
    ("mrpc", "validation"): [129, 279],
    ("qnli", "validation"): [2702, 2761],
    ("sst2", "train"): [29780, 37569],
    ("sst2", "validation"): [428, 444],
    ("wnli", "train"): [323, 312],
    ("wnli", "validation"): [40, 31],
    ("tnews", "train"): [79, 80, 80, 80, 79, 80, 80, 80, 79, 79, 80, 79, 72, 78, 80],
    ("tnews", "validation"): [65, 79, 79, 76, 75, 73, 75, 76, 78, 77, 76, 75, 41, 79, 74],
    ("tnews", "test_public"): [134] * 15,
    ("bustm", "train"): [90, 70],
    ("bustm", "validation"): [82, 78],
    ("bustm", "test_public"): [886, 886],
    ("cluewsc2020", "train"): [82, 78],
    ("cluewsc2020", "validation"): [80, 79],
    ("cluewsc2020", "test_public"): [488, 488],
    ("eprstmt", "train"): [76, 84],
    ("eprstmt", "validation"): [86, 74],
    ("eprstmt", "test_public"): [305, 305],
    ("chid", "train"): [29, 30, 26, 29, 30, 30, 28],
    ("chid", "validation"): [26, 30, 29, 28, 30, 29, 30],
    ("chid", "test_public"): [286] * 7,
}

# One training row has overlapping entities: two short companies inside longer entities give way.
ENTITIES = {
    "train": [2891, 1139, 2980 - 2, 2376, 1835, 1123, 3755, 3210, 3141, 1521],
    "validation": [373, 154, 378, 295, 247, 151, 465, 367, 433, 209],
}


@pytest.fixture(scope="module")
def load():
    folder = Path(os.environ.get("RDROP_DATA_DIR", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("RDROP_DATA_DIR names no folder")
    loaded = {}

    def load(name):
        task = TASKS[name]
        if name not in loaded:
            loaded[name] = load_task(task, data_dir=folder / ("glue" if task.suite == "glue" else "clue"))
        return loaded[name]

    return load


@pytest.mark.parametrize("name", ROWS)
def test_rows(load, name):
    assert {split: len(data) for split, data in load(name).items()} == ROWS[name]


@pytest.mark.parametrize("name, split", LABELS)
def test_label_counts(load, name, split):
    counts = Counter(load(name)[split]["label"])
    assert [counts[label] for label in range(len(LABELS[name, split]))] == LABELS[name, split]
    assert sum(counts.values()) == sum(LABELS[name, split])


@pytest.mark.parametrize("name", ROWS)
def test_unlabeled_splits(load, name):
    splits = load(name)
    if name == "cluener":
        assert set(map(len, splits["test"]["labels"])) == {0}
        return
    assert set(splits["test"]["label"]) == {-1}
    assert set(splits["unlabeled"]["label"]) == {-100} if "unlabeled" in splits else True


def test_csldcp_classes(load):
    splits = load("csldcp")
    counts = {split: Counter(splits[split]["label"]) for split in ("train", "validation", "test_public")}
    assert {split: (len(c), min(c.values()), max(c.values())) for split, c in counts.items()} == {
        "train": (67, 9, 37),
        "validation": (67, 13, 38),
        "test_public": (66, 1, 30),
    }
    missing = set(range(67)) - set(counts["test_public"])
    assert [TASKS["csldcp"].labels[label] for label in missing] == ["植物保护"]


@pytest.mark.parametrize("split", ENTITIES)
def test_entity_counts(load, split):
    counts = Counter(tag for tags in load("cluener")[split]["labels"] for tag in tags)
    assert [counts[tag] for tag in range(1, 21, 2)] == ENTITIES[split]


def test_texts_keep_their_length(load):
    """Longest texts per field in characters: a misread quotation mark or line end would change them."""
    longest = {
        ("cola", "train", "sentence"): 231,
        ("mrpc", "train", "sentence1"): 226,
        ("mrpc", "train", "sentence2"): 215,
        ("qnli", "test", "sentence"): 1412,
        ("sst2", "train", "sentence"): 268,
        ("wnli", "train", "sentence2"): 186,
        ("tnews", "unlabeled", "sentence"): 145,
        ("csldcp", "test_public", "content"): 1199,
        ("cluener", "train", "tokens"): 50,
        ("cluewsc2020", "train", "text"): 147 + 4,  # the four marks
    }
    assert {key: max(map(len, load(key[0])[key[1]][key[2]])) for key in longest} == longest


def test_every_idiom_stands_in_its_place_of_a_cut_passage(load, tmp_path):
    rows = load("chid")["train"]
    texts = [text for row in rows for text in (row["context"], *row["choices"])]
    make_bert(tmp_path, texts, hidden_size=8, layers=1, heads=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for row, inputs in zip(rows, make_choice_features(rows, tokenizer, 64)["input_ids"], strict=True):
        before, after = row["context"].split(BLANK)
        for choice, tokens in zip(row["choices"], inputs, strict=True):
            first = tokenizer.decode(tokens).split("[SEP]")[0].replace("##", "").replace(" ", "")
            near = (before[-1:] + choice + after[:1]).replace(" ", "")
            assert near.lower() in first and len(tokens) <= 64
