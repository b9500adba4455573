"""Scores against figures worked out by hand, and that the metrics need neither network nor disk."""

import math
import multiprocessing
import warnings

import evaluate
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.by_class import scores_by_class
from rdrop_trainer.glue.metrics import load_metric, with_metrics
from rdrop_trainer.glue.tasks import TASKS


def score(name, predictions, references):
    return load_metric(TASKS[name]).compute(predictions=predictions, references=references)


def test_accuracy():
    assert score("rte", [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 0.75}


def test_accuracy_and_f1():
    # 2 true positives, 1 false positive, 1 false negative: precision = recall = f1 = 2/3.
    scores = score("mrpc", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert scores == {"accuracy": pytest.approx(3 / 5), "f1": pytest.approx(2 / 3)}


def test_f1_without_positives_is_zero_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}


def test_matthews():
    # tp 2, tn 1, fp 1, fn 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2) = 1/6.
    assert score("cola", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == {"matthews_correlation": pytest.approx(1 / 6)}
    assert score("cola", [1, 1, 1], [1, 0, 1]) == {"matthews_correlation": 0.0}


def test_macro_f1_and_scores_by_class():
    predictions, references = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, -1]
    task = with_metrics(TASKS["mnli"], ["macro_f1"])
    # entailment: 1 right of 2 and of 2; neutral: 2 right of 2 and of 3; contradiction: predicted once, and wrong
    scores = load_metric(task).compute(predictions=predictions[:5], references=references[:5])
    assert scores == {"macro_f1": pytest.approx((0.5 + 0.8 + 0) / 3), "accuracy": 0.6} and task.headline == (
        "macro_f1",
    )
    found = scores_by_class(task.labels, predictions, references)
    assert found["scores"] == {
        "entailment": {"rows": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        "neutral": {"rows": 3, "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8)},
        "contradiction": {"rows": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0},
    }
    assert found["confusion"] == {
        "entailment": {"entailment": 1, "contradiction": 1},
        "neutral": {"entailment": 1, "neutral": 2},
    }


@pytest.mark.parametrize(
    "name, metric, message",
    [
        ("mnli", "f1", "--metric f1: is of two labels, and mnli has 3"),
        ("stsb", "accuracy", r"not a score of stsb \(a regression\); expected pearson, spearmanr"),
        ("cluener", "accuracy", "not a score of cluener; expected f1, macro_f1, precision, recall"),
        ("ax", "accuracy", "not a score of ax; expected none, as it has no labels"),
    ],
)
def test_metrics_that_a_task_does_not_have(name, metric, message):
    with pytest.raises(InputError, match=message):
        with_metrics(TASKS[name], [metric])


def test_correlations():
    # x = 1, 2, 3, 4 against y = 1, 2, 4, 3: both 1 - 6 * 2 / (4 * 15) = 0.8.
    assert score("stsb", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]) == {
        "pearson": pytest.approx(0.8),
        "spearmanr": pytest.approx(0.8),
    }
    # A monotonous curve: ranks agree, values do not; x = 0, 1, 2, y = 0, 1, 8 gives 8 / sqrt(2 * 38).
    assert score("stsb", [0.0, 1.0, 2.0], [0.0, 1.0, 8.0]) == {
        "pearson": pytest.approx(8 / math.sqrt(76)),
        "spearmanr": pytest.approx(1.0),
    }


@pytest.mark.parametrize("predictions, references", [([2.5, 2.5, 2.5], [1.0, 2.0, 3.0]), ([1.0], [2.0])])
def test_undefined_correlation_is_nan_and_silent(predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score("stsb", predictions, references)
    assert set(scores) == {"pearson", "spearmanr"} and all(math.isnan(value) for value in scores.values())


def test_entity_f1():
    references = [["B-name", "I-name", "O", "B-book"], ["B-name", "O", "B-game", "I-game"], []]
    predictions = [["B-name", "I-name", "O", "B-book"], ["O", "O", "B-game", "O"], []]
    scores = score("cluener", predictions, references)
    # 4 entities, 3 predicted, 2 right (the game ends too early); per type: name 2/3, book 1, game 0.
    assert scores == {
        "f1": pytest.approx(4 / 7),
        "macro_f1": pytest.approx((2 / 3 + 1 + 0) / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(1 / 2),
        "f1_name": pytest.approx(2 / 3),
        "f1_book": 1.0,
        "f1_game": 0.0,
    }


def test_entity_f1_does_not_join_rows():
    scores = score("cluener", [["B-name"], ["I-name"]], [["B-name"], ["O"]])
    assert scores["precision"] == 0.5 and scores["recall"] == 1.0


def test_entity_f1_without_entities():
    assert score("cluener", [["O", "O"]], [["O", "O"]]) == {"f1": 0.0, "macro_f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_choices_are_scored_by_their_places():
    assert score("c3", [0, 3, 1], [0, 3, 2]) == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    "prediction, answers, exact, f1",
    [
        ("李白", ["李白"], 1, 1),
        ("“李白”。", ["李白"], 1, 1),  # marks of the official list do not count
        ("(李白)", ["李白"], 0, 2 * 2 / (4 + 2)),  # others do
        ("NBA联赛", ["nba联赛"], 1, 1),
        ("NBA联赛", ["NBA"], 0, 2 * 1 / (3 + 1)),  # a word is one unit, like a character
        ("1962年5月", ["1962年"], 0, 2 * 2 / (4 + 2)),
        ("78.1%", ["78.2%"], 0, 2 * 1 / (2 + 2)),
        ("2008-2009", ["20082009"], 1, 1),
        ("中国北京人", ["中国人"], 0, 2 * 2 / (5 + 3)),  # one run in common, not all common characters
        ("甲", ["乙"], 0, 0),
        ("", ["乙"], 0, 0),
        ("太白", ["李白", "太白"], 1, 1),
        ("李太白", ["李白", "太白"], 0, 2 * 2 / (3 + 2)),
    ],
)
def test_answers(prediction, answers, exact, f1):
    assert score("cmrc2018", [prediction], [answers]) == {"exact_match": exact, "f1": pytest.approx(f1)}
    halved = score("drcd", [prediction, "x"], [answers, ["y"]])
    assert halved == {"exact_match": exact / 2, "f1": pytest.approx(f1 / 2)}


def test_long_answers():
    """One character many times over is no less in common."""
    assert score("cmrc2018", ["甲" * 250], [["乙" + "甲" * 250]])["f1"] == pytest.approx(500 / 501)


def test_is_an_evaluate_metric_and_can_be_filled_in_batches():
    metric = load_metric(TASKS["qqp"])
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[1, 0], references=[1, 0])
    metric.add_batch(predictions=[0, 0], references=[1, 0])
    assert metric.compute() == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    assert metric.compute(predictions=[1, 1], references=[1, 1]) == {"accuracy": 1.0, "f1": 1.0}


def test_metrics_side_by_side():
    first, second = load_metric(TASKS["rte"]), load_metric(TASKS["rte"])
    first.add_batch(predictions=[1], references=[1])
    second.add_batch(predictions=[1], references=[0])
    assert first.compute() == {"accuracy": 1.0} and second.compute() == {"accuracy": 0.0}


def _in_a_process(answer):
    return score("rte", [answer] * 50, [1] * 50)["accuracy"]


@pytest.mark.slow
def test_parallel_processes():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_in_a_process, [0, 1, 1, 0]) == [0.0, 1.0, 1.0, 0.0]


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "metrics"))
    score("rte", [0], [0])
    score("cluener", [["O"]], [["O"]])
    assert list(tmp_path.iterdir()) == []


def test_a_test_set_cannot_be_scored():
    with pytest.raises(InputError, match="ax has no labels"):
        load_metric(TASKS["ax"])


@pytest.mark.parametrize("name, package", [("rte", "sklearn"), ("stsb", "scipy"), ("cluener", "seqeval")])
def test_missing_extra(monkeypatch, name, package):
    def no_extra(module):
        raise ImportError(module)

    monkeypatch.setattr("importlib.import_module", no_extra)
    with pytest.raises(InputError) as error:
        load_metric(TASKS[name])
    assert package in str(error.value) and 'pip install "rdrop-trainer[glue]"' in str(error.value)
