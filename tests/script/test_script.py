"""run_glue_rdrop.py as a user runs it: real files in, results, leaderboard files and clear errors out."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from support import SCRIPT
from support.device import USE_CPU
from support.runs import fails, make_cola, results, run, script, write_csv, write_json, write_tsv

ALL = "--do_train --do_eval --do_predict --output_dir out"

# ---- Whole runs ----


def test_glue_from_a_folder(model, here, capsys):
    make_cola(here / "glue_data" / "CoLA")
    assert run(model, "--task_name CoLA --data_dir glue_data --rdrop_alpha 2", ALL) == 0
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
    assert "eval_matthews_correlation" in output and "\nprocesses 1\n" in output
    following = output.split("next      ")[1].strip()
    assert following.endswith("--rdrop_alpha 0 --output_dir out-baseline")


def next_command(capsys):
    """The last one printed."""
    return capsys.readouterr().out.rpartition("next      ")[2].strip()


def execute(command):
    program, path, *flags = shlex.split(command)
    assert (program, path) == ("python", str(SCRIPT))
    return script.main(flags)


@pytest.mark.parametrize("source", ["flags", "recipe"])
def test_the_next_command_runs(source, model, here, capsys):
    """The baseline of a semi-supervised R-Drop run, whose flags or recipe it must not follow in everything."""
    write_csv(here / "a file.csv")
    (here / "more.txt").write_text("one\ntwo\n")
    settings = {
        "model_name_or_path": str(model), "train_file": "a file.csv", "validation_file": "a file.csv",
        "unlabeled_file": "more.txt", "max_unlabeled_samples": 1, "use_cpu": USE_CPU, "num_train_epochs": 1,
        "save_strategy": "no", "overwrite_output_dir": True, "resume_from_checkpoint": "auto", "output_dir": "out",
    }  # fmt: skip
    (here / "recipe.json").write_text(json.dumps(settings))
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    secret = ["--hub_token", "hf_secret"]
    assert script.main([*(flags if source == "flags" else ["recipe.json"]), *secret]) == 0
    command = next_command(capsys)
    assert "hf_secret" not in command
    assert execute(command) == 0
    assert results("out-baseline")["settings"]["rdrop_alpha"] == 0
    assert results("out-baseline")["settings"]["overwrite_output_dir"] is False
    assert "unlabeled" not in results("out-baseline")["rows"]


def test_the_next_command_after_an_evaluation(model, here, capsys):
    make_cola(here / "CoLA")
    cola = "--task_name cola --data_dir CoLA"
    assert run(model, cola, "--do_train --output_dir out") == 0
    capsys.readouterr()
    assert run("out", cola, "--do_eval --measure full --output_dir scores") == 0
    assert execute(next_command(capsys)) == 0
    assert (here / "scores-predict" / "CoLA.tsv").exists()
    assert run("out", cola, "--do_eval --do_predict --output_dir both") == 0
    (here / "CoLA" / "dev.tsv").rename(here / "CoLA" / "hidden")
    assert run("out", cola, "--do_predict --output_dir alone") == 0
    assert execute(next_command(capsys)) == 0  # trains, and evaluates nothing
    assert "train_loss" in results("alone-trained")["metrics"]
    write_csv(here / "dev.csv", labels=("unacceptable", "acceptable"))
    assert run("out", "--validation_file dev.csv --output_dir dev") == 0
    assert next_command(capsys).endswith("--help")


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_scores_and_files_equal_an_independent_computation(strategy, model, here):
    """MCC and predictions of a run against scikit-learn and the saved model called by hand, row by row."""
    from sklearn.metrics import matthews_corrcoef
    from transformers import AutoTokenizer

    make_cola(here / "CoLA", train=40)
    flags = (
        f"--task_name cola --data_dir . --learning_rate 5e-3 --num_train_epochs 4 --train_sampling_strategy {strategy}"
    )
    assert run(model, flags, ALL) == 0
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
    assert run(model, "--train_file train.csv --output_dir out") == 0
    (here / "test.csv").write_text("sentence\nthe film was fine\n这电影很糟糕\n", encoding="utf-8")
    write_csv(here / "one.csv", labels=("a",))
    assert run("out", "--test_file test.csv --validation_file one.csv --do_eval --do_predict --output_dir used") == 0
    (name,) = results("used")["predictions"]
    answers = [line.split("\t")[1] for line in Path(name).read_text("utf-8").splitlines()[1:]]
    assert len(answers) == 2 and set(answers) <= {"a", "A", "b"}


def test_minus_100_marks_an_unlabeled_row(model, here):
    write_csv(here / "train.csv", labels=("yes", "-100", "no"))
    assert run(model, "--train_file train.csv --output_dir out") == 0
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
    assert run(model, "--task_name mnli --data_dir MNLI", ALL) == 0
    metrics = results("out")["metrics"]
    assert 0 <= metrics["eval_accuracy"] <= 1 and 0 <= metrics["eval_mm_accuracy"] <= 1
    assert "eval_mm_loss" in metrics
    for name, n in (("MNLI-m.tsv", 4), ("MNLI-mm.tsv", 5)):
        lines = (here / "out" / name).read_text().splitlines()[1:]
        assert len(lines) == n and all(line.split("\t")[1] in labels for line in lines)
    # The second set is looked at before the training, too
    write_tsv(here / "MNLI" / "dev_mismatched.tsv", header, *rows(9, labeled=False))
    assert run(model, "--task_name mnli --data_dir MNLI --output_dir again --do_train --do_eval") == 2
    assert not (here / "again").exists()


def test_regression(model, here):
    rows = [(i, *"abcdef", f"the film {i}", "what a film", f"{i % 6}.5" if i % 6 < 5 else "5.0") for i in range(18)]
    header = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
    write_tsv(here / "STS-B" / "train.tsv", (*header, "score"), *rows)
    write_tsv(here / "STS-B" / "dev.tsv", (*header, "score"), *rows[:6])
    write_tsv(here / "STS-B" / "test.tsv", header, *(row[:-1] for row in rows[:4]))
    assert run(model, "--task_name stsb --data_dir . --measure full", ALL) == 0
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
    assert run(model, "--task_name tnews --data_dir . --dropout 0.3", ALL) == 0
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
    spaced = {"text": "叶老桂 在上海", "label": {"name": {"叶老桂": [[0, 2]]}}}
    write_json(here / "cluener" / "dev.json", [CLUENER, spaced])
    write_json(here / "cluener" / "test.json", [{"id": 0, "text": CLUENER["text"]}, {"id": 1, "text": "上海"}])
    write_json(here / "more.json", [{"text": "浙商银行在上海"}, {"text": CLUENER["text"]}])
    flags = "--task_name cluener --data_dir . --measure full --unlabeled_file more.json"
    assert run(model, flags, "--learning_rate 1e-2 --num_train_epochs 10 --rdrop_alpha 1", ALL) == 0
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
    files = "--train_file train.csv --validation_file dev.csv --unlabeled_file more.txt --output_dir out"
    assert run(model, files, "--text_columns review --label_column stars --rdrop_unlabeled_ratio 0.5") == 0
    found = results("out")
    assert found["rows"] == {"train": 24, "validation": 6, "unlabeled": 2}
    assert found["unlabeled_ratio"] == 0.5 and found["metrics"]["steps"] == 3
    assert "batches   0.5 unlabeled rows for each labeled one" in capsys.readouterr().out


def test_recipe_and_overriding_flags(model, here):
    write_csv(here / "train.csv")
    recipe = {
        "model_name_or_path": str(model), "train_file": "train.csv", "validation_file": "train.csv",
        "text_columns": ["sentence"], "rdrop_alpha": 3, "learning_rate": "1e-4", "use_cpu": USE_CPU,
        "num_train_epochs": 1, "save_strategy": "no", "output_dir": "out", "seed": 7, "disable_tqdm": True,
    }  # fmt: skip
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
    cola = "--task_name cola --data_dir ."
    assert run(model, cola, "--learning_rate 1e-3 --num_train_epochs 4 --output_dir straight") == 0
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
        assert run(name, cola, f"--do_eval --do_predict --output_dir {name}-out") == 0
        scores.append({k: v for k, v in results(f"{name}-out")["metrics"].items() if "loss" in k or "matthews" in k})
        files.append((here / f"{name}-out" / "CoLA.tsv").read_text())
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert files[0] == files[1] and len(set(files[0].splitlines()[1:])) > 1


def test_labels_that_do_not_fit(model, here, capsys):
    make_cola(here / "CoLA")
    write_csv(here / "abc.csv", labels=("a", "b", "c"))
    assert run(model, "--train_file abc.csv --output_dir abc") == 0
    message = fails(capsys, "--model_name_or_path abc --task_name cola --data_dir . --do_eval --output_dir x")
    assert "predicts other labels (a, b, c) than cola has (unacceptable, acceptable)" in message
    assert run("abc", "--task_name cola --data_dir . --do_train --output_dir again") == 0
    assert BertForSequenceClassification.from_pretrained("again").config.num_labels == 2


def test_public_test_set_is_scored(model, here):
    rows = [{"id": i, "sentence": f"电影{i}很精彩", "label": ("Negative", "Positive")[i % 2]} for i in range(10)]
    for name in ("train", "dev", "test_public"):
        write_json(here / "eprstmt" / f"{name}.json", rows)
    write_json(here / "eprstmt" / "test.json", [{"id": r["id"], "sentence": r["sentence"]} for r in rows])
    write_json(here / "eprstmt" / "unlabeled.json", rows)
    assert run(model, "--task_name eprstmt --data_dir . --do_train --do_predict --output_dir out") == 0
    found = results("out")
    assert "test_public_accuracy" in found["metrics"] and "unlabeled" not in found["rows"]
    assert [Path(p).name for p in found["predictions"]] == ["eprstmt_predict.json"]


def test_best_model_is_chosen_by_the_tasks_headline(model, here):
    make_cola(here / "CoLA")
    best = "--load_best_model_at_end --eval_strategy epoch --save_strategy epoch"
    learn = "--num_train_epochs 3 --learning_rate 5e-3"
    assert run(model, "--task_name cola --data_dir . --output_dir out", best, learn) == 0
    found = results("out")
    assert found["settings"]["metric_for_best_model"] == "matthews_correlation" and "train_loss" in found["metrics"]
    state = json.loads((here / "out" / "trainer_state.json").read_text())
    history = [entry["eval_matthews_correlation"] for entry in state["log_history"] if "eval_loss" in entry]
    assert found["metrics"]["eval_matthews_correlation"] == pytest.approx(max(history))


# ---- Help and demo ----


def test_help_groups_the_flags_and_explains_alpha(capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    order = [text.index(f"\n{title}:") for title in ("model", "data", "R-Drop")]
    assert order == sorted(order) and "--rdrop_alpha" in text
    assert "task loss + alpha / 2 * divergence" in " ".join(text.split())


def test_the_demo_says_where_it_cannot_write(here, capsys):
    (here / "runs").write_text("a file")
    assert f"is below {here / 'runs'}, which is a file" in fails(capsys, "--demo")


def test_the_demo_writes_over_nothing(here, capsys):
    (here / "mine").mkdir()
    (here / "mine" / "train.csv").write_text("mine")
    assert "mine: holds files already" in fails(capsys, "--demo --output_dir mine")
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
    assert "plain, seed 3" in done.stdout and "R-Drop (alpha 4) against its baseline, 3 seeds" in done.stdout
