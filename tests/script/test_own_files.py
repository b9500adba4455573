"""Own files through the whole script: columns, ids, scores, scores by class, unlabeled rows, early stopping."""

import csv
import io
import json
import os
import random
import signal
import sys
from types import SimpleNamespace

import pytest
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerControl

from rdrop_trainer import RDropTrainer
from rdrop_trainer.run_folder import read_results
from rdrop_trainer.script.demo import make_sentences
from rdrop_trainer.script.train import StopWithoutProgress
from support.runs import fails, run, write_csv

MOODS, THINGS = ("bad", "fine", "good"), ("film", "book", "hotel")


def write_reviews(path, rows, seed, labels=MOODS):
    """`id,review,sentiment`, as people have them."""
    draw = random.Random(seed)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "review", "sentiment"))
        for i, (text, _) in enumerate(make_sentences(rows, seed=seed)):
            mood = draw.choice(labels)
            word = draw.choice(labels) if i % 4 == 0 else mood  # a quarter cannot be told
            writer.writerow((f"{seed}-{i:03}", f"{dict(zip(labels, THINGS, strict=True))[word]} {text}", mood))
    return path


def read_reviews(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


REVIEWS = "--train_file train.csv --validation_file dev.csv --label_column sentiment --learning_rate 5e-3"


@pytest.fixture
def reviews(here):
    for i, name in enumerate(("train", "dev", "test")):
        write_reviews(here / f"{name}.csv", 48 if name == "train" else 15, seed=i + 1)
    return here


def test_from_columns_to_scores(reviews, model, capsys):
    """Scores and predictions against scikit-learn and the saved model called by hand, row by row."""
    ask = "--test_file test.csv --id_column id --do_train --do_eval --do_predict --num_train_epochs 15 --rdrop_alpha 0"
    assert run(model, REVIEWS, ask, "--metric macro_f1 matthews_correlation --output_dir out") == 0
    screen = capsys.readouterr().out
    assert "columns   text: review; label: sentiment; id: id\n" in screen
    found = read_results("out")
    assert found["columns"] == {"text": ["review"], "label": ["sentiment"], "id": ["id"]}
    trained = AutoModelForSequenceClassification.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert list(trained.config.id2label.values()) == list(MOODS)
    for split, file, prefix in (("validation", "dev", "eval"), ("test", "test", "test")):
        rows = read_reviews(f"{file}.csv")
        true = [row["sentiment"] for row in rows]
        inputs = [tokenizer(row["review"], return_tensors="pt", truncation=True, max_length=16) for row in rows]
        predicted = [trained.config.id2label[int(trained(**one).logits.argmax())] for one in inputs]
        assert len(set(predicted)) > 1
        scores = found["metrics"]
        assert scores[f"{prefix}_macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
        assert scores[f"{prefix}_matthews_correlation"] == pytest.approx(matthews_corrcoef(true, predicted))
        assert scores[f"{prefix}_accuracy"] == pytest.approx(sum(map(str.__eq__, true, predicted)) / len(true))
        by_class = found["by_class"][split]
        precisions = precision_score(true, predicted, average=None, labels=MOODS, zero_division=0)
        assert [by_class["scores"][mood]["precision"] for mood in MOODS] == pytest.approx(list(precisions))
        f1 = f1_score(true, predicted, average=None, labels=MOODS)
        assert [by_class["scores"][mood]["f1"] for mood in MOODS] == pytest.approx(list(f1))
        counts = [[by_class["confusion"].get(a, {}).get(b, 0) for b in MOODS] for a in MOODS]
        assert counts == confusion_matrix(true, predicted, labels=MOODS).tolist()
    assert list(found["headline"])[:2] == ["eval_macro_f1", "eval_matthews_correlation"]
    with open("out/custom_test_predict.tsv", encoding="utf-8") as file:
        written = [line.rstrip("\n").split("\t") for line in file]
    assert written == [
        ["id", "prediction"],
        *([row["id"], answer] for row, answer in zip(rows, predicted, strict=True)),
    ]


def test_what_is_refused(reviews, model, capsys):
    files = ("--model_name_or_path", model, "--train_file train.csv --validation_file dev.csv")
    assert "did you mean --label_column sentiment?" in fails(capsys, *files)
    assert "has 3; choose macro_f1" in fails(capsys, *files, "--label_column sentiment --metric f1")
    message = fails(capsys, "--model_name_or_path", model, "--task_name sst2 --train_file train.csv --id_column id")
    assert "--id_column id: is for your own files" in message


def test_a_test_file_of_which_some_rows_have_labels(reviews, model):
    rows = read_reviews("test.csv")
    with open("test.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "sentiment": row["sentiment"] if i < 3 else ""} for i, row in enumerate(rows))
    ask = "--test_file test.csv --do_train --do_predict --output_dir out"
    assert run(model, REVIEWS, ask) == 0
    found = read_results("out")
    assert found["rows"]["test"] == 15
    assert sum(scores["rows"] for scores in found["by_class"]["test"]["scores"].values()) == 3
    assert (3 * found["metrics"]["test_accuracy"]) % 1 == pytest.approx(0)


def test_the_best_model_by_a_metric_of_ones_own(reviews, model):
    best = "--load_best_model_at_end --eval_strategy epoch --save_strategy epoch --metric macro_f1 --output_dir out"
    assert run(model, REVIEWS, best) == 0
    assert read_results("out")["settings"]["metric_for_best_model"] == "macro_f1"


def test_the_dry_run_says_what_is_read(reviews, model, capsys):
    assert run(model, REVIEWS, "--dry_run --output_dir out") == 0
    said = capsys.readouterr().out
    assert "columns   text: review; label: sentiment\n" in said
    assert f"Dry run of {reviews.name}: R-Drop" in said  # as the summary calls it: by the folder of a train.csv


def test_a_console_that_cannot_show_a_column_gets_escapes(reviews, model, monkeypatch):
    for name in ("train.csv", "dev.csv"):
        text = (reviews / name).read_text(encoding="utf-8").replace("sentiment", "标签", 1)
        (reviews / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))  # a file's on Windows
    assert run(model, REVIEWS.replace("sentiment", "标签"), "--dry_run --output_dir out") == 0
    sys.stdout.flush()
    assert rb"label: \u6807\u7b7e" in sys.stdout.buffer.getvalue()


def test_few_labels_and_the_rest_of_the_same_file(reviews, model):
    """Only the rows that are trained on, and those to evaluate, are no unlabeled rows."""
    with open("dev.csv", "a", encoding="utf-8") as file:
        file.write((reviews / "train.csv").read_text(encoding="utf-8").splitlines()[20] + "\n")
    assert (
        run(model, REVIEWS, "--unlabeled_file train.csv --max_train_samples 8 --max_eval_samples 4 --output_dir out")
        == 0
    )
    assert read_results("out")["rows"] == {"train": 8, "validation": 4, "unlabeled": 48 - 8 - 1}


# ---- Early stopping ----


def test_early_stopping(reviews, model):
    """With a rate of 0 no evaluation is better than the first."""
    stop = "--early_stopping_patience 2 --num_train_epochs 9 --learning_rate 0 --output_dir out"
    flags = "--max_seq_length 16 --use_cpu True --disable_tqdm True --per_device_train_batch_size 8".split()
    assert run(model, REVIEWS, stop, fast=flags) == 0
    found = read_results("out")
    assert found["metrics"]["steps"] == 3 * 6 and found["settings"]["load_best_model_at_end"]
    assert found["settings"]["eval_strategy"] == found["settings"]["save_strategy"] == "epoch"
    state = json.loads((reviews / "out" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 6


def test_a_resumed_run_stops_where_the_whole_one_does(reviews, model, monkeypatch):
    stop = "--early_stopping_patience 3 --num_train_epochs 9 --learning_rate 0 --output_dir out"
    flags = "--max_seq_length 16 --use_cpu True --disable_tqdm True --per_device_train_batch_size 8".split()
    training_step = RDropTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 14:  # after two evaluations
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RDropTrainer, "training_step", interrupted)
        assert run(model, REVIEWS, stop, fast=flags) == 130
    assert run(model, REVIEWS, stop, fast=flags) == 0
    assert read_results("out")["metrics"]["steps"] == 4 * 6
    # Cut off after its training, while it was scored: there is nothing left to train
    (reviews / "out" / "all_results.json").unlink()
    monkeypatch.setattr(RDropTrainer, "training_step", lambda *_, **__: pytest.fail("another step"))
    assert run(model, REVIEWS, stop, fast=flags) == 0
    found = read_results("out")
    assert found["metrics"]["steps"] == 4 * 6 and found["best_checkpoint"]["step"] == 6


@pytest.mark.parametrize(
    "scores, greater, stops",
    [
        ([0.5, 0.6, 0.6], True, False),
        ([0.5, 0.6, 0.6, 0.59], True, True),
        ([0.6, 0.5, 0.7, 0.6], True, False),
        ([0.6, 0.5, 0.5, 0.7], False, True),
        ([0.6, 0.5, 0.4], False, False),
        ([float("nan"), float("nan")], True, True),
    ],
)
def test_when_it_stops(scores, greater, stops):
    """From the history alone, so that a resumed run stops where the whole one does."""
    args = SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=greater)
    history = [{"loss": 1.0}, *({"eval_loss": score} for score in scores)]
    control = TrainerControl()
    StopWithoutProgress(2).on_evaluate(args, SimpleNamespace(log_history=history), control)
    assert control.should_training_stop == stops


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--validation_file train.csv --eval_strategy no",
            "stops by the scores of evaluations, but eval_strategy is no",
        ),
        (
            "--validation_file train.csv --save_strategy no",
            "save_strategy must be epoch or best, as eval_strategy is epoch",
        ),
        ("--validation_file train.csv --do_eval", "--early_stopping_patience stops a training, but this run does not"),
        ("", "--early_stopping_patience needs validation rows"),
    ],
)
def test_early_stopping_that_cannot_be(flags, message, model, here, capsys):
    write_csv(here / "train.csv")
    flags = f"--train_file train.csv --early_stopping_patience 1 {flags}"
    assert message in fails(capsys, "--model_name_or_path", model, flags)


def test_the_best_model_by_a_type_of_entities(model, here, capsys):
    """Types that the validation rows lack have no score in an evaluation in which none is predicted."""
    (here / "train.conll").write_text("Anna B-PER\nin O\n\nOslo B-LOC\n\nBasel B-ORG\n\n" * 2)
    (here / "dev.conll").write_text("in O\nOslo B-LOC\n\nBasel B-ORG\n")
    files = "--task_type tokens --train_file train.conll --validation_file dev.conll --output_dir out"
    stop = "--early_stopping_patience 1 --max_steps 1 --use_cpu --disable_tqdm True"

    def refused(kind, *more):
        flags = ["--model_name_or_path", model, f"--metric_for_best_model f1_{kind}", *more]
        return fails(capsys, files, stop, *flags)

    assert refused("PER").endswith("no such score; it has f1, macro_f1, precision, recall, loss, f1_LOC, f1_ORG")
    assert "f1_ORG: custom has no such score" in refused("ORG", "--max_eval_samples 1")
    assert run(model, files, stop, "--metric_for_best_model f1_LOC", fast=[]) == 0
    assert read_results("out")["best_checkpoint"]["metric"] == "f1_LOC"
