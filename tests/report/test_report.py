"""The report on a comparison: its numbers against plain arithmetic, its sentences, what it refuses, its pictures."""

import json
import math
import statistics
import struct
from dataclasses import replace

import numpy as np
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.report import FinishedRun, draw_curves, report_folder, write_report
from rdrop_trainer.report.__main__ import main
from rdrop_trainer.report.calibration import draw_reliability, reliability_of
from rdrop_trainer.report.over_time import draw_against_seconds, draw_learning_curves
from rdrop_trainer.report.quantities import EDIT_KINDS, lower_is_better
from rdrop_trainer.run_folder import name_of_data
from rdrop_trainer.stability.edits import EDITS

BASELINE = [0.802, 0.796, 0.811, 0.790, 0.805]
HIGHER = [0.815, 0.808, 0.826, 0.801, 0.819]
ROWS = 400


def stability(flips, divergence=0.05, edits=0.08):
    """As a run measures it; the keyboard slips flip twice as many as all edits."""
    slips = None if edits is None else 2 * edits
    kinds = {"slip": {"flip_rate": slips, "divergence": 0.1, "edited": ROWS}}
    return {
        "split": "validation",
        "rows": ROWS,
        "dropout": {"num_samples": 8, "flip_rate": flips, "divergence": divergence},
        "edits": {"flip_rate": edits, "divergence": 0.2, "edited": 2 * ROWS, "by_kind": kinds},
        "calibration": {"expected_calibration_error": 0.1, "mean_confidence": 0.9},
    }


def curve(high):
    steps = range(0, 100, 10)
    return [{"step": s, "probe_divergence": high * s / 100, "probe_loss": 0.7 - s / 200} for s in steps]


def run(seed, alpha, score=0.8, name="accuracy", **changes):
    facts = {
        "scores": {name: score, "loss": 0.5, "runtime": 3.0},
        "headline": [name],
        "log_history": [{"step": 5, "loss": 0.6}, *curve(0.1 if alpha else 0.4)],
        "stability": stability(0.02 if alpha else 0.05),
        "train_seconds": 170.0 if alpha else 100.0,
        "peak_memory": 300 * 2**20 if alpha else 200 * 2**20,
        "rows": {"train": 1000, "validation": ROWS},
    }
    return FinishedRun(seed, alpha, **{**facts, **changes})


def arms(baseline, rdrop, **changes):
    """Runs of the seeds 1, 2, ...; those of R-Drop in another order."""
    first = [run(seed, 0.0, score, **changes) for seed, score in enumerate(baseline, 1)]
    return first, [run(seed, 4.0, score, **changes) for seed, score in enumerate(rdrop, 1)][::-1]


def write_folder(folder, seed, alpha, score, **settings):
    """A run's folder as the script leaves it."""
    folder.mkdir(parents=True)
    found = {
        "task": "sst2",
        "headline": {"eval_accuracy": score},
        "metrics": {"eval_accuracy": score, "eval_loss": 0.4, "eval_runtime": 1.0, "train_loss": 0.3},
        "rows": {"train": 1000, "validation": ROWS},
        "settings": {"rdrop_alpha": alpha, "seed": seed, "output_dir": str(folder), "learning_rate": 2e-5, **settings},
        "given": [],
        "processes": 1,
        "seconds": {"train": 100.0 + 70 * (alpha > 0)},
        "peak_memory": {"bytes": 2**30, "of": "process"},
        "stability": stability(0.02 if alpha else 0.05),
    }
    (folder / "all_results.json").write_text(json.dumps(found))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": curve(0.1)}))


@pytest.fixture
def runs(tmp_path):
    for seed, (a, b) in enumerate(zip(BASELINE, HIGHER, strict=True), 1):
        write_folder(tmp_path / "runs" / f"plain{seed}", seed, 0.0, a)
        write_folder(tmp_path / "runs" / f"rdrop{seed}", seed, 4.0, b)
    return tmp_path / "runs"


@pytest.fixture
def written():
    """For tests of the files of the pictures."""


@pytest.fixture
def drawn(monkeypatch):
    """File name -> figure of the pictures, which are not written: that takes a second each."""
    figures = {}
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **_: figures.update({path.name: figure})
    )
    return figures


@pytest.fixture(autouse=True)
def matplotlib(request, monkeypatch):
    """Only the tests of the pictures draw them."""
    if not {"drawn", "written"} & set(request.fixturenames):
        monkeypatch.setattr("rdrop_trainer.report.pictures.find_spec", lambda name: None)


# ---- Numbers ----


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


# ---- Sentences ----


def sentences(tmp_path, baseline, rdrop, **changes):
    return write_report(*arms(baseline, rdrop, **changes), tmp_path).sentences


def test_a_gain_that_is_shown(tmp_path):
    first, *rest = sentences(tmp_path, BASELINE, HIGHER)
    assert first.startswith(
        "With equal epochs R-Drop (alpha 4) was better: over 5 seeds the accuracy was 1.30 points higher"
    )
    assert "(80.08 % to 81.38 %; 95 % bootstrap interval +1.18 to +1.42, paired t-test p < 0.001)" in first
    assert not any("reveal" in sentence for sentence in rest)
    assert rest[0].startswith("It took 1.70 times the time; whether training longer does the same was not asked")
    assert any("same 400 evaluation rows; with other rows each score would itself move by some 1.9" in s for s in rest)
    assert any(s.startswith("Dropout flips 2.00 % of its predictions, 5.00 % of the baseline's") for s in rest)
    assert rest[-1] == "Training took 1.70 times the time and 1.50 times the peak memory of the baseline."


def longer(scores):
    """Runs of plain fine-tuning for as long as R-Drop."""
    return {"plain_longer": [run(seed, 0.0, score, train_seconds=170.0) for seed, score in enumerate(scores, 1)]}


def test_r_drop_is_said_to_help_where_it_does_at_equal_seconds(tmp_path):
    report = write_report(*arms(BASELINE, HIGHER), tmp_path, others=longer([score + 0.002 for score in BASELINE]))
    assert report.sentences[0].startswith("With equal epochs R-Drop (alpha 4) was better")
    assert report.sentences[1].startswith(
        "R-Drop helped: with equal seconds too the accuracy was 1.10 points higher than that of plain fine-tuning"
    )
    gains = [b - a - 0.002 for a, b in zip(BASELINE, HIGHER, strict=True)]
    found = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert [(pair["arm"], pair["against"]) for pair in found] == [
        ("rdrop", "plain"), ("plain_longer", "plain"), ("rdrop", "plain_longer"),
    ]  # fmt: skip
    assert found[2]["quantities"]["accuracy"]["difference"]["mean"] == pytest.approx(100 * statistics.mean(gains))
    text = report.markdown()
    assert "| R-Drop - plain_longer | +1.10 (" in text and "| plain_longer | 80.28 ± 0.81 |" in text


def test_r_drop_is_not_said_to_help_where_training_longer_does_the_same(tmp_path):
    report = write_report(*arms(BASELINE, HIGHER), tmp_path, others=longer(HIGHER[::-1]))
    assert not any("helped" in sentence for sentence in report.sentences)
    assert report.sentences[1].startswith(
        "With equal seconds it is not shown that R-Drop helps: the accuracy was on average that of plain"
    )


def test_another_dropout_is_told_from_r_drop(tmp_path):
    first, second = arms(BASELINE, HIGHER, settings={"rdrop_dropout": None})
    same, *_ = arms(BASELINE, HIGHER, settings={"rdrop_dropout": None})
    second = [run(r.seed, 4.0, r.scores["accuracy"], settings={"rdrop_dropout": 0.3}) for r in second]
    said = write_report(first, second, tmp_path).sentences[1]
    assert said.startswith(
        "R-Drop trained with dropout 0.3, the baseline with the model's own dropout: which of the two"
    )
    assert "--arms plain rdrop dropout" in said
    own = [run(r.seed, 0.0, r.scores["accuracy"] + 0.01, settings={"rdrop_dropout": 0.3}) for r in same]
    report = write_report(first, second, tmp_path, others={"dropout": own})
    gain = 100 * (statistics.mean(HIGHER) - statistics.mean(BASELINE) - 0.01)
    assert f"beside a baseline with dropout 0.3 the difference in accuracy (%) is +{gain:.2f} (" in report.sentences[1]
    assert "| rdrop - dropout |" in report.markdown() or "| R-Drop - dropout |" in report.markdown()
    assert not any("dropout 0.3" in s for s in write_report(*arms(BASELINE, HIGHER), tmp_path).sentences)


def test_probabilities_have_sentences_of_their_own(tmp_path):
    changes = {"scores": {"accuracy": 0.8, "loss": 0.5}}
    first = [run(seed, 0.0, **{**changes, "scores": {"accuracy": 0.8, "loss": 0.8 + seed / 100}}) for seed in (1, 2, 3)]
    second = [run(seed, 4.0, **{**changes, "scores": {"accuracy": 0.8, "loss": 0.6 + seed / 99}}) for seed in (1, 2, 3)]
    said = write_report(first, second, tmp_path).sentences
    assert "The evaluation loss is lower: 0.82 nats to 0.62 nats (p < 0.001)." in said
    assert "The expected calibration error went from 10.00 % to 10.00 %: no difference is shown." in said


def test_seeds_that_only_one_arm_has_are_named(tmp_path):
    first, second = arms(BASELINE, HIGHER)
    summary = write_report(first, second[1:], tmp_path).summary()
    assert "Left out, because one of the two runs is missing: seed 5." in summary


def test_a_folder_of_several_arms_is_reported_by_their_names(runs, tmp_path):
    folder = tmp_path / "both"
    for seed, (a, b) in enumerate(zip(BASELINE, HIGHER, strict=True), 1):
        write_folder(folder / f"plain-seed{seed}", seed, 0.0, a)
        write_folder(folder / f"rdrop-seed{seed}", seed, 4.0, b)
        write_folder(folder / f"strong-seed{seed}", seed, 16.0, b - 0.02)
        write_folder(folder / f"plain_longer-seed{seed}", seed, 0.0, a, num_train_epochs=5.1)
    names = ["plain", "rdrop", "plain_longer", "strong"]
    (folder / "arms.json").write_text(json.dumps({"arms": names, "longer": 1.7}))
    report = report_folder(folder)
    pairs = [(versus.arm, versus.against) for versus in report.versus]
    assert ("strong", "plain") in pairs and ("strong", "plain_longer") in pairs and report.alpha == 4
    (folder / "arms.json").write_text("{}")
    with pytest.raises(InputError, match="arms.json: is damaged"):
        report_folder(folder)


def test_a_loss_that_is_shown(tmp_path):
    first = sentences(tmp_path, HIGHER, BASELINE)[0]
    assert first.startswith("R-Drop (alpha 4) did harm: over 5 seeds the accuracy was 1.30 points lower than without")


@pytest.mark.parametrize("turned, word", [(False, "higher"), (True, "lower")])
def test_what_chance_explains_is_not_called_a_gain(tmp_path, turned, word):
    scores = BASELINE, [0.812, 0.794, 0.826, 0.785, 0.810]
    first, second, *_ = sentences(tmp_path, *(scores[::-1] if turned else scores))
    assert first.startswith("It is not shown that R-Drop (alpha 4) helps: over 5 seeds the accuracy was 0.46 points")
    assert f"points {word} than without" in first and first.endswith("which chance between seeds can explain.")
    assert "So many seeds reveal a true difference of" in second and "for half a point it takes about" in second


def test_one_seed_says_nothing(tmp_path):
    first = sentences(tmp_path, [0.8], [0.9])[0]
    assert "With the one seed that was run" in first and "One seed says nothing about the next" in first
    assert "10.00 points higher" in first and "shown" not in first


def test_equal_scores(tmp_path):
    said = sentences(tmp_path, [0.8] * 3, [0.8] * 3)
    assert said[0] == "Over 3 seeds, R-Drop (alpha 4) and its baseline had the same accuracy in every pair (80.00 %)."
    said = sentences(tmp_path, [0.8] * 3, [0.75] * 3)
    assert "was 5.00 points lower in every pair (80.00 % to 75.00 %); differences that are all equal" in said[0]
    assert "was the same (80.00 % to 80.00 %)" in sentences(tmp_path, [0.8], [0.8])[0]
    # 1, -1 and 0 more of 872: their mean is 0 but for the last bits
    report = write_report(*arms([700 / 872, 710 / 872, 720 / 872], [701 / 872, 709 / 872, 720 / 872]), tmp_path)
    assert "the accuracy was the same on average (81.42 % to 81.42 %" in report.sentences[0]
    assert "e-" not in report.markdown()


def test_a_loss_of_smoothed_labels_is_called_so(tmp_path):
    smoothed = {"label_smoothing_factor": 0.1}
    both = [[replace(run, settings=smoothed) for run in runs] for runs in arms([0.8, 0.7], [0.8, 0.9])]
    said = "The evaluation loss is of smoothed labels, as the training's is (label_smoothing_factor: baseline 0.1, "
    assert f"{said}R-Drop 0.1)." in write_report(*both, tmp_path).sentences
    assert not any("smoothed" in sentence for sentence in sentences(tmp_path, [0.8, 0.7], [0.8, 0.9]))


def test_the_spread_over_seeds(tmp_path):
    wide = [0.6, 0.7, 0.8, 0.9, 0.75]
    narrow = [0.749, 0.750, 0.751, 0.752, 0.750]
    assert any("vary less from seed to seed: 0.0" in s for s in sentences(tmp_path, wide, narrow))
    assert any("vary more from seed to seed" in s for s in sentences(tmp_path, narrow, wide))
    assert any("cannot be said from 5 seeds" in s for s in sentences(tmp_path, BASELINE, HIGHER))


def test_a_regression_has_divergences_in_place_of_flips(tmp_path):
    first = [run(s, 0.0, v, name="pearson", stability=stability(None, 0.5, None)) for s, v in enumerate(BASELINE)]
    second = [run(s, 4.0, 0.8, name="pearson", stability=stability(None, 0.1 + s / 99, None)) for s in range(5)]
    said = write_report(first, second, tmp_path).sentences
    assert any(s.startswith("Dropout: divergence 0.12, baseline 0.50 (p < 0.001): more stable") for s in said)
    assert not any("seed to seed" in s for s in said), "equal scores have no spread to compare"
    assert any(s.startswith("All this is about other seeds") and s.endswith("not about other rows.") for s in said)


def test_without_a_score_nothing_is_said_of_one(tmp_path):
    first, second = arms([0.8], [0.9])
    first = [run(1, 0.0, scores={}, headline=[])]
    second = [run(1, 4.0, scores={}, headline=[])]
    assert "no score in common" in write_report(first, second, tmp_path).sentences[0]


def best_at(step, **settings):
    """What makes a run one of which the checkpoint of a step was scored."""
    chosen = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        **settings,
    }
    return {"settings": chosen, "scored_step": step}


def test_one_rule_for_the_scored_checkpoint_is_stated(tmp_path):
    ends = write_report(*arms(BASELINE, HIGHER), tmp_path)
    assert ends.scored == "Scored, by one rule for all arms: the weights at the end of the training."
    assert ends.scored in ends.markdown() and ends.best is None, "runs without a folder have no model to load"
    best = write_report(*arms(BASELINE, HIGHER, **best_at(30)), tmp_path)
    assert best.scored.startswith(
        "Scored, by one rule for all arms: the checkpoint with the highest accuracy. The rows"
    )
    lowest = best_at(30, metric_for_best_model="eval_loss", greater_is_better=False)
    said = write_report(*arms(BASELINE, HIGHER, **lowest), tmp_path).scored
    assert "the checkpoint with the lowest evaluation loss." in said
    other = {"other": [run(seed, 4.0, **best_at(30)) for seed in (1, 2)]}
    said = write_report(*arms(BASELINE, HIGHER), tmp_path, others=other).scored
    assert said.startswith("Scored, by different rules") and "other: the checkpoint with the highest accuracy" in said


def test_the_best_runs_and_the_lines_that_load_them(runs):
    state = {"best_model_checkpoint": "elsewhere/checkpoint-40", "best_metric": 0.826, "log_history": curve(0.1)}
    (runs / "rdrop3" / "trainer_state.json").write_text(json.dumps(state))
    found = json.loads((runs / "rdrop3" / "all_results.json").read_text())
    found["settings"] |= {
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
    }
    (runs / "rdrop3" / "all_results.json").write_text(json.dumps(found | {"pipeline": "text-classification"}))
    report = report_folder(runs)
    best = json.loads((runs / "report.json").read_text())["best"]
    assert best["arm"] == "R-Drop" and best["runs"]["R-Drop"] == {
        "folder": str(runs / "rdrop3"), "seed": 3, "weights": "checkpoint-40", "score": "82.60",
    }  # fmt: skip
    assert best["runs"]["baseline"]["folder"] == str(runs / "plain3")
    assert best["runs"]["baseline"]["weights"] == "end of training (step 90)"
    text, screen = report.markdown(), report.summary()
    block = text.split("```python\n")[1].split("```")[0]
    compile(block, "report", "exec")
    assert f'load_checkpoint("{runs / "rdrop3"}")' in block
    assert f'pipeline("text-classification", "{runs / "rdrop3"}")' in block
    assert f"best      {runs / 'rdrop3'}: R-Drop, seed 3, checkpoint-40, accuracy (%) 82.60" in screen
    assert f'load_checkpoint("{runs / "rdrop3"}")' in screen


def test_the_best_by_what_should_be_low(tmp_path):
    first, second = arms([0.3, 0.2], [0.25, 0.4], name="wer")
    first, second = (
        [replace(run, folder=tmp_path / f"{run.alpha:g}-{run.seed}") for run in arm] for arm in (first, second)
    )
    best = write_report(first, second, tmp_path).best
    assert (best.arm, best.runs["baseline"].seed, best.runs["R-Drop"].seed) == ("baseline", 2, 1)


def test_runs_whose_seconds_are_not_known_are_left_out_of_the_times_and_named(tmp_path):
    first, second = arms(BASELINE, HIGHER)
    first = [replace(run, train_seconds=None) if run.seed == 2 else run for run in first]
    second = [replace(run, train_seconds=1e6) if run.seed == 2 else run for run in second]
    report = write_report(first, second, tmp_path)
    assert "The times leave out baseline, seed 2: resumed after an interruption" in report.markdown()
    assert report.sentences[-1].startswith("Training took 1.70 times the time"), "not of the million seconds"
    assert json.loads((tmp_path / "report.json").read_text())["untimed"] == ["baseline, seed 2"]
    nobody = [[replace(run, train_seconds=None) for run in arm] for arm in (first, second)]
    assert "times leave out" not in write_report(*nobody, tmp_path).markdown(), "runs made by hand need no seconds"


@pytest.mark.parametrize(
    "file, name",
    [("reviews.csv", "reviews"), ("data/train.csv", "data"), ("x/demo/Train.tsv", "demo"), (None, "custom")],
)
def test_own_files_have_their_own_name(file, name):
    assert name_of_data({"task": "custom", "settings": {"train_file": file}}) == name
    assert name_of_data({"task": "sst2", "settings": {"train_file": file}}) == "sst2"


def test_kinds_of_edits_have_plain_names_which_are_explained(tmp_path):
    assert list(EDIT_KINDS) == list(EDITS)
    text = write_report(*arms(BASELINE, HIGHER), tmp_path).markdown()
    assert "wrong key (a letter becomes one beside it on the keyboard)." in text
    assert "| flipped by: wrong key (%)" in text and "slip" not in text and "letter missing" not in text
    assert "p (signs)" not in text and "p (sign flips)" in text


# ---- What it refuses ----


def refused(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err


def test_the_command(runs, capsys, tmp_path):
    assert main([str(runs), "--output_dir", str(tmp_path / "there")]) == 0
    assert "R-Drop (alpha 4) against its baseline, 5 seeds" in capsys.readouterr().out
    assert (tmp_path / "there" / "report.md").exists() and not (runs / "report.md").exists()


def test_several_alphas_need_a_choice(runs, capsys):
    write_folder(runs / "other", 1, 2.0, 0.9)
    assert "R-Drop runs with alpha 2, 4: choose one of them" in refused(capsys, runs)
    assert main([str(runs), "--alpha", "2"]) == 0
    report = json.loads((runs / "report.json").read_text())
    assert report["alpha"] == 2 and report["seeds"] == [1] and report["incomplete_seeds"] == [2, 3, 4, 5]
    assert "one of the two runs is missing: seed 2, 3, 4, 5" in (runs / "report.md").read_text()


def test_what_cannot_be_compared(runs, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no finished run" in refused(capsys, tmp_path / "empty")
    write_folder(runs / "again", 1, 4.0, 0.9)
    assert "two runs with alpha 4 and seed 1" in refused(capsys, runs)
    (runs / "again" / "all_results.json").write_text("{")
    assert "again/all_results.json: is not that of a finished run" in refused(capsys, runs)
    (runs / "again" / "all_results.json").unlink()
    assert main([str(runs)]) == 0
    write_folder(runs / "longer", 6, 4.0, 0.9, learning_rate=1e-4)
    write_folder(runs / "shorter", 6, 0.0, 0.9)
    line = refused(capsys, runs)
    assert "learning_rate is 2e-05 with seed 1 and alpha 0, 0.0001 with seed 6 and alpha 4" in line
    assert "alpha 0 is the baseline" in refused(capsys, runs, "--alpha", "0")
    with pytest.raises(InputError, match=r"no seed has both .* \(seeds: baseline 1; R-Drop 2\)"):
        write_report([run(1, 0.0)], [run(2, 4.0)], tmp_path)


@pytest.mark.parametrize("name", ["eval_logits.npz", "trainer_state.json"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_the_file_that_is_damaged_is_named(runs, capsys, name, content):
    (runs / "plain1" / name).write_bytes(content)
    assert f"plain1/{name}: is not that of a finished run" in refused(capsys, runs)


def test_r_drops_own_settings_may_differ_from_the_baselines_and_not_among_themselves(runs, capsys):
    write_folder(runs / "plain6", 6, 0.0, 0.8, rdrop_num_passes=2)
    write_folder(runs / "rdrop6", 6, 4.0, 0.8, rdrop_num_passes=3)
    assert main([str(runs)]) == 0, "runs 1 to 5 do not say"
    write_folder(runs / "plain7", 7, 0.0, 0.8, rdrop_num_passes=2)
    write_folder(runs / "rdrop7", 7, 4.0, 0.8, rdrop_num_passes=2)
    (runs / "rdrop1" / "all_results.json").unlink()
    for seed in range(2, 6):
        (runs / f"rdrop{seed}" / "all_results.json").unlink()
    assert "rdrop_num_passes is 3 with seed 6" in refused(capsys, runs)


# ---- Pictures ----


def size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_pictures(tmp_path, written):
    report = write_report(*arms(BASELINE, HIGHER), tmp_path)
    assert [path.name for path in report.pictures] == ["scores.png", "seconds.png", "curves.png", "flips.png"]
    assert all(size(path)[0] == 1600 for path in report.pictures)
    assert all(f"({path.name})" in report.markdown() for path in report.pictures)


def test_what_is_not_known_is_not_drawn(tmp_path, drawn):
    first, second = [run(1, 0.0, log_history=[], stability=None)], [run(1, 4.0, log_history=[], stability=None)]
    untimed = [[replace(run, train_seconds=None) for run in arm] for arm in (first, second)]
    assert [path.name for path in write_report(*untimed, tmp_path).pictures] == ["scores.png"]
    assert [path.name for path in write_report(first, second, tmp_path).pictures] == ["scores.png", "seconds.png"]
    assert "curves.png" not in drawn and draw_curves([{"step": 1, "loss": 1.0}], 4.0, tmp_path) == {}
    assert [path.name for path in draw_curves(curve(0.2), 0.0, tmp_path)] == ["curves.png"] and "curves.png" in drawn


def classified(seed, alpha, sharp=1.0):
    """A run with logits of 200 rows."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 200)
    logits = sharp * (random.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels])
    labels[:5] = -100
    return run(seed, alpha, logits=logits.astype(np.float32), labels=labels)


def test_the_reliability_diagram_by_plain_arithmetic(tmp_path, drawn):
    runs = [classified(1, 0.0), classified(2, 0.0)]
    rows = []
    for found in runs:
        for z, label in zip(found.logits.tolist(), found.labels.tolist(), strict=True):
            if label != -100:
                shares = [math.exp(value) / sum(map(math.exp, z)) for value in z]
                rows.append((max(shares), shares.index(max(shares)) == label))
    bins = reliability_of(runs)
    assert bins.rows.sum() == len(rows) == 390
    for i in range(10):
        inside = [(sure, right) for sure, right in rows if i / 10 <= sure < (i + 1) / 10]
        assert bins.rows[i] == len(inside)
        if inside:
            assert bins.confidence[i] == pytest.approx(100 * statistics.mean(sure for sure, _ in inside), abs=1e-4)
            assert bins.accuracy[i] == pytest.approx(100 * statistics.mean(right for _, right in inside))
    report = write_report(runs, [classified(1, 4.0), classified(2, 4.0)], tmp_path)
    assert tmp_path / "reliability.png" in report.pictures
    figure = draw_reliability({"baseline": runs, "rdrop": runs, "mild": runs, "regression": [run(1, 0.0)]}, "title")
    assert figure.axes[0].get_legend_handles_labels()[1] == ["calibrated", "baseline", "R-Drop", "mild"]
    assert reliability_of([run(1, 0.0)]) is None and reliability_of([]) is None
    assert reliability_of([replace(runs[0], labels=np.full(200, -100))]) is None
    assert reliability_of([replace(runs[0], labels=runs[0].labels / 2)]) is None, "a regression's"


def stars(axes):
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "*" and len(line.get_xydata())]


def test_the_score_against_seconds_marks_what_is_scored(tmp_path, drawn):
    history = [{"step": s, "eval_accuracy": v, "eval_loss": 0.4} for s, v in ((10, 0.6), (20, 0.9), (40, 0.7))]
    history.append({"step": 40, "train_runtime": 9.9})
    trained = {"log_history": history, "train_seconds": 80.0, "scores": {"accuracy": 0.9, "loss": 0.4}}
    first = [run(1, 0.0, **trained, **best_at(20))]
    second = [run(1, 4.0, **{**trained, "train_seconds": 160.0}, settings=first[0].settings)]
    longer = [run(1, 0.0, 0.75, log_history=[], train_seconds=160.0)]
    score = write_report(first, second, tmp_path).quantities[0]
    panel = draw_against_seconds([score], {"baseline": first, "rdrop": second, "longer": longer}, "").axes[0]
    # 20 of 40 steps of 80 s; the end of 160 s, where the score is that of the weights; no curve, so the end
    assert stars(panel) == [(40.0, pytest.approx(90)), (160.0, pytest.approx(90)), (160.0, pytest.approx(75))]
    thick = [line.get_xydata().tolist() for line in panel.lines if line.get_linewidth() == 2]
    assert thick[0] == [[20.0, pytest.approx(60)], [40.0, pytest.approx(90)], [80.0, pytest.approx(70)]]
    names = [text.get_text() for text in panel.figure.legends[0].texts]
    assert names == ["baseline", "R-Drop", "longer", "scored weights"]
    untimed = [replace(longer[0], train_seconds=None)]
    assert draw_against_seconds([score], {"baseline": first, "rdrop": untimed}, "") is None


def test_the_learning_curves_mark_what_is_scored(drawn):
    first, second = [run(1, 0.0)], [run(1, 4.0, scored_step=45)]
    panel = draw_learning_curves({"baseline": first, "rdrop": second}, True, "").axes[1]
    assert stars(panel) == [(90.0, pytest.approx(0.36)), (45.0, pytest.approx(0.045))]


def test_pictures_say_what_they_are_of_and_show_all_arms(tmp_path, drawn):
    first, second = ([replace(run, name="sst2") for run in arm] for arm in arms(BASELINE, HIGHER))
    write_report(first, second, tmp_path, others=longer(BASELINE) | {"empty": []})
    assert all(
        figure.legends[0].get_title().get_text() == "sst2: R-Drop with alpha 4, 5 seeds" for figure in drawn.values()
    )
    for name in ("scores.png", "seconds.png"):
        assert {"baseline", "R-Drop", "plain_longer"} <= {text.get_text() for text in drawn[name].legends[0].texts}
    labels = [label.get_text() for label in drawn["flips.png"].axes[0].get_yticklabels()]
    assert labels == ["dropout", "small edits", "wrong key"]


def test_without_matplotlib_there_is_a_report_without_pictures(tmp_path):
    report = write_report(*arms(BASELINE, HIGHER), tmp_path)
    assert not report.pictures and not list(tmp_path.glob("*.png"))
    assert 'pip install "rdrop-trainer[report]"' in report.markdown()


@pytest.mark.parametrize("name", ["report.md", "report.json", ""])
def test_a_report_that_cannot_be_written(tmp_path, name):
    if name:
        (tmp_path / "out" / name).mkdir(parents=True)
    else:
        (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="the report cannot be written there .*The runs are kept"):
        write_report(*arms([0.4, 0.5], [0.5, 0.7]), tmp_path / "out")


def test_the_classes_of_both_arms(tmp_path):
    """Means and deviations over seeds, and the counts of all of them; no section where a run has none."""

    def classes(right):
        scores = {
            "no": {"rows": 10, "precision": right / 10, "recall": right / 10, "f1": right / 10},
            "yes|maybe": {"rows": 5, "precision": 1.0, "recall": 0.0, "f1": 0.5},
        }
        return {
            "scores": scores,
            "confusion": {"no": {"no": right, "yes|maybe": 10 - right}, "yes|maybe": {"no": 1500}},
        }

    arms = [
        [run(seed, alpha, by_class=classes(right + seed)) for seed in (1, 2)] for alpha, right in ((0.0, 5), (4.0, 7))
    ]
    page = write_report(*arms, tmp_path).markdown()
    assert "| no | 10 | 65.0 ± 7.1 / 85.0 ± 7.1 | 65.0 ± 7.1 / 85.0 ± 7.1 | 65.0 ± 7.1 / 85.0 ± 7.1 |" in page
    assert "| yes\\|maybe | 5 | 100.0 ± 0.0 / 100.0 ± 0.0 |" in page
    assert "| no | 13 | 7 |" in page and "| no | 17 | 3 |" in page and page.count("| yes\\|maybe | 3,000 | 0 |") == 2
    arms[0][0] = run(1, 0.0)
    assert "## Classes" not in write_report(*arms, tmp_path / "other").markdown()
