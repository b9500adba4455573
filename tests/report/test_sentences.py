"""The sentences of a report: what its numbers support."""

import json
import statistics
from dataclasses import replace

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.report import report_folder, write_report
from rdrop_trainer.report.quantities import EDIT_KINDS
from rdrop_trainer.run_folder import name_of_data
from rdrop_trainer.stability.edits import EDITS
from support.reports import BASELINE, HIGHER, arms, best_at, curve, longer, run, stability, write_folder


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
    strong = report_folder(folder, alpha=16)  # plain_longer has no R-Drop either, and is not the baseline
    assert strong.alpha == 16 and [run.folder.name for run in strong.baseline][:1] == ["plain-seed1"]
    assert strong.quantities[0].rdrop == pytest.approx([100 * (b - 0.02) for b in HIGHER])
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
    by_itself = write_report(*arms(BASELINE, HIGHER, scored_step=30), tmp_path).markdown()
    assert "one rule for all arms: a checkpoint that was chosen while the run trained." in by_itself
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
