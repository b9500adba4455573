"""run_glue_rdrop.py --push_to_hub against a local Hub, with data from it: what is pushed, and what its card says."""

import io
import json
import shlex
import time

import datasets
import pytest
from huggingface_hub import ModelCard

from rdrop_trainer import InputError
from rdrop_trainer.hub.__main__ import main as hub_command
from support import tiny
from support.runs import FAST, fails, make_cola, results, run, words

REPO = "ada/run"
PUSH = words("--push_to_hub --hub_model_id", REPO)


def glue_on_the_hub(hub):
    """`nyu-mll/glue` with a few rows of MNLI."""
    text = ["the cat sat", "on a mat", "a cat", "the mat"] * 2
    rows = {"premise": text, "hypothesis": text, "label": [0, 1, 2, 0] * 2, "idx": list(range(8))}
    labels = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"), "label": labels}
    made = datasets.Dataset.from_dict(rows, datasets.Features({**features, "idx": datasets.Value("int64")}))
    file = io.BytesIO()
    made.to_parquet(file)
    splits = ("train", "validation_matched", "validation_mismatched")
    paths = {split: f"mnli/{split}-00000-of-00001.parquet" for split in splits}
    listed = [{"split": split, "path": path} for split, path in paths.items()]
    card = f"---\nconfigs: {json.dumps([{'config_name': 'mnli', 'data_files': listed}])}\n---\n"
    return hub.repo("nyu-mll/glue", {"README.md": card, **dict.fromkeys(paths.values(), file.getvalue())}, "dataset")


def card_of(hub):
    return ModelCard(hub.files(REPO)["README.md"].decode())


def test_a_run_with_data_from_the_hub_is_pushed_once(model, here, ada, capsys):
    repo = glue_on_the_hub(ada)
    epochs = "--save_strategy epoch --eval_strategy epoch"
    assert run(model, "--task_name mnli --output_dir out", epochs, *PUSH) == 0
    assert [c.title for c in ada.commits(REPO)] == ["End of training", "initial commit"]
    sent = set(ada.files(REPO)) - {".gitattributes"}
    assert sent == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    card, found = card_of(ada), results("out")
    known = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert known == {
        ("validation_matched", "accuracy"): found["metrics"]["eval_accuracy"],
        ("validation_mismatched", "accuracy"): found["metrics"]["eval_mm_accuracy"],
    }
    for result in card.data.eval_results:
        assert (result.dataset_name, result.dataset_type) == ("GLUE MNLI", "nyu-mll/glue")
        assert (result.dataset_config, result.dataset_revision) == ("mnli", repo.resolve("main").sha)
        assert result.task_type == "text-classification"
    assert {"r-drop", "glue", "mnli", "text-classification"} <= set(card.data.tags) and card.data.language == "en"
    assert found["pushed"] == f"{ada.url}/{REPO}/commit/{ada.commits(REPO)[0].sha}" and found["push_error"] is None
    assert f"pushed    {found['pushed']}" in capsys.readouterr().out


def test_a_push_that_fails_loses_nothing(model, here, ada, capsys):
    make_cola(here / "CoLA")
    ada.fail("commit", status=503, times=None)
    everything = "--do_train --do_eval --do_predict"
    assert run(model, "--task_name cola --data_dir CoLA --output_dir out", everything, *PUSH, "--hub_token=hf_ada") == 3
    output = capsys.readouterr()
    found = results("out")
    assert "eval_matthews_correlation" in found["metrics"] and (here / "out" / "CoLA.tsv").exists()
    assert "HTTP 503" in found["push_error"] and "NOT: " in output.out and "hf_ada" not in output.out + output.err
    command = shlex.split(found["push_error"].rpartition("To go on: ")[2])
    assert command[:3] == ["python", "-m", "rdrop_trainer.hub"]
    ada.faults.clear()
    assert hub_command(command[3:]) == 0
    assert f"{REPO}/commit/{ada.commits(REPO)[0].sha}" in capsys.readouterr().out
    assert card_of(ada).data.r_drop["alpha"] == 4.0
    assert card_of(ada).data.eval_results[0].metric_value == found["metrics"]["eval_matthews_correlation"]
    sent = b"".join(ada.files(REPO).values())
    assert str(here).encode() not in sent and b"hf_ada" not in sent


@pytest.mark.parametrize("flags", ["--hub_token hf_wrong", "--hub_model_id eve/run", "--hub_model_id a//b"])
def test_what_cannot_be_pushed_is_said_before_training(model, here, ada, capsys, flags):
    make_cola(here / "CoLA")
    cola = "--task_name cola --data_dir CoLA --output_dir out"
    line = fails(capsys, "--model_name_or_path", model, *FAST, cola, *PUSH, flags)
    assert "cannot be pushed to" in line or "is no repository's name" in line
    assert not (here / "out").exists()


def test_a_folder_whose_name_the_hub_does_not_take(tmp_path, ada):
    message = "'推送': is no repository's name, .* It is that of the output folder; hub_model_id gives another"
    with pytest.raises(InputError, match=message):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "推送", push_to_hub=True)


def test_a_card_stands_in_the_folder_with_the_baseline_beside(model, here, hub):
    make_cola(here / "CoLA")
    cola = "--task_name cola --data_dir CoLA"
    # No baselines of this run
    for i, other in enumerate(("--seed 7", "--learning_rate 1e-3", "--max_eval_samples 3")):
        assert run(model, cola, f"--rdrop_alpha 0 --output_dir runs/{i}", other) == 0
    assert run(model, cola, "--output_dir runs/a-run") == 0
    assert run(model, cola, "--rdrop_alpha 0 --output_dir runs/baseline") == 0
    other = results("runs/a-run")  # its score is not to be taken for the baseline's
    other["metrics"]["eval_matthews_correlation"] = 9.0
    (here / "runs" / "a-run" / "all_results.json").write_text(json.dumps(other))
    other = results("runs/baseline")
    other["processes"], other["metrics"]["eval_matthews_correlation"] = 2, 9.0
    (here / "runs" / "a-wider-baseline").mkdir()
    (here / "runs" / "a-wider-baseline" / "all_results.json").write_text(json.dumps(other))
    other = results("runs/baseline")
    other["settings"]["rdrop_dropout"], other["metrics"]["eval_matthews_correlation"] = 0.3, 9.0
    (here / "runs" / "at-other-dropout").mkdir()
    (here / "runs" / "at-other-dropout" / "all_results.json").write_text(json.dumps(other))
    (here / "runs" / "broken").mkdir()
    (here / "runs" / "broken" / "all_results.json").write_text("[]")
    assert run(model, cola, "--output_dir runs/second") == 0
    assert "baseline" not in (here / "runs/a-run/README.md").read_text()
    card = (here / "runs/second/README.md").read_text()
    ours, theirs = (results(f"runs/{name}")["metrics"]["eval_matthews_correlation"] for name in ("second", "baseline"))
    assert f"| {ours:.4f} | {theirs:.4f} | {ours - theirs:+.4f} |" in card
    assert str(here) not in card and ModelCard(card).data.eval_results[0].dataset_revision is None


def test_scores_of_a_part_of_the_data_say_so(model, here, hub):
    make_cola(here / "CoLA")
    cola = "--task_name cola --data_dir CoLA --max_eval_samples 3"
    assert run(model, cola, "--output_dir out") == 0
    card = ModelCard((here / "out" / "README.md").read_text())
    assert {result.dataset_split for result in card.data.eval_results} == {"validation[:3]"}


def test_a_run_that_trains_nothing_tells_nothing_of_a_training(model, here, hub, capsys):
    make_cola(here / "CoLA")
    cola = "--task_name cola --data_dir CoLA"
    assert run(model, cola, "--rdrop_alpha 0 --output_dir base") == 0
    assert run("base", cola, "--do_eval --output_dir scores") == 0
    assert (here / "scores" / "all_results.json").exists() and not (here / "scores" / "README.md").exists()
    line = fails(capsys, "--model_name_or_path base", *FAST, cola, "--do_eval --output_dir pushed", *PUSH)
    assert "python -m rdrop_trainer.hub push" in line
    assert hub.requests == [] and not (here / "pushed").exists()


def test_own_data_have_no_name(model, here, hub):
    for name in ("train", "dev"):
        (here / f"{name}.csv").write_text("sentence,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(8)))
    assert run(model, "--train_file train.csv --validation_file dev.csv --output_dir out") == 0
    card = ModelCard((here / "out" / "README.md").read_text())
    assert [(r.dataset_name, r.dataset_type) for r in card.data.eval_results] == [("own data", "unknown")]
    assert json.dumps(card.data.to_dict()).find("csv") == -1


def test_a_hub_out_of_reach_is_asked_for_eight_seconds_and_said_once(model, here, hub, capsys, monkeypatch):
    """The cache would be used; the libraries would try for half a minute, file by file."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = fails(capsys, "--model_name_or_path", model, *FAST, "--task_name mrpc --output_dir out")
    assert line.startswith("run_glue_rdrop.py: error: the Hub could not be reached for nyu-mll/glue (mrpc)")
    assert waits == [1, 2, 4] and hub.requests == []
