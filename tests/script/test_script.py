"""run_glue_rdrop.py as a user runs it: real files in, results, leaderboard files and clear errors out."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from rdrop_trainer import RDropTrainer
from support import SCRIPT
from support.runs import FAST, fails, make_cola, results, run, script, write_csv, write_json, write_tsv

# ---- Whole runs ----


def test_glue_from_a_folder(model, here, capsys):
    make_cola(here / "glue_data" / "CoLA")
    assert (
        run(
            model,
            "--task_name",
            "CoLA",
            "--data_dir",
            "glue_data",
            "--do_train",
            "--do_eval",
            "--do_predict",
            "--rdrop_alpha",
            2,
            "--output_dir",
            "out",
        )
        == 0
    )
    found = results("out")
    assert found["rows"] == {"train": 24, "validation": 7, "test": 5}
    assert -1 <= found["metrics"]["eval_matthews_correlation"] <= 1
    assert found["settings"]["rdrop_alpha"] == 2.0 and found["seconds"]["train"] > 0
    assert torch.__version__.startswith(found["versions"]["torch"]) and found["versions"]["rdrop-trainer"]
    lines = (here / "out" / "CoLA.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 6
    assert all(line.split("\t")[1] in ("0", "1") for line in lines[1:])
    assert found["complete_submissions"] == {"CoLA.tsv": False}  # the leaderboard wants 1063 rows
    config = BertForSequenceClassification.from_pretrained("out").config
    assert config.id2label == {0: "unacceptable", 1: "acceptable"}
    output = capsys.readouterr().out
    assert "eval_matthews_correlation" in output
    following = output.split("next      ")[1].strip()
    assert following.endswith("--rdrop_alpha 0 --output_dir out-baseline")


def next_command(capsys):
    """The last one printed."""
    return capsys.readouterr().out.rpartition("next      ")[2].strip()


def execute(command):
    words = shlex.split(command)
    assert words[0] == "python"
    return subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)


@pytest.mark.parametrize("source", ["flags", "recipe"])
def test_the_next_command_runs(source, model, here, capsys, monkeypatch):
    """The baseline of a semi-supervised R-Drop run, whose flags or recipe it must not follow in everything."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    write_csv(here / "a file.csv")
    (here / "more.txt").write_text("one\ntwo\n")
    settings = {
        "model_name_or_path": str(model), "train_file": "a file.csv", "validation_file": "a file.csv",
        "unlabeled_file": "more.txt", "max_unlabeled_samples": 1, "use_cpu": True, "num_train_epochs": 1,
        "save_strategy": "no", "overwrite_output_dir": True, "resume_from_checkpoint": "auto", "output_dir": "out",
    }  # fmt: skip
    (here / "recipe.json").write_text(json.dumps(settings))
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    secret = ["--hub_token", "hf_secret"]
    assert script.main([*(flags if source == "flags" else ["recipe.json"]), *secret]) == 0
    command = next_command(capsys)
    assert "hf_secret" not in command
    done = execute(command)
    assert done.returncode == 0, done.stderr
    assert results("out-baseline")["settings"]["rdrop_alpha"] == 0
    assert results("out-baseline")["settings"]["overwrite_output_dir"] is False
    assert "unlabeled" not in results("out-baseline")["rows"]


def test_the_next_command_after_an_evaluation(model, here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    make_cola(here / "CoLA")
    flags = ["--task_name", "cola", "--data_dir", "CoLA"]
    assert run(model, *flags, "--do_train", "--output_dir", "out") == 0
    capsys.readouterr()
    assert run("out", *flags, "--do_eval", "--output_dir", "scores") == 0
    assert execute(next_command(capsys)).returncode == 0
    assert (here / "scores-predict" / "CoLA.tsv").exists()
    assert run("out", *flags, "--do_eval", "--do_predict", "--output_dir", "both") == 0
    (here / "CoLA" / "dev.tsv").rename(here / "CoLA" / "hidden")
    assert run("out", *flags, "--do_predict", "--output_dir", "alone") == 0
    assert execute(next_command(capsys)).returncode == 0  # trains, and evaluates nothing
    assert "train_loss" in results("alone-trained")["metrics"]
    write_csv(here / "dev.csv", labels=("unacceptable", "acceptable"))
    assert run("out", "--validation_file", "dev.csv", "--output_dir", "dev") == 0
    assert next_command(capsys).endswith("--help")


def test_scores_and_files_equal_an_independent_computation(model, here):
    """MCC and predictions of a run against scikit-learn and the saved model called by hand, row by row."""
    from sklearn.metrics import matthews_corrcoef
    from transformers import AutoTokenizer

    make_cola(here / "CoLA", train=40)
    assert run(model, "--task_name", "cola", "--data_dir", ".", "--do_train", "--do_eval", "--do_predict",
               "--learning_rate", "5e-3", "--num_train_epochs", "4", "--output_dir", "out") == 0  # fmt: skip
    trained = AutoModelForSequenceClassification.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")

    def predict(text):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=16)
        return int(trained(**inputs).logits.argmax())

    dev = [line.split("\t") for line in (here / "CoLA" / "dev.tsv").read_text("utf-8").splitlines()]
    expected = matthews_corrcoef([int(row[1]) for row in dev], [predict(row[3]) for row in dev])
    assert results("out")["metrics"]["eval_matthews_correlation"] == pytest.approx(expected)
    assert results("out")["metrics"]["total_flos"] > 0
    test = [line.split("\t")[1] for line in (here / "CoLA" / "test.tsv").read_text("utf-8").splitlines()[1:]]
    written = [line.split("\t") for line in (here / "out" / "CoLA.tsv").read_text().splitlines()[1:]]
    assert written == [[str(i), str(predict(text))] for i, text in enumerate(test)]


def test_a_model_trained_on_custom_files_is_used_without_them(model, here):
    write_csv(here / "train.csv", labels=("b", "a", "A"))
    assert run(model, "--train_file", "train.csv", "--output_dir", "out") == 0
    (here / "test.csv").write_text("sentence\nthe film was fine\n这电影很糟糕\n", encoding="utf-8")
    write_csv(here / "one.csv", labels=("a",))
    assert run("out", "--test_file", "test.csv", "--validation_file", "one.csv", "--do_eval", "--do_predict",
               "--output_dir", "used") == 0  # fmt: skip
    (name,) = results("used")["predictions"]
    answers = [line.split("\t")[1] for line in Path(name).read_text("utf-8").splitlines()[1:]]
    assert len(answers) == 2 and set(answers) <= {"a", "A", "b"}


def test_minus_100_marks_an_unlabeled_row(model, here):
    write_csv(here / "train.csv", labels=("yes", "-100", "no"))
    assert run(model, "--train_file", "train.csv", "--output_dir", "out") == 0
    config = BertForSequenceClassification.from_pretrained("out").config
    assert sorted(config.id2label.values()) == ["no", "yes"]


def test_mnli_evaluates_both_sets_and_writes_both_files(model, here):
    header = ["index"] + [f"c{i}" for i in range(7)] + ["sentence1", "sentence2"]
    labels = ["entailment", "neutral", "contradiction"]

    def rows(n, labeled=True):
        return [[i, *"abcdefg", f"the film {i}", "we all", *([labels[i % 3]] if labeled else [])] for i in range(n)]

    for name, n in (("train", 12), ("dev_matched", 6), ("dev_mismatched", 9)):
        write_tsv(here / "MNLI" / f"{name}.tsv", [*header, "gold_label"], *rows(n))
    for name, n in (("test_matched", 4), ("test_mismatched", 5)):
        write_tsv(here / "MNLI" / f"{name}.tsv", header, *rows(n, labeled=False))
    assert (
        run(
            model,
            "--task_name",
            "mnli",
            "--data_dir",
            "MNLI",
            "--do_train",
            "--do_eval",
            "--do_predict",
            "--output_dir",
            "out",
        )
        == 0
    )
    metrics = results("out")["metrics"]
    assert 0 <= metrics["eval_accuracy"] <= 1 and 0 <= metrics["eval_mm_accuracy"] <= 1
    assert "eval_mm_loss" in metrics
    for name, n in (("MNLI-m.tsv", 4), ("MNLI-mm.tsv", 5)):
        lines = (here / "out" / name).read_text().splitlines()[1:]
        assert len(lines) == n and all(line.split("\t")[1] in labels for line in lines)


def test_regression(model, here):
    rows = [(i, *"abcdef", f"the film {i}", "what a film", f"{i % 6}.5" if i % 6 < 5 else "5.0") for i in range(18)]
    header = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
    write_tsv(here / "STS-B" / "train.tsv", (*header, "score"), *rows)
    write_tsv(here / "STS-B" / "dev.tsv", (*header, "score"), *rows[:6])
    write_tsv(here / "STS-B" / "test.tsv", header, *(row[:-1] for row in rows[:4]))
    assert (
        run(
            model,
            "--task_name",
            "stsb",
            "--data_dir",
            ".",
            "--do_train",
            "--do_eval",
            "--do_predict",
            "--measure_stability",
            "--output_dir",
            "out",
        )
        == 0
    )
    assert {"eval_pearson", "eval_spearmanr"} <= results("out")["metrics"].keys()
    measured = results("out")["stability"]
    assert measured["dropout"]["flip_rate"] is measured["edits"]["flip_rate"] is measured["calibration"] is None
    assert measured["dropout"]["divergence"] > 0 and measured["edits"]["divergence"] > 0
    values = [line.split("\t")[1] for line in (here / "out" / "STS-B.tsv").read_text().splitlines()[1:]]
    assert all(0 <= float(v) <= 5 and len(v.split(".")[1]) == 3 for v in values)


def test_clue_json(model, here):
    codes = ["100", "101", "116"]
    rows = [{"label": codes[i % 3], "label_desc": "-", "sentence": f"这{i}部电影很精彩"} for i in range(12)]
    write_json(here / "tnews" / "train.json", rows)
    write_json(here / "tnews" / "dev.json", rows[:6])
    write_json(here / "tnews" / "test.json", [{"id": 7 + i, "sentence": r["sentence"]} for i, r in enumerate(rows)])
    assert (
        run(
            model,
            "--task_name",
            "tnews",
            "--data_dir",
            ".",
            "--do_train",
            "--do_eval",
            "--do_predict",
            "--dropout",
            0.3,
            "--output_dir",
            "out",
        )
        == 0
    )
    (name,) = results("out")["predictions"]
    answers = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
    assert [a["id"] for a in answers] == list(range(7, 19))
    assert all(a["label"].isdigit() and 100 <= int(a["label"]) <= 116 for a in answers)
    config = BertForSequenceClassification.from_pretrained("out").config
    assert config.id2label[0] == "news_story" and config.num_labels == 15
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3


CLUENER = {"text": "浙商银行叶老桂在上海", "label": {"company": {"浙商银行": [[0, 3]]}, "name": {"叶老桂": [[4, 6]]}}}


def test_cluener_learns_entities(model, here):
    write_json(here / "cluener" / "train.json", [CLUENER] * 64)
    write_json(
        here / "cluener" / "dev.json", [CLUENER, {"text": "叶老桂 在上海", "label": {"name": {"叶老桂": [[0, 2]]}}}]
    )
    write_json(here / "cluener" / "test.json", [{"id": 0, "text": CLUENER["text"]}, {"id": 1, "text": "上海"}])
    write_json(here / "more.json", [{"text": "浙商银行在上海"}, {"text": CLUENER["text"]}])
    assert (
        run(
            model,
            "--task_name",
            "cluener",
            "--data_dir",
            ".",
            "--do_train",
            "--do_eval",
            "--do_predict",
            "--measure_stability",
            "--unlabeled_file",
            "more.json",
            "--learning_rate",
            "1e-2",
            "--num_train_epochs",
            "10",
            "--rdrop_alpha",
            1,
            "--output_dir",
            "out",
        )
        == 0
    )
    found = results("out")
    assert found["stability"]["dropout"]["divergence"] > 0 and found["stability"]["edits"] is None
    assert found["rows"]["unlabeled"] == 1  # the other text is in the training data
    assert found["metrics"]["eval_macro_f1"] > 0.4 and found["metrics"]["eval_f1"] > 0.4
    answers = [json.loads(line) for line in (here / "out" / "cluener_predict.json").read_text("utf-8").splitlines()]
    assert answers[0] == {"id": 0, "label": CLUENER["label"]}


def test_custom_files_and_semi_supervised_rows(model, here, capsys):
    write_csv(here / "train.csv", header=("review", "stars"))
    write_csv(here / "dev.csv", rows=6, header=("review", "stars"))
    (here / "more.txt").write_text("the film was fine\nthe book was dull\nthe film was fine\n")
    assert (
        run(
            model,
            "--train_file",
            "train.csv",
            "--validation_file",
            "dev.csv",
            "--unlabeled_file",
            "more.txt",
            "--text_columns",
            "review",
            "--label_column",
            "stars",
            "--rdrop_unlabeled_ratio",
            "0.5",
            "--output_dir",
            "out",
        )
        == 0
    )
    found = results("out")
    assert found["rows"] == {"train": 24, "validation": 6, "unlabeled": 2}
    assert found["unlabeled_ratio"] == 0.5 and found["metrics"]["steps"] == 3
    assert "batches   0.5 unlabeled rows for each labeled one" in capsys.readouterr().out


def test_recipe_and_overriding_flags(model, here):
    write_csv(here / "train.csv")
    recipe = {
        "model_name_or_path": str(model),
        "train_file": "train.csv",
        "validation_file": "train.csv",
        "text_columns": ["sentence"],
        "rdrop_alpha": 3,
        "learning_rate": "1e-4",
        "use_cpu": True,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "output_dir": "out",
        "seed": 7,
        "disable_tqdm": True,
    }
    (here / "recipe.json").write_text(json.dumps(recipe))
    yaml_lines = [f"{k}: {json.dumps(v)}" for k, v in recipe.items() if k != "save_strategy"]
    (here / "recipe.yaml").write_text("\ufeff" + "\n".join([*yaml_lines, "save_strategy: no"]), encoding="utf-8")
    for name, seed in (("recipe.json", 7), ("recipe.yaml", 8)):
        assert script.main([name, "--seed", str(seed), "--output_dir", name + "-out"]) == 0
        settings = results(name + "-out")["settings"]
        assert (settings["rdrop_alpha"], settings["seed"], settings["learning_rate"]) == (3.0, seed, 1e-4)


def test_a_checkpoint_with_its_own_label_order(model, here):
    """A model whose labels are the task's in another order scores and predicts the same as one in the task's order."""
    make_cola(here / "CoLA")
    assert (
        run(
            model,
            "--task_name",
            "cola",
            "--data_dir",
            ".",
            "--learning_rate",
            "1e-3",
            "--num_train_epochs",
            "4",
            "--output_dir",
            "straight",
        )
        == 0
    )
    turned = AutoModelForSequenceClassification.from_pretrained("straight")
    with torch.no_grad():
        turned.classifier.weight.copy_(turned.classifier.weight.flip(0))
        turned.classifier.bias.copy_(turned.classifier.bias.flip(0))
    turned.config.id2label = {0: "ACCEPTABLE", 1: "Unacceptable"}
    turned.config.label2id = {"ACCEPTABLE": 0, "Unacceptable": 1}
    turned.save_pretrained("turned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / "turned" / name).write_bytes((here / "straight" / name).read_bytes())
    scores, files = [], []
    for name in ("straight", "turned"):
        assert (
            run(
                name,
                "--task_name",
                "cola",
                "--data_dir",
                ".",
                "--do_eval",
                "--do_predict",
                "--output_dir",
                f"{name}-out",
            )
            == 0
        )
        scores.append({k: v for k, v in results(f"{name}-out")["metrics"].items() if "loss" in k or "matthews" in k})
        files.append((here / f"{name}-out" / "CoLA.tsv").read_text())
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert files[0] == files[1] and len(set(files[0].splitlines()[1:])) > 1


def test_labels_that_do_not_fit(model, here, capsys):
    make_cola(here / "CoLA")
    write_csv(here / "abc.csv", labels=("a", "b", "c"))
    assert run(model, "--train_file", "abc.csv", "--output_dir", "abc") == 0
    message = fails(
        capsys,
        "--model_name_or_path",
        "abc",
        "--task_name",
        "cola",
        "--data_dir",
        ".",
        "--do_eval",
        "--output_dir",
        "x",
    )
    assert "predicts other labels (a, b, c) than cola has (unacceptable, acceptable)" in message
    assert run("abc", "--task_name", "cola", "--data_dir", ".", "--do_train", "--output_dir", "again") == 0
    assert BertForSequenceClassification.from_pretrained("again").config.num_labels == 2


def test_public_test_set_is_scored(model, here):
    rows = [{"id": i, "sentence": f"电影{i}很精彩", "label": ("Negative", "Positive")[i % 2]} for i in range(10)]
    for name in ("train", "dev", "test_public"):
        write_json(here / "eprstmt" / f"{name}.json", rows)
    write_json(here / "eprstmt" / "test.json", [{"id": r["id"], "sentence": r["sentence"]} for r in rows])
    write_json(here / "eprstmt" / "unlabeled.json", rows)
    assert (
        run(model, "--task_name", "eprstmt", "--data_dir", ".", "--do_train", "--do_predict", "--output_dir", "out")
        == 0
    )
    found = results("out")
    assert "test_public_accuracy" in found["metrics"] and "unlabeled" not in found["rows"]
    assert [Path(p).name for p in found["predictions"]] == ["eprstmt_predict.json"]


def test_best_model_is_chosen_by_the_tasks_headline(model, here):
    make_cola(here / "CoLA")
    fast = [flag for flag in FAST if flag not in ("--save_strategy", "no")]
    assert run(model, "--task_name", "cola", "--data_dir", ".", "--load_best_model_at_end", "--eval_strategy", "epoch",
               "--save_strategy", "epoch", "--num_train_epochs", "3", "--learning_rate", "5e-3", "--output_dir", "out",
               fast=fast) == 0  # fmt: skip
    found = results("out")
    assert found["settings"]["metric_for_best_model"] == "matthews_correlation" and "train_loss" in found["metrics"]
    state = json.loads((here / "out" / "trainer_state.json").read_text())
    history = [entry["eval_matthews_correlation"] for entry in state["log_history"] if "eval_loss" in entry]
    assert found["metrics"]["eval_matthews_correlation"] == pytest.approx(max(history))


# ---- Interruption and the output folder ----


def test_a_finished_run_is_not_overwritten(model, here, capsys):
    write_csv(here / "train.csv")
    flags = ["--train_file", "train.csv", "--output_dir", "out"]
    assert run(model, *flags) == 0
    before = (here / "out" / "all_results.json").read_text()
    message = fails(capsys, "--model_name_or_path", model, *FAST, *flags)
    assert "out: holds a finished run" in message and "--overwrite_output_dir" in message
    assert (here / "out" / "all_results.json").read_text() == before
    # Nothing is deleted by a run that cannot start, nor when it reads what it would delete
    bad = [*FAST, *flags, "--overwrite_output_dir"]
    fails(capsys, "--model_name_or_path", "nowhere", *bad)
    assert "lies in out" in fails(capsys, "--model_name_or_path", "out", *bad)
    again = fails(capsys, "--model_name_or_path", model, *FAST, *flags, "--resume_from_checkpoint", "out")
    assert "out: is no whole checkpoint" in again
    lost = fails(capsys, "--model_name_or_path", model, *bad, "--resume_from_checkpoint", "nowhere")
    assert "nowhere: is no whole checkpoint" in lost
    fails(capsys, "--model_name_or_path", model, *bad, "--lr_scheduler_kwargs", '{"bogus": 1}')
    fails(capsys, "--model_name_or_path", model, *bad, "--dataloader_drop_last", "--per_device_train_batch_size", "99")
    assert (here / "out" / "all_results.json").read_text() == before
    (here / "out" / "checkpoint-3").mkdir()
    assert run(model, *flags, "--overwrite_output_dir") == 0
    assert not (here / "out" / "checkpoint-3").exists()


def test_killed_and_resumed(model, here, capsys):
    """SIGKILL after a checkpoint; the same command goes on and ends with the weights of an uninterrupted run."""
    write_csv(here / "train.csv", rows=48)
    flags = [
        "--model_name_or_path",
        str(model),
        "--train_file",
        "train.csv",
        "--max_seq_length",
        "16",
        "--use_cpu",
        "True",
        "--disable_tqdm",
        "True",
        "--per_device_train_batch_size",
        "4",
        "--num_train_epochs",
        "2",
        "--save_steps",
        "5",
        "--rdrop_warmup_steps",
        "0.5",
    ]
    killer = (
        "import os, runpy, signal, sys\n"
        "from transformers import Trainer\n"
        "save = Trainer._save_checkpoint\n"
        "def save_and_die(self, *a, **k):\n"
        "    save(self, *a, **k)\n"
        "    if self.state.global_step == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer._save_checkpoint = save_and_die\n"
        f"sys.argv = ['run_glue_rdrop.py'] + {[*flags, '--output_dir', 'cut']!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", killer], capture_output=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert script.main([*flags, "--output_dir", "whole"]) == 0

    other = fails(capsys, *flags, "--output_dir", "cut", "--learning_rate", "1e-3")
    assert "unfinished run with other settings (learning_rate was 5e-05, now 0.001)" in other
    evaluate = ["--output_dir", "cut", "--validation_file", "train.csv", "--do_eval", "--model_name_or_path", "whole"]
    assert "this run does not train" in fails(capsys, *flags, *evaluate)
    there = ["--resume_from_checkpoint", "cut/checkpoint-5"]
    assert "this run does not train" in fails(capsys, *flags, *evaluate, *there)
    (here / "other").mkdir()
    shutil.copytree(here / "cut" / "checkpoint-5", here / "other" / "checkpoint-5")
    elsewhere = fails(capsys, *flags, "--output_dir", "other", *there)
    assert "--resume_from_checkpoint is cut/checkpoint-5" in elsewhere
    none = fails(capsys, *flags, "--output_dir", "cut", "--resume_from_checkpoint", "none")
    assert "--resume_from_checkpoint is none" in none
    settings = here / "cut" / "run_settings.json"
    settings.rename(here / "kept.json")
    assert "no readable run_settings.json" in fails(capsys, *flags, "--output_dir", "cut")
    (here / "kept.json").rename(settings)
    (here / "cut" / "checkpoint-15").mkdir()  # cut short while it was written: no trainer_state.json
    assert script.main([*flags, "--output_dir", "cut"]) == 0
    a, b = (BertForSequenceClassification.from_pretrained(name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    missing = fails(capsys, *flags, "--output_dir", "x", "--resume_from_checkpoint", "nowhere")
    assert "nowhere: is no whole checkpoint" in missing


# ---- Wrong input ----


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "which model"),
        ("MODEL", "which data"),
        ("MODEL --task_name mprc --data_dir .", "'mprc': did you mean mrpc"),
        ("MODEL --data_dir .", "needs --task_name"),
        ("MODEL --task_name cola --data_dir nowhere", "nowhere"),
        (
            "--model_name_or_path nowhere --train_file train.csv",
            "nowhere: no folder here has this name, and from the Hub it cannot be loaded",
        ),
        ("MODEL --train_file none.csv", "none.csv"),
        ("MODEL --train_file train.csv --do_predict", "needs test rows"),
        ("MODEL --train_file train.csv --do_eval", "--do_eval needs validation rows"),
        ("MODEL --validation_file train.csv --do_train", "--do_train needs train rows"),
        ("MODEL --train_file train.csv --label_column lable", "lable"),
        ("MODEL --train_file broken.json", "broken.json:2"),
        ("MODEL --train_file latin.csv", "latin.csv:2"),
        ("MODEL --train_file empty.csv", "empty.csv"),
        ("MODEL --task_name sst2 --train_file labels.csv", "labels.csv:3.*'2'"),
        ("MODEL --task_name cluener", "cluener.*data_dir"),
        ("MODEL --train_file train.csv --unlabeled_file train.csv", "none are left"),
        ("MODEL --train_file float.csv --unlabeled_file more.txt", "custom is a regression"),
        ("MODEL --train_file train.csv --dropout 0", "no active dropout.*--dropout 0.1"),
        ("MODEL --train_file multi.json", r"multi.json:2: the label is \[1, 0\]"),
        ("MODEL --task_name sst2 --validation_file train.csv", "has no trained head"),
        ("MODEL --train_file train.csv --eval_strategy epoch", "--eval_strategy needs validation rows"),
        ("MODEL --train_file train.csv --report_to foo", "foo"),
        (
            "MODEL --train_file train.csv --validation_file train.csv --eval_strategy epoch --save_strategy epoch "
            "--load_best_model_at_end --metric_for_best_model bleu",
            "custom has no such score; it has acc",
        ),
        ("--model_name_or_path /nowhere/m --train_file train.csv", "/nowhere/m: no such folder"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size must be a number of at least 1, got 0"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps must be"),
        ("--learning_rate nan", "learning_rate must be a number of at least 0, got nan"),
        ("--label_smoothing_factor 2", "label_smoothing_factor must be below 1"),
        ("--output_dir=", "output_dir is empty"),
        ("two.json", "two.json: '2' belongs to no flag"),
        ("MODEL --train_file train.csv --output_dir train.csv", "is a file"),
        ("--rdrop_alpha -1", "rdrop_alpha must be a finite number of at least 0, got -1.0"),
        ("--rdrop_alpha four", "--rdrop_alpha.*'four'"),
        ("--rdrop_forward_mode both", "--rdrop_forward_mode.*'both'"),
        ("--dropout 1", "dropout must be in"),
        ("--max_train_samples 0", "max_train_samples must be at least 1"),
        ("--rdrop_alhpa 1", "unknown flag --rdrop_alhpa; did you mean --rdrop_alpha"),
        ("recipe.toml", "recipe.toml: expected a .yaml or .json recipe"),
        ("--train_file d\udcff.csv", "'d.udcff.csv' holds what is no text in UTF-8; rename the file"),
        ("none.yaml", "none.yaml: cannot be read"),
        ("broken.yaml", "broken.yaml:3: not valid YAML"),
        ("list.json", "list.json: expected a mapping"),
        ("odd.json", "unknown flag --rdrop_apha; did you mean --rdrop_alpha"),
        ("--seed 99999999999", "seed must be below"),
        ("--seed 1 stray", "'stray' belongs to no flag"),
    ],
)
def test_wrong_input_is_one_sentence(flags, message, model, here, capsys):
    write_csv(here / "train.csv")
    write_csv(here / "labels.csv", labels=("0", "2"))
    (here / "broken.json").write_text('{"sentence": "a", "label": "x"}\n{"sentence": \n')
    (here / "latin.csv").write_bytes("sentence,label\ncaf\xe9,x\n".encode("latin-1"))
    (here / "empty.csv").write_text("")
    (here / "more.txt").write_text("one\ntwo\n")
    (here / "broken.yaml").write_text("a: 1\nb: [1,\n")
    (here / "list.json").write_text("[1]")
    (here / "two.json").write_text('{"rdrop_alpha": [1, 2]}')
    (here / "multi.json").write_text('{"sentence": "a", "label": "x"}\n{"sentence": "b", "label": [1, 0]}\n')
    write_csv(here / "float.csv", labels=("0.5", "1.5"))
    (here / "odd.json").write_text('{"rdrop_apha": 1}')
    flags = flags.replace("MODEL", f"--model_name_or_path {model}")
    assert re.search(message, fails(capsys, *flags.split()))


def test_a_model_without_its_tokenizer(model, here, capsys):
    """transformers would make one that knows no word."""
    write_csv(here / "train.csv")
    shutil.copytree(model, here / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    message = fails(capsys, "--model_name_or_path", "bare", "--train_file", "train.csv")
    assert "bare: its tokenizer knows no words, because its files (tokenizer.json, vocab.txt) are missing" in message


def test_a_failure_later_keeps_the_checkpoints(model, here, monkeypatch, caplog):
    write_csv(here / "train.csv")
    flags = [
        "--model_name_or_path",
        str(model),
        "--train_file",
        "train.csv",
        "--use_cpu",
        "True",
        "--disable_tqdm",
        "True",
        "--per_device_train_batch_size",
        "4",
        "--num_train_epochs",
        "1",
        "--save_steps",
        "2",
        "--output_dir",
        "out",
    ]
    step = RDropTrainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise RuntimeError("out of memory")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RDropTrainer, "training_step", failing)
    with pytest.raises(RuntimeError):
        script.main(flags)
    assert (here / "out" / "checkpoint-2" / "model.safetensors").exists()
    assert "The run stopped. out/checkpoint-2 is saved; the same command goes on from there" in caplog.text


def test_help_groups_the_flags_and_explains_alpha(capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    order = [text.index(f"\n{title}:") for title in ("model", "data", "R-Drop")]
    assert order == sorted(order) and "--rdrop_alpha" in text
    assert "task loss + alpha / 2 * divergence" in " ".join(text.split())


def test_the_demo_writes_over_nothing(here, capsys):
    (here / "mine").mkdir()
    (here / "mine" / "train.csv").write_text("mine")
    assert "mine: holds files already" in fails(capsys, "--demo", "--output_dir", "mine")
    assert (here / "mine" / "train.csv").read_text() == "mine"


@pytest.mark.slow
def test_demo(here):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--demo"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((here / "runs" / "demo" / "report.json").read_text())
    accuracy = report["quantities"]["accuracy"]
    assert len(accuracy["baseline"]["values"]) == len(accuracy["rdrop"]["values"]) == 3
    assert min(accuracy["rdrop"]["values"]) > 55
    assert "baseline, seed 3" in done.stdout and "R-Drop (alpha 4) against its baseline, 3 seeds" in done.stdout
