"""The numbers of a report, against plain arithmetic."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from rdrop_trainer.report import report_folder, write_report
from rdrop_trainer.report.calibration import reliability_of
from rdrop_trainer.report.quantities import lower_is_better
from support.reports import BASELINE, HIGHER, arms, run, stability


def test_the_numbers_by_plain_arithmetic(runs):
    report_folder(runs)
    found = json.loads((runs / "report.json").read_text())
    assert found["seeds"] == [1, 2, 3, 4, 5] and found["alpha"] == 4
    accuracy = found["quantities"]["accuracy"]
    for arm, values in (("baseline", BASELINE), ("rdrop", HIGHER)):
        percent = [100 * value for value in values]
        assert accuracy[arm]["values"] == pytest.approx(percent)
        assert accuracy[arm]["mean"] == pytest.approx(statistics.mean(percent))
        assert accuracy[arm]["std"] == pytest.approx(statistics.stdev(percent))
        assert (accuracy[arm]["best"], accuracy[arm]["worst"]) == pytest.approx((max(percent), min(percent)))
    gains = [100 * (b - a) for a, b in zip(BASELINE, HIGHER, strict=True)]
    assert accuracy["difference"]["mean"] == pytest.approx(statistics.mean(gains))
    spread = statistics.stdev(HIGHER) / statistics.stdev(BASELINE)
    assert accuracy["spread_ratio"]["ratio"] == pytest.approx(spread)
    loss = found["quantities"]["loss"]
    assert loss["higher_is_better"] is False and loss["baseline"]["mean"] == pytest.approx(0.4)
    assert found["quantities"]["edits_by_kind_slip_flip_rate"]["rdrop"]["mean"] == pytest.approx(16)
    assert found["quantities"]["train_seconds"]["difference"]["mean"] == pytest.approx(70)
    assert found["quantities"]["peak_memory"]["baseline"]["mean"] == pytest.approx(1024)
    assert "runtime" not in found["quantities"] and "train_loss" not in found["quantities"]


def test_which_way_scores_are_better():
    names = ("perplexity", "eval_loss", "f1", "eval_f1_loss")  # the last: of entities of the type "loss"
    assert [lower_is_better(name) for name in names] == [True, True, False, False]


def test_the_best_of_what_should_be_low_is_the_lowest(tmp_path):
    first, second = arms([0.8, 0.8], [0.8, 0.8])
    first = [run(seed, 0.0, stability=stability(flips)) for seed, flips in ((1, 0.03), (2, 0.07))]
    flips = next(q for q in write_report(first, second, tmp_path).quantities if q.key == "dropout_flip_rate")
    assert flips.describe("baseline") == pytest.approx({"mean": 5, "std": math.sqrt(8), "best": 3, "worst": 7})


def test_how_much_was_measured_is_said(tmp_path):
    def measured(low, high, rows=100):
        edits = {"flip_rate": 0.1, "flip_interval": [0.05, 0.2], "divergence": 0.1, "edited": 150, "unseen": 50}
        dropout = {"num_samples": 2, "flip_rate": 0.05, "flip_interval": [low, high], "divergence": 0.1}
        return {"rows": rows, "of_rows": 300, "dropout": dropout, "edits": {**edits, "by_kind": {}}}

    first = [run(seed, 0.0, stability=measured(0.02 * seed, 0.2)) for seed in (1, 2)]
    second = [run(seed, 4.0, stability=measured(0.01, 0.1)) for seed in (1, 2)]
    said = write_report(first, second, tmp_path).markdown()
    assert "Measured on 100 of 300 evaluation rows, each predicted 2 times under dropout, the same in every run" in said
    assert "the share flipped by dropout would lie within: baseline 3.0 to 20.0 %, R-Drop 1.0 to 10.0 %." in said
    assert "the share flipped by small edits would lie within: baseline 5.0 to 20.0 %, R-Drop 5.0 to 20.0 %." in said
    assert "50 of 200 edits leave the model's input ids as they were" in said
    lost = [run(1, 4.0), run(2, 4.0, stability=measured(0.01, 0.1))]  # of the first seed nothing was measured
    said_of_one = write_report(first, lost, tmp_path).markdown()
    assert "by dropout would lie within: baseline 4.0 to 20.0 %, R-Drop 1.0 to 10.0 %." in said_of_one
    second[0] = run(1, 4.0, stability=measured(0.01, 0.1, rows=200))
    assert "Measured on 100 to 200 of 300" in write_report(first, second, tmp_path).markdown()
    every = [[run(seed, alpha, stability=measured(0.01, 0.1, rows=300)) for seed in (1, 2)] for alpha in (0.0, 4.0)]
    said = write_report(*every, tmp_path).markdown()
    assert "Measured on all 300 evaluation rows, each predicted 2 times under dropout." in said


def test_models_of_two_seeds_that_disagree_are_counted(tmp_path):
    def with_logits(seed, alpha, labels):
        return run(seed, alpha, logits=np.eye(2)[labels] * 3, labels=np.zeros(4))

    first = [with_logits(1, 0.0, [0, 0, 0, 0]), with_logits(2, 0.0, [0, 0, 1, 1]), with_logits(3, 0.0, [1, 0, 1, 0])]
    second = [with_logits(seed, 4.0, [0, 1, 0, 1]) for seed in (1, 2, 3)]
    report = write_report(first, second, tmp_path)
    assert report.churn == {"baseline": pytest.approx((0.5 + 0.5 + 0.5) / 3), "rdrop": 0.0}
    assert "baseline 50.00 %, R-Drop 0.00 %" in report.markdown()


def test_neither_end_of_the_confidence_is_the_best(tmp_path):
    found = {q.key: q for q in write_report(*arms([0.8, 0.7], [0.9, 0.8]), tmp_path).quantities}
    ends = [[found[key].describe("rdrop")[end] for end in ("best", "worst")] for key in ("accuracy", "mean_confidence")]
    assert ends == [[90.0, 80.0], [None, None]]
    assert (
        "| mean confidence (%) | 90.00 ± 0.00 | 90.00 ± 0.00 | - / - | - / - |" in (tmp_path / "report.md").read_text()
    )


@pytest.mark.parametrize("name, unit", [("pearson", ""), ("accuracy", "nats")])
def test_the_squared_errors_of_a_regression_are_not_in_nats(name, unit, tmp_path):
    """Also where nothing was measured that says that it is one."""
    report = write_report(*arms([0.8, 0.7], [0.9, 0.8], name=name, stability=None), tmp_path)
    assert next(q for q in report.quantities if q.key == "loss").unit == unit


def test_logits_of_a_model_that_broke_down_are_not_counted(tmp_path):
    def with_logits(seed, alpha, value):
        logits = np.where(np.arange(30)[:, None] == 7, value, np.eye(2)[np.arange(30) % 2])
        return run(seed, alpha, logits=logits, labels=np.arange(30) % 2)

    first = [with_logits(1, 0.0, 0.5), with_logits(2, 0.0, math.nan)]
    report = write_report(first, [with_logits(1, 4.0, 0.5), with_logits(2, 4.0, 0.5)], tmp_path)
    assert report.churn == {} and len(report.quantities[0].baseline) == 2
    assert reliability_of(first) is None and reliability_of(first[:1]).rows.sum() == 30


def test_scores_that_are_no_shares_keep_their_unit(tmp_path):
    report = write_report(*arms([27.1, 28.0, 27.5], [28.2, 28.9, 28.1], name="bleu"), tmp_path)
    bleu = report.quantities[0]
    assert (bleu.unit, bleu.baseline) == ("", (27.1, 28.0, 27.5))
    assert "points" not in report.sentences[0]
    low = write_report(*arms([0.4, 0.5], [0.5, 0.7], name="bleu"), tmp_path).quantities[0]
    assert (low.unit, low.baseline) == ("", (0.4, 0.5)), "however bad the model"


def test_scores_that_are_not_defined_are_left_out(tmp_path):
    report = write_report(*arms([0.3, math.nan, 0.4], [0.5, 0.6, None]), tmp_path)
    assert report.quantities[0].difference.n == 1
    assert json.loads((tmp_path / "report.json").read_text())["quantities"]["accuracy"]["baseline"]["values"][1] is None


@pytest.mark.parametrize("arm", [0, 1])
def test_a_seed_that_is_not_defined_is_left_out_of_both_arms_and_said(tmp_path, arm):
    scores = [[0.30, 0.31, 0.29, 0.9], [0.40, 0.42, 0.41, 0.1]]
    scores[arm][3] = math.nan if arm else math.inf
    report = write_report(*arms(*scores), tmp_path)
    assert "11.00 points higher than without (30.00 % to 41.00 %" in report.sentences[0]
    lost = ("baseline: 1, R-Drop: 0", "baseline: 0, R-Drop: 1")[arm]
    assert report.sentences[1].startswith("1 seed is left out, because the accuracy is not defined there")
    assert lost in report.sentences[1]
    accuracy = report.quantities[0]
    assert accuracy.spread.ratio == pytest.approx(1) and accuracy.describe("rdrop")["std"] == pytest.approx(1)


def test_a_loss_that_is_not_defined_is_missed(tmp_path):
    first, second = arms([0.80, 0.81, 0.82], [0.81, 0.80, 0.82])
    losses = {1: 0.40, 2: 0.41, 3: math.inf}  # of a run that broke down
    second = [replace(run, scores={**run.scores, "loss": losses[run.seed]}) for run in second]
    [said] = [
        s for s in write_report(first, second, tmp_path).sentences if s.startswith("The evaluation loss is lower")
    ]
    assert "1 seed is left out, because the evaluation loss is not defined there (baseline: 0, R-Drop: 1 runs)" in said


def test_a_score_that_no_seed_has_is_missed(tmp_path):
    report = write_report(*arms([None, None], [0.5, 0.6]), tmp_path)
    assert report.sentences[0] == "The accuracy is not defined in both runs of any seed."
    assert "evaluation loss" in report.sentences[1]


@pytest.mark.parametrize(
    "name, values, unit",
    [
        ("wer", (0.3, 0.2), "%"),
        ("mse", (0.3, 0.2), ""),
        ("dev_perplexity", (30, 20), ""),
        ("error_rate", (0.3, 0.2), ""),
        ("ece", (0.3, 0.2), "%"),
        ("nll", (0.3, 0.2), ""),
        ("edit_distance", (0.3, 0.2), ""),
    ],
)
def test_scores_that_should_be_low(tmp_path, name, values, unit):
    high, low = values
    first, second = [high, 1.01 * high, 0.99 * high], [low, 1.01 * low, 0.98 * low]
    report = write_report(*arms(first, second, name=name), tmp_path)
    assert (
        report.sentences[0].startswith("With equal epochs R-Drop (alpha 4) was better")
        and "lower than without" in report.sentences[0]
    )
    assert (report.quantities[0].unit, report.quantities[0].describe("rdrop")["best"]) == (
        unit,
        pytest.approx(0.98 * low * (100 if unit else 1)),
    )
    assert write_report(*arms(second, first, name=name), tmp_path).sentences[0].startswith("R-Drop (alpha 4) did harm")


def test_types_of_entities_may_be_called_error(tmp_path):
    report = write_report(*arms([0.2, 0.21, 0.19], [0.3, 0.31, 0.29], name="f1_error"), tmp_path)
    assert report.quantities[0].higher_is_better and report.quantities[0].unit == "%"


def test_the_tables_are_tables(runs):
    report = report_folder(runs)
    tables = [line for line in report.markdown().splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in tables if "dropout" in line or "accuracy (%) |" in line}
    assert len(tables) > 15 and 11 in widths
    assert (runs / "report.md").read_text(encoding="utf-8") == report.markdown()
    assert all(len(line) <= 100 or "runs" in line for line in report.summary().splitlines())
