"""The leaderboard files, byte for byte."""

import json
import os

import numpy as np
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.submission import write_submission
from rdrop_trainer.glue.task import Task
from rdrop_trainer.glue.tasks import TASKS

GLUE = [
    ("cola", "test", [0, 1], "CoLA.tsv", ["0", "1"], 1063),
    ("sst2", "test", [1, 0], "SST-2.tsv", ["1", "0"], 1821),
    ("mrpc", "test", [1, 0], "MRPC.tsv", ["1", "0"], 1725),
    ("stsb", "test", [3.14159, -0.2], "STS-B.tsv", ["3.142", "0.000"], 1379),
    ("stsb", "test", [7.5, -0.0], "STS-B.tsv", ["5.000", "0.000"], 1379),
    ("qqp", "test", [0, 1], "QQP.tsv", ["0", "1"], 390965),
    ("mnli", "test_matched", [0, 2], "MNLI-m.tsv", ["entailment", "contradiction"], 9796),
    ("mnli", "test_mismatched", [1, 0], "MNLI-mm.tsv", ["neutral", "entailment"], 9847),
    ("qnli", "test", [0, 1], "QNLI.tsv", ["entailment", "not_entailment"], 5463),
    ("rte", "test", [1, 0], "RTE.tsv", ["not_entailment", "entailment"], 3000),
    ("wnli", "test", [1, 0], "WNLI.tsv", ["1", "0"], 146),
    ("ax", "test", [2, 1], "AX.tsv", ["contradiction", "neutral"], 1104),
]

CLUE = [
    ("afqmc", [1], "afqmc_predict.json", "1", 3861),
    ("tnews", [4], "tnews11_predict.json", "104", 10000),
    ("tnews", [5], "tnews11_predict.json", "106", 10000),
    ("iflytek", [30], "iflytek_predict.json", "30", 2600),
    ("cmnli", [0], "cmnli_predict.json", "neutral", 13880),
    ("ocnli", [1], "ocnli_50k_predict.json", "entailment", 3000),
    ("cluewsc2020", [0], "cluewsc11_predict.json", "true", 2574),
    ("csl", [1], "csl_predict.json", "1", 3000),
    ("eprstmt", [1], "eprstmt_predict.json", "Positive", 753),
    ("bustm", [0], "bustm_predict.json", "0", 2000),
    ("csldcp", [0], "csldcp_predict.json", "中医学/中药学", 2999),
]


@pytest.mark.parametrize("name, split, predictions, file, answers, rows", GLUE)
def test_glue(tmp_path, name, split, predictions, file, answers, rows):
    done = write_submission(TASKS[name], split, [17, 4], predictions, tmp_path / "new")
    assert done.path == tmp_path / "new" / file
    assert done.path.read_bytes() == f"index\tprediction\n0\t{answers[0]}\n1\t{answers[1]}\n".encode()
    assert (done.rows, done.expected_rows, done.complete) == (2, rows, False)
    assert os.listdir(tmp_path / "new") == [file]


@pytest.mark.parametrize("name, predictions, file, answer, rows", CLUE)
def test_clue(tmp_path, name, predictions, file, answer, rows):
    done = write_submission(TASKS[name], "test", np.array([41]), np.array(predictions), tmp_path)
    assert done.path.read_bytes() == f'{{"id": 41, "label": "{answer}"}}\n'.encode()
    assert (done.path.name, done.expected_rows, done.complete) == (file, rows, False)


def test_text_ids_stay_text(tmp_path):
    done = write_submission(TASKS["tnews"], "test", ["0", "1"], [0, 14], tmp_path)
    assert done.path.read_text() == '{"id": "0", "label": "100"}\n{"id": "1", "label": "116"}\n'


@pytest.mark.parametrize(
    "name, ids, predictions, file, content, rows",
    [
        ("c3", [0, 1], [2, 0], "c311_predict.json", '{"id": 0, "label": 2}\n{"id": 1, "label": 0}\n', 1625),
        (
            "chid",
            ["#idiom1#", "#idiom2#"],
            [3, 9],
            "chid11_predict.json",
            '{\n"#idiom1#": 3,\n"#idiom2#": 9\n}\n',
            None,
        ),
        ("chid", [7, 9], [6, 0], "chidf_predict.json", '{"id": 7, "answer": 6}\n{"id": 9, "answer": 0}\n', 2000),
        ("cmrc2018", ["Q_0"], ["李白"], "cmrc2018_predict.json", '{\n"Q_0": "李白"\n}\n', 2000),
        ("drcd", ["1-1"], ["x"], "drcd_predict.json", '{\n"1-1": "x"\n}\n', 3493),
    ],
)
def test_passages(tmp_path, name, ids, predictions, file, content, rows):
    done = write_submission(TASKS[name], "test", ids, predictions, tmp_path)
    assert (done.path.name, done.path.read_text("utf-8"), done.expected_rows) == (file, content, rows)
    assert done.complete == (rows is None)


@pytest.mark.parametrize(
    "name, rows, file",
    [
        ("wnli", 146, "WNLI.tsv"),
        ("tnews", 10000, "tnews11_predict.json"),
        ("tnews", 1500, "tnewsf_predict.json"),
        ("cluewsc2020", 2574, "cluewsc11_predict.json"),
        ("cluewsc2020", 290, "cluewscf_predict.json"),
        ("iflytek", 2279, "iflytekf_predict.json"),
        ("c3", 1625, "c311_predict.json"),
        ("c3", 3892, "c310_predict.json"),
        ("chid", 2000, "chidf_predict.json"),
    ],
)
def test_complete(tmp_path, name, rows, file):
    done = write_submission(TASKS[name], "test", range(rows), [0] * rows, tmp_path)
    assert done.complete and done.expected_rows == done.rows == rows and done.path.name == file


def test_cluener(tmp_path):
    tags = [["B-name", "I-name", "B-scene", "O", "O", "B-name", "I-name"], ["O"]]
    done = write_submission(TASKS["cluener"], "test", [0, 1], tags, tmp_path, tokens=[list("小明山和小小明"), ["无"]])
    rows = [json.loads(line) for line in done.path.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"id": 0, "label": {"name": {"小明": [[0, 1], [5, 6]]}, "scene": {"山": [[2, 2]]}}},
        {"id": 1, "label": {}},
    ]
    assert done.path.name == "cluener_predict.json" and done.expected_rows == 1345


def test_splits_without_a_leaderboard(tmp_path):
    done = write_submission(TASKS["bustm"], "test_public", [3], [1], tmp_path)
    assert (done.path.name, done.expected_rows, done.complete) == ("bustm_test_public_predict.json", None, True)
    custom = Task("custom", "custom", ("text",), ("cat", "dog"))
    done = write_submission(custom, "test", ["a"], [1], tmp_path)
    assert done.path.name == "custom_test_predict.tsv" and done.path.read_text() == "index\tprediction\n0\tdog\n"
    number = Task("custom", "custom", ("text",), None)
    assert write_submission(number, "test", [0], [-7.25], tmp_path).path.read_text().endswith("0\t-7.25\n")


@pytest.mark.parametrize(
    "name, ids, predictions, tokens, message",
    [
        ("rte", [0, 1], [0], None, "2 ids, 1 predictions"),
        ("rte", [0, 1], [0, 2], None, "row 1 is 2, expected 0 to 1"),
        ("rte", [0], [-1], None, "row 0 is -1"),
        ("stsb", [0], [float("nan")], None, "row 0 is nan"),
        ("cluener", [0], [[]], None, "0 rows of tokens"),
        ("cmrc2018", ["a", "b", "a"], ["x", "y", "z"], None, "1 ids occur twice"),
        ("cluener", [0], [["O", "O"]], ["abc"], "row 0 has the tags 'O', 'O', expected 3 of"),
        ("cluener", [0], [["O", "O", "B-animal"]], ["abc"], "row 0 has the tags"),
    ],
)
def test_wrong_predictions(tmp_path, name, ids, predictions, tokens, message):
    with pytest.raises(InputError, match=message):
        write_submission(TASKS[name], "test", ids, predictions, tmp_path, tokens=tokens)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    done = write_submission(TASKS["rte"], "test", [0], [0], tmp_path)
    before = done.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="RTE.tsv: cannot be written: No space left"):
        write_submission(TASKS["rte"], "test", [0], [1], tmp_path)
    assert done.path.read_bytes() == before and os.listdir(tmp_path) == ["RTE.tsv"]


def test_directory_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_submission(TASKS["rte"], "test", [0], [0], tmp_path / "out")
