"""What a run says of its model at its end: which weights it has, and how they are loaded."""

import pytest
from transformers.pipelines import SUPPORTED_TASKS

from rdrop_trainer.hub.model_kinds import AUTO_CLASSES, PIPELINES
from rdrop_trainer.report import FinishedRun
from rdrop_trainer.script.summary import scores_to_show
from support.runs import results, run, script, write_csv

STEPS = "--max_steps 6 --save_strategy steps --save_steps 2 --output_dir out --train_file a.csv --validation_file a.csv"


def test_the_summary_names_the_model_and_how_to_load_it(model, here, capsys):
    write_csv(here / "a.csv")
    best = "--load_best_model_at_end --eval_strategy steps --eval_steps 2 --learning_rate 5e-3"
    assert run(model, STEPS, best) == 0
    output, found = capsys.readouterr().out, results("out")
    chosen = found["best_checkpoint"]
    assert chosen["is_loaded"] and chosen["metric"] == "accuracy"
    assert chosen["score"] == pytest.approx(found["metrics"]["eval_accuracy"])
    said = f"{chosen['name']}, the best of the training by accuracy {chosen['score']:.4f}"
    assert f"model     out: the weights of {said}" in output
    lines = [line[10:] for line in output.splitlines() if line.startswith(("load  ", "or  "))]
    names = {}
    for line in lines:
        exec(line, names)
    assert names["model"].config.num_labels == 2 and names["predict"]("a good film")[0]["label"] in (
        "negative",
        "positive",
    )
    noise = found["noise"][0]
    assert f"noise     {noise}\n" in output and noise.startswith("dropout 0.1 (bert.embeddings.dropout, ")
    card = (here / "out" / "README.md").read_text()
    assert f"| noise | {noise} |" in card
    assert f"The weights are those of {said}." in card and 'pipeline("text-classification", ' in card
    assert FinishedRun.read("out").scored_step == chosen["step"]
    assert output.startswith("a: R-Drop with alpha 4") or "\na: R-Drop with alpha 4" in output


def test_weights_of_the_end_beside_a_best_checkpoint(model, here, capsys):
    write_csv(here / "a.csv")
    best = "--save_strategy best --eval_strategy steps --eval_steps 2 --metric_for_best_model accuracy"
    assert run(model, STEPS.replace("--save_strategy steps --save_steps 2", ""), best) == 0
    output, chosen = capsys.readouterr().out, results("out")["best_checkpoint"]
    assert not chosen["is_loaded"] and (here / "out" / chosen["name"]).is_dir()
    assert f"the weights of the end of the training (step 6); {chosen['name']}, the best" in output
    assert FinishedRun.read("out").scored_step is None
    assert script.main(["--model_name_or_path", "out", "--validation_file", "a.csv", "--output_dir", "again"]) == 0
    assert "model     " not in capsys.readouterr().out, "it trained none"


@pytest.mark.parametrize(
    "metric, shown",
    [(None, "accuracy f1"), ("f1", "f1 accuracy"), ("eval_loss", "loss accuracy f1"), ("mcc", "accuracy f1")],
)
def test_the_score_that_chooses_comes_first(metric, shown):
    found = {"metrics": {"eval_loss": 0.5, "steps": 9}, "headline": {"eval_accuracy": 0.25, "eval_f1": None}}
    scores = scores_to_show(found, metric)
    assert list(scores) == [f"eval_{name}" for name in shown.split()]
    assert scores.items() <= (found["metrics"] | found["headline"]).items()


def test_a_pipeline_is_named_where_transformers_has_one():
    assert PIPELINES == AUTO_CLASSES.keys() & SUPPORTED_TASKS.keys()
