"""Pushes while a training goes on: none ends it, each is of its own step, and the next card knows its base."""

import pytest
import torch
from safetensors.torch import load
from transformers import TrainerCallback

from rdrop_trainer.hub import (
    load_checkpoint,
)
from support import tiny
from support.pushing import REPO, trainer_of, written

# ---- Nothing about a card or a push ends a training ----


def per_class(predictions):
    """Metrics as seqeval gives them, and a list of one a class."""
    return {"LOC": {"f1": 0.25, "number": 3}, "overall_f1": 0.5, "f1_each": [0.5, 1.0], "note": "fine"}


def test_metrics_that_are_no_numbers(ada, tmp_path):
    trainer = trainer_of(tmp_path, eval_strategy="epoch", compute_metrics=per_class)
    trainer.train()
    trainer.push_to_hub()
    card = written(ada)["README.md"].decode()
    for name, value in (("LOC_f1", "0.2500"), ("overall_f1", "0.5000"), ("f1_each_1", "1.0000")):
        assert f"| {name} | {value} |" in card
    (result,) = ada.card(REPO)["model-index"][0]["results"]
    scores = {metric["name"] for metric in result["metrics"]}
    assert scores == {"LOC_f1", "LOC_number", "overall_f1", "f1_each_0", "f1_each_1"}


@pytest.mark.parametrize("error", [TypeError("no card"), OSError("no room"), KeyError("name")])
def test_a_card_that_cannot_be_made(ada, tmp_path, monkeypatch, caplog, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("rdrop_trainer.hub.publishing.rdrop_card", fails)
    trainer = trainer_of(tmp_path, hub_strategy="every_save")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "README.md").write_text("# Of another run")
    trainer.train()
    trainer.push_to_hub()
    assert trainer.state.global_step > 0 and "model.safetensors" in written(ada)
    assert "README.md" not in written(ada)
    assert f"README.md could not be written: {type(error).__name__}" in caplog.text


@pytest.mark.parametrize("where", ["push_checkpoint", "read_checkpoint"])
def test_errors_of_every_kind_while_pushing(ada, tmp_path, monkeypatch, caplog, where):
    def fails(*args, **kwargs):
        raise RuntimeError("of the client's own")

    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(f"rdrop_trainer.hub.publishing.{where}", fails)
    trainer.train()
    trainer.save_model()
    trainer._finish_current_push()
    assert trainer.state.global_step > 0 and "of the client's own" in caplog.text


# ---- Pushes in order, each from its own copy ----


def test_always_pushing_pushes_each_step_in_order(ada, tmp_path):
    weights = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model, **kwargs):
            weights[state.global_step] = tiny.weights(model)

    ada.delay("preupload", 0.6)  # the first waits, and the others behind it
    trainer = trainer_of(
        tmp_path, save_strategy="steps", save_steps=1, max_steps=4, save_total_limit=1, learning_rate=0.01,
        hub_always_push=True, callbacks=[Keep()],
    )  # fmt: skip
    trainer.train()
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(7.0)
    trainer.push_to_hub()
    commits = ada.commits(REPO)[:-1]
    titles = [f"Training in progress, step {step}" for step in (1, 2, 3, 4)]
    assert [commit.title for commit in reversed(commits)] == [*titles, "End of training"]
    for commit, (step, expected) in zip(list(reversed(commits))[:-1], weights.items(), strict=True):
        assert tiny.identical(load(ada.files(REPO, commit.sha)["model.safetensors"]), expected), step
    assert (load(written(ada)["model.safetensors"])["classifier.bias"] == 7).all()
    assert not list((tmp_path / "run").glob(".push-*"))


def test_what_a_killed_run_left_goes(ada, tmp_path):
    left = tmp_path / "run" / ".push-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("x")
    trainer_of(tmp_path)
    assert not left.exists()


# ---- The base model of what was loaded ----


def test_the_base_of_a_loaded_checkpoint_is_in_the_next_card(there, tmp_path):
    model = load_checkpoint(REPO).model
    assert model.config._name_or_path == model.name_or_path == REPO
    trainer = tiny.trainer(
        model, tiny.dataset(), tmp_path / "next", push_to_hub=True, hub_model_id="ada/next", hub_strategy="end"
    )
    trainer.train()
    trainer.push_to_hub()
    assert there.card("ada/next")["base_model"] == REPO
    assert f"[{REPO}](https://huggingface.co/{REPO})" in there.files("ada/next")["README.md"].decode()


def test_the_base_of_an_adapter_is_its_base(there, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load_checkpoint(REPO).model, peft.LoraConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    there.repo("ada/adapter", {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()})
    loaded = load_checkpoint("ada/adapter").model
    assert loaded.get_base_model().config._name_or_path == loaded.peft_config["default"].base_model_name_or_path == REPO
