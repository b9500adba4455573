"""What a task is: names, label order, and looking tasks up. The expectations are written out, not computed."""

import pickle

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.tasks import TASKS, get_task

NAMES = (
    "cola sst2 mrpc qqp stsb mnli qnli rte wnli ax afqmc tnews iflytek cmnli ocnli cluewsc2020 csl cluener "
    "c3 chid cmrc2018 drcd csl_title eprstmt bustm csldcp"
).split()

LABELS = {
    "cola": "unacceptable acceptable",
    "sst2": "negative positive",
    "mrpc": "not_equivalent equivalent",
    "qqp": "not_duplicate duplicate",
    "mnli": "entailment neutral contradiction",
    "ax": "entailment neutral contradiction",
    "qnli": "entailment not_entailment",
    "rte": "entailment not_entailment",
    "wnli": "not_entailment entailment",
    "afqmc": "0 1",
    "cmnli": "neutral entailment contradiction",
    "ocnli": "neutral entailment contradiction",
    "cluewsc2020": "true false",
    "csl": "0 1",
    "eprstmt": "Negative Positive",
    "bustm": "0 1",
}


def test_all_tasks_are_there():
    assert list(TASKS) == NAMES
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", LABELS)
def test_labels_in_id_order(name):
    assert " ".join(TASKS[name].labels) == LABELS[name]


def test_many_labels():
    tnews = TASKS["tnews"]
    assert len(tnews.labels) == 15
    assert (tnews.labels[0], tnews.labels[4], tnews.labels[14]) == ("news_story", "news_finance", "news_game")
    assert tnews.raw_labels[4:6] == ("104", "106")
    assert tnews.label_aliases["106"] == "news_house"
    assert TASKS["iflytek"].labels == tuple(str(number) for number in range(119))
    csldcp = TASKS["csldcp"].labels
    assert len(set(csldcp)) == 67 and list(csldcp) == sorted(csldcp) and "图书馆、情报与档案管理" in csldcp
    cluener = TASKS["cluener"]
    assert cluener.head == "tokens" and len(cluener.labels) == 21
    assert cluener.labels[:4] == ("O", "B-address", "I-address", "B-book") and cluener.labels[-1] == "I-scene"


def test_regression_and_unscored():
    assert TASKS["stsb"].is_regression and TASKS["stsb"].metrics == ("pearson", "spearmanr")
    assert [name for name in NAMES if TASKS[name].is_regression] == ["stsb"]
    assert [name for name in NAMES if not TASKS[name].metrics] == ["ax"]


def test_passages():
    assert {name: TASKS[name].head for name in NAMES if TASKS[name].reads_passages} == {
        "c3": "choice",
        "chid": "choice",
        "cmrc2018": "question",
        "drcd": "question",
    }
    assert TASKS["cmrc2018"].headline == ("exact_match", "f1") and TASKS["c3"].headline == ("accuracy",)
    assert [name for name in NAMES if TASKS[name].max_length != 128] == ["c3", "cmrc2018", "drcd", "csl_title"]


def test_scores_and_hub():
    assert TASKS["cola"].headline == ("matthews_correlation",)
    assert TASKS["mrpc"].headline[0] == "f1" and TASKS["qqp"].headline[0] == "accuracy"
    assert TASKS["cluener"].headline[0] == "macro_f1"
    assert all(set(task.headline) <= set(task.metrics) for task in TASKS.values())
    assert TASKS["rte"].hub == ("nyu-mll/glue", "rte") and TASKS["tnews"].hub == ("clue/clue", "tnews")
    assert [name for name in NAMES if TASKS[name].hub is None] == ["cluener", "csl_title", "eprstmt", "bustm", "csldcp"]


def test_splits():
    assert TASKS["mnli"].split("validation") == "validation_matched"
    assert TASKS["mnli"].split("test") == "test_matched"
    assert TASKS["rte"].split("train") == "train"
    assert TASKS["ax"].split("train") is None and list(TASKS["ax"].files) == ["test"]


def test_tasks_are_plain_values():
    task = TASKS["mnli"]
    assert pickle.loads(pickle.dumps(task)) == task and hash(task) == hash(TASKS["mnli"])


@pytest.mark.parametrize(
    "spelling, name",
    [("RTE", "rte"), ("SST-2", "sst2"), ("sts-b", "stsb"), (" MNLI ", "mnli"), ("CLUEWSC", "cluewsc2020")],
)
def test_get_task(spelling, name):
    assert get_task(spelling) is TASKS[name]


def test_unknown_task():
    with pytest.raises(InputError) as error:
        get_task("mrcp")
    assert "did you mean mrpc" in str(error.value) and "cluewsc2020" in str(error.value)
    with pytest.raises(InputError, match="unknown task 'xyzzy'"):
        get_task("xyzzy")
