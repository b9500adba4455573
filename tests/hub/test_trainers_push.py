"""Trainers that push: model and card of the right step, nothing leaked, and no training that dies over the Hub."""

import logging
import threading

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from rdrop_trainer import HubError, RDropMixin
from support import tiny
from support.pushing import REPO, pushed_card, scores_of, trainer_of, valid


def falling_accuracy():
    """A metric that is best after the first epoch."""
    values = iter([0.9, 0.5, 0.4, 0.3])
    return lambda predictions: {"accuracy": next(values)}


def test_a_trainer_pushes_model_and_card_and_nothing_else(ada, tmp_path):
    trainer = trainer_of(tmp_path, hub_token="hf_ada", rdrop_alpha=3.0, compute_metrics=lambda _: {"accuracy": 0.5})
    trainer.train()
    trainer.evaluate()
    commit = trainer.push_to_hub()
    assert set(ada.files(REPO)) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    card = pushed_card(ada)
    assert valid(card, ada) and card.data.r_drop["alpha"] == 3.0
    assert not [
        name for name, content in ada.files(REPO).items() if b"hf_ada" in content or str(tmp_path).encode() in content
    ]
    assert commit.oid == ada.commits(REPO)[0].sha
    # A push at each save, as `Trainer`'s default strategy asks for, and the last
    titles = [c.title for c in ada.commits(REPO)]
    assert titles[0] == "End of training" and "Training in progress, epoch 1" in titles
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trainer.model.cpu().parameters(), strict=True))


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_a_push_during_training_is_of_that_step(ada, tmp_path, strategy):
    """Neither its scores nor its weights are another step's, and no strategy sends the optimizer's state."""
    weights = {}

    class Wait(TrainerCallback):
        def on_save(self, args, state, control, model, **kwargs):
            trainer._finish_current_push()
            weights[state.global_step] = tiny.weights(model)

    trainer = trainer_of(
        tmp_path, eval_strategy="epoch", num_train_epochs=2, hub_strategy=strategy,
        compute_metrics=falling_accuracy(), callbacks=[Wait()], save_total_limit=1,
    )  # fmt: skip
    trainer.train()
    commits = [c for c in ada.commits(REPO) if c.title.startswith("Training in progress")]
    assert [c.title for c in commits] == ["Training in progress, epoch 2", "Training in progress, epoch 1"]
    for commit, (step, expected), accuracy in zip(reversed(commits), weights.items(), [0.9, 0.5], strict=True):
        files = ada.files(REPO, commit.sha)
        assert not [name for name in files if "/" in name or name.endswith((".pt", ".bin"))]
        assert tiny.identical(load(files["model.safetensors"]), expected), step
        assert set(scores_of(ModelCard(files["README.md"].decode())).values()) == {accuracy}


def test_the_best_checkpoint_is_pushed_with_its_own_scores(ada, tmp_path):
    trainer = trainer_of(
        tmp_path, eval_strategy="epoch", num_train_epochs=3, hub_strategy="end",
        load_best_model_at_end=True, metric_for_best_model="accuracy", compute_metrics=falling_accuracy(),
    )  # fmt: skip
    trainer.train()
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert set(scores_of(card).values()) == {0.9}
    assert "| unknown | eval | accuracy | 0.9000 |" in card.text and "0.4" not in card.text.split("## Model desc")[0]


def test_a_push_in_the_background_is_waited_for_before_its_files_change(ada, tmp_path):
    trainer = trainer_of(tmp_path, hub_strategy="end")
    ada.delay("preupload", 0.3)
    push = trainer.push_to_hub(blocking=False, commit_message="first")
    before = tiny.weights(trainer.model)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(7.0)
    trainer.push_to_hub(commit_message="second")
    first, second = (next(c for c in ada.commits(REPO) if c.title == title) for title in ("first", "second"))
    assert push.result().oid == first.sha
    assert tiny.identical(load(ada.files(REPO, first.sha)["model.safetensors"]), before)
    assert (load(ada.files(REPO, second.sha)["model.safetensors"])["classifier.bias"] == 7).all()


def test_a_push_goes_where_the_arguments_say(ada, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = trainer_of(tmp_path, hub_strategy="end", hub_token="hf_ada", hub_private_repo=True, hub_revision="v2")
    trainer.model.add_model_tags(["mine"])
    trainer.push_to_hub(tags="yours")
    assert set(ada.files(REPO)) == {".gitattributes"} and "model.safetensors" in ada.files(REPO, "v2")
    assert ada.repos["model", REPO].private
    assert {"r-drop", "mine", "yours"} <= set(ModelCard(ada.files(REPO, "v2")["README.md"].decode()).data.tags)
    del ada.repos["model", REPO]  # the push makes it anew, and as private
    trainer.push_to_hub()
    assert ada.repos["model", REPO].private


def test_a_base_trainer_is_handed_only_what_the_caller_gave(ada, tmp_path):
    """`init_hf_repo` takes a token alone before transformers 5.23, and so in trainers that were written for it."""

    class Old(Trainer):
        def init_hf_repo(self, token=None):
            super().init_hf_repo(token)

    class Pushes(RDropMixin, Old):
        pass

    arguments = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": "hf_ada"}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "run", Pushes, **arguments)
    assert ("model", REPO) in ada.repos
    with pytest.raises(HubError, match="private"):  # not left out in silence
        trainer.init_hf_repo(private=True)


def test_a_baseline_is_no_r_drop_checkpoint(ada, tmp_path):
    trainer = trainer_of(tmp_path, rdrop_alpha=0.0)
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert "r-drop" not in card.data.tags and card.data.r_drop["alpha"] == 0
    assert "plain fine-tuning" in card.text and valid(card, ada)


# ---- Faults ----


def test_a_refusal_comes_before_training(ada, tmp_path):
    with pytest.raises(HubError, match="ada/model cannot be pushed to: the token is missing, wrong"):
        trainer_of(tmp_path, hub_token="hf_wrong")
    with pytest.raises(HubError, match="eve/run cannot be pushed to: this account may not"):
        trainer_of(tmp_path, hub_model_id="eve/run")


def test_training_goes_on_while_the_hub_is_away(ada, tmp_path, caplog):
    ada.fail("*", status=503, times=None)
    trainer = trainer_of(tmp_path)
    assert "Training goes on" in caplog.text
    trainer.train()
    assert trainer.state.global_step > 0
    ada.faults.clear()
    trainer.push_to_hub()
    assert "model.safetensors" in ada.files(REPO)


def test_a_failed_push_at_save_model_does_not_end_the_script(ada, tmp_path, caplog):
    trainer = trainer_of(tmp_path, hub_strategy="end", hub_token="hf_ada")
    trainer.train()
    ada.fail("commit", status=503, times=None)
    with caplog.at_level(logging.ERROR):
        trainer.save_model()
    assert "python -m rdrop_trainer.hub push" in caplog.text and "hf_ada" not in caplog.text
    with pytest.raises(HubError, match="python -m rdrop_trainer.hub push"):
        trainer.push_to_hub()
    ada.faults.clear()
    trainer.push_to_hub()
    assert "model.safetensors" in ada.files(REPO)


def test_the_command_that_continues_is_the_end_of_what_is_said(ada, tmp_path, caplog):
    trainer = trainer_of(tmp_path)
    ada.fail("commit", status=403, times=None)
    trainer.train()
    for _ in range(200):  # it is said in the background
        said = [message for message in caplog.messages if "was not pushed" in message]
        threading.Event().wait(0 if said else 0.01)
    assert len(said) == 1 and said[0].startswith("Training goes on, but ")
    assert said[0].endswith(f"python -m rdrop_trainer.hub push {tmp_path / 'run'} {REPO}")
