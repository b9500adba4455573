"""--measure: what is measured, what that costs, and every way to switch it off."""

import csv
import functools
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertForSequenceClassification

from rdrop_trainer.script.command_line import parse_arguments
from rdrop_trainer.script.extent import even_share, quick_extent
from support.runs import FAST, Pretended, fails, launched_by, results, run, script, words, write_csv

FILES = "--train_file train.csv --validation_file dev.csv --output_dir out"


@pytest.fixture
def files(here):
    write_csv(here / "train.csv", rows=24)
    write_csv(here / "dev.csv", rows=16)
    return here


# ---- How much ----


@pytest.mark.parametrize("edits", [True, False])
@pytest.mark.parametrize("evaluation", [1, 16, 300, 5463, 40000])
@pytest.mark.parametrize("trained", [0, 7, 24, 300, 900, 4000, 30_000, 1_000_000])
def test_measuring_costs_at_most_a_fifth_of_the_training(trained, evaluation, edits):
    probed, points, rows, repeats = quick_extent(trained, 1000, evaluation, edits=edits)
    of_probe, of_rows = probed * (points + 1) * 2, rows * (2 * repeats if edits else repeats + 1)
    cost_of_training = 3 * trained  # in predictions of one row
    assert of_probe <= cost_of_training / 20 and of_rows <= cost_of_training * 3 / 20
    assert 4 <= points <= 20 and (probed == 0 or 4 <= probed <= 100)
    assert rows <= evaluation and 2 <= repeats <= 8
    assert repeats == 2 or rows == evaluation, "more rows come before more predictions of each"
    if trained >= 900:  # and most of it is used, unless everything is measured
        assert of_rows > cost_of_training / 10 or (rows, repeats) == (evaluation, 8)
        assert of_probe > cost_of_training / 40 or (probed, points) == (100, 20)


def test_a_share_of_rows_is_spread_over_all():
    assert even_share(Dataset.from_dict({"a": list(range(10))}), 4)["a"][:] == [0, 2, 5, 7]
    assert even_share(np.arange(10), 4).tolist() == [0, 2, 5, 7]
    assert even_share(np.arange(3), 3).tolist() == [0, 1, 2] and len(even_share(np.arange(3), 0)) == 0


# ---- What a run measures ----


@pytest.fixture
def predicted(monkeypatch):
    """How many rows went through a model without a gradient."""
    rows, forward = [], BertForSequenceClassification.forward

    @functools.wraps(forward)
    def counted(self, *args, **inputs):
        if not torch.is_grad_enabled():
            rows.append(len(inputs["input_ids"]))
        return forward(self, *args, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", counted)
    return rows


def test_quick(model, files, predicted, capsys):
    found = {}
    for alpha in (0, 4):
        predicted.clear()
        flags = "--measure quick --overwrite_output_dir --num_train_epochs 16 --rdrop_alpha"
        assert run(model, FILES, flags, alpha) == 0
        probe = 5 * 5 * 2  # five training rows, at the start and at four steps
        assert sum(predicted) <= 16 + 3 * 24 * 16 / 5 and sum(predicted) > 16 + probe + 100
        said, found[alpha] = capsys.readouterr().out, results("out")
    measured = found[4]["stability"]
    assert (measured["split"], measured["rows"], measured["of_rows"]) == ("validation", 16, 16)
    assert measured["dropout"]["num_samples"] == 5
    low, high = measured["dropout"]["flip_interval"]
    assert 0 <= low <= measured["dropout"]["flip_rate"] <= high <= 1 and measured["dropout"]["divergence"] > 0
    edits = measured["edits"]
    with open("out/edits.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == edits["edited"] <= 16 * 5
    assert edits["unseen"] > 0
    for name in ("edited", "unseen"):
        assert edits[name] == sum(kind[name] for kind in edits["by_kind"].values())
    assert edits["by_kind"]["case"]["edited"] == 0 < edits["by_kind"]["case"]["unseen"], "the tokenizer is uncased"
    assert edits["by_kind"]["case"]["flip_rate"] is edits["by_kind"]["case"]["divergence"] is None
    assert f"% of predictions ({100 * low:.1f} to {100 * high:.1f}) flipped by dropout" in said
    assert "measured  16 of 16 rows (--measure quick), 5 predictions of each under dropout" in said
    assert f"{edits['edited']} edits and {edits['unseen']} that the model cannot see" in said
    assert "% of the training's" in said
    plain = found[0]["stability"]
    assert plain["dropout"]["num_samples"] == 5 and plain["edits"]["edited"] == edits["edited"]


def test_part_of_the_rows(model, files):
    """A short training pays for two rows of sixteen and for no curve; the calibration comes with the scores."""
    assert run(model, FILES, "--measure quick") == 0
    found = results("out")
    measured = found["stability"]
    assert (measured["rows"], measured["of_rows"], measured["dropout"]["num_samples"]) == (2, 16, 2)
    with open("out/edits.csv", encoding="utf-8", newline="") as file:
        assert {row["index"] for row in csv.DictReader(file)} == {"0", "1"}
    with np.load("out/eval_logits.npz") as kept:
        logits, labels = kept["logits"].astype(np.float64), kept["labels"]
    assert len(logits) == 16
    assert (logits.argmax(1) == labels).mean() == pytest.approx(found["metrics"]["eval_accuracy"])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert measured["calibration"]["mean_confidence"] == pytest.approx(shares.max(1).mean(), rel=1e-5)
    assert "probe" not in found["seconds"]
    assert "| predictions that dropout flips (2 of 16 rows) |" in open("out/README.md", encoding="utf-8").read()


def test_full(model, files, predicted):
    assert run(model, FILES, "--measure full") == 0
    measured = results("out")["stability"]
    assert (measured["rows"], measured["of_rows"], measured["dropout"]["num_samples"]) == (16, 16, 8)
    edits = measured["edits"]["edited"]
    assert sum(predicted) == 16 + 8 * 16 + edits + 24 * 2 * 4  # the probe: the start, and three steps
    assert edits + measured["edits"]["unseen"] > 16 * 5
    history = json.loads((files / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "probe_divergence" in entry] == [0, 1, 2, 3]
    assert results("out")["seconds"]["probe"] > 0


def test_the_divergence_of_half_precision_is_that_of_the_training(model, files, monkeypatch):
    """What is trained in bfloat16 is measured in bfloat16."""
    types, forward = [], torch.nn.Linear.forward

    def watched(self, x):
        found = forward(self, x)
        types.append(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    assert run(model, FILES, "--measure full --bf16 True") == 0
    assert set(types) == {torch.bfloat16}


# ---- Off, and refused ----


def test_a_model_that_broke_down_has_no_scores_and_predicts_nothing(model, files, capsys):
    """The largest of logits that are all NaN would be the first class, with an accuracy."""
    assert run(model, FILES) == 0
    broken = BertForSequenceClassification.from_pretrained("out")
    torch.nn.init.constant_(broken.classifier.weight, math.nan)
    broken.save_pretrained("broken")
    AutoTokenizer.from_pretrained("out").save_pretrained("broken")
    flags = "--model_name_or_path broken --use_cpu True --max_seq_length 16 --output_dir"
    assert script.main(words(f"{flags} scored --validation_file dev.csv --do_eval --measure full")) == 0
    assert "score     eval_accuracy is not defined" in capsys.readouterr().out
    found = results("scored")
    assert found["headline"] == {"eval_accuracy": None} and found["by_class"] == {}
    assert [found["stability"][part] for part in ("rows", "dropout", "edits", "calibration")] == [0, None, None, None]
    assert script.main(words(f"{flags} predicted --test_file dev.csv --do_predict")) == 4
    assert "there are no predictions for test" in capsys.readouterr().err
    assert results("predicted")["metrics"]["test_accuracy"] is None
    assert not (files / "predicted" / "custom_test_predict.tsv").exists()


def test_nothing_is_measured_by_default(model, files):
    assert run(model, FILES) == 0
    found = results("out")
    assert found["stability"] is None and not {"probe", "stability"} & found["seconds"].keys()
    assert not (files / "out" / "edits.csv").exists()


def test_what_is_refused(model, files, capsys):
    flags = ["--model_name_or_path", model, FILES, *FAST]
    assert "--measure quick is a share of the training" in fails(capsys, *flags, "--do_eval --measure quick")
    assert "add --do_eval" in fails(capsys, *flags, "--do_train --measure full")
    assert "did you mean --measure" in fails(capsys, *flags, "--measure_stability")
    assert "invalid choice: 'some'" in fails(capsys, *flags, "--measure some")


@pytest.mark.parametrize(("given", "expected"), [((), "quick"), (("none",), "none"), (("full",), "full")])
def test_a_comparison_measures_what_is_asked_for(model, files, monkeypatch, given, expected):
    class Watched(Pretended):
        def __call__(self, job):
            asked.append(parse_arguments(job.flags).data.measure)
            return super().__call__(job)

    asked = []
    assert run(model, FILES.replace("--output_dir out", "--output_dir single")) == 0
    launched_by(Watched("single"), monkeypatch)
    flags = ["--model_name_or_path", str(model), *FILES.split(), *FAST, "--compare_baseline", "--seeds", "1"]
    flags += [f"--measure={value}" for value in given]
    assert script.main(flags) == 0 and asked == [expected] * 2
