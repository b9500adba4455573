"""Only whole checkpoints are resumed from: half-written ones are recognised, and the one before is used."""

import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, TrainerCallback
from transformers import BertForSequenceClassification as Sequence
from transformers import BertForTokenClassification as Tokens

from rdrop_trainer.reliability.checkpoints import other_model
from rdrop_trainer.reliability.resuming import checkpoint_fault, last_whole_checkpoint
from support import tiny, zoo

SETTINGS = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with the checkpoints 2, 4 and 6, and its final weights."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny.trainer(tiny.bert(dropout=0.2), tiny.dataset(), folder, **SETTINGS)
    trainer.train()
    return folder, tiny.weights(trainer.model)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "config.json")


def damages():
    for file in FILES[:-1]:
        for share in (0, 0.01, 0.5, 0.99):
            yield file, share
    yield "optimizer.pt", None
    yield "config.json", 0
    yield "trainer_state.json", 0
    yield "trainer_state.json", 0.9
    yield "trainer_state.json", None


@pytest.mark.parametrize("file, share", list(damages()))
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(file, share, folder, caplog):
    damaged = folder / "checkpoint-6" / file
    damaged.unlink() if share is None else cut(damaged, share)
    fault = checkpoint_fault(damaged.parent)
    assert file in fault
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(folder, warn=True) == folder / "checkpoint-4"
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"{damaged.parent} is not whole: {fault}; going on from {folder / 'checkpoint-4'}."


def test_whole_checkpoints_are_whole(folder, caplog):
    assert [checkpoint_fault(path) for path in folder.glob("checkpoint-*")] == [None] * 3
    (folder / "checkpoint-10-copy").mkdir()  # somebody's, not a step's
    assert last_whole_checkpoint(folder, warn=True) == folder / "checkpoint-6"
    assert not caplog.records
    assert last_whole_checkpoint(folder / "nowhere") is None


class Start(TrainerCallback):
    """Notes the step at which training begins, and its learning rate."""

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.step, (self.rate, *_) = state.global_step, lr_scheduler.get_last_lr()


def test_resuming_goes_on_from_the_last_whole_checkpoint(folder, finished):
    cut(folder / "checkpoint-6" / "optimizer.pt", 0.5)
    (folder / "checkpoint-8").mkdir()
    start = Start()
    trainer = tiny.trainer(tiny.bert(dropout=0.2), tiny.dataset(), folder, callbacks=[start], **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    assert start.step == 4
    assert tiny.identical(tiny.weights(trainer.model), finished[1])
    assert checkpoint_fault(folder / "checkpoint-6") is None  # written anew


@pytest.mark.parametrize("share", [None, 0, 0.9])
def test_half_written_checkpoints_do_not_crowd_out_whole_ones(share, folder, monkeypatch):
    """All folders of a mounted object store have the same time, so the step numbers tell which is the newest."""
    state = folder / "checkpoint-6" / "trainer_state.json"
    state.unlink() if share is None else cut(state, share)
    monkeypatch.setattr("os.path.getmtime", lambda path: 0.0)
    (folder / "checkpoint-mine").mkdir()  # by a name that `Trainer` never gives
    settings = SETTINGS | {"save_steps": 5, "save_total_limit": 1, "max_steps": 5}
    trainer = tiny.trainer(tiny.bert(dropout=0.2), tiny.dataset(), folder, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-mine"}
    assert checkpoint_fault(folder / "checkpoint-5") is None


def test_weights_that_a_checkpoint_lacks_are_named(tmp_path, caplog):
    """As `Trainer` does, where they are not there under other names."""
    logging.getLogger("transformers").propagate = True
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path)
    weights = {key: value for key, value in trainer.model.state_dict().items() if key != "classifier.bias"}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    trainer._load_from_checkpoint(str(tmp_path))
    assert "missing keys" in caplog.text and "classifier.bias" in caplog.text


def test_what_cannot_be_resumed_from_says_why(folder, tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), folder, **SETTINGS)
    (folder / "checkpoint-6" / "trainer_state.json").unlink()
    with pytest.raises(
        ValueError, match="Can't find a valid checkpoint at .*checkpoint-6: it has no trainer_state.json"
    ):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    with pytest.raises(ValueError, match="Can't find a valid checkpoint at .*nowhere: there is no such folder"):
        trainer.train(resume_from_checkpoint="nowhere")
    with pytest.raises(ValueError, match="at True: there is no such folder. The last whole one is .*checkpoint-4.$"):
        trainer.train(resume_from_checkpoint="True")  # as it comes from a command line
    for step in (2, 4):
        cut(folder / f"checkpoint-{step}" / "model.safetensors", 0.5)
    with pytest.raises(ValueError, match="checkpoint-4: .* has no whole one.$"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("by", ["path", "folder"])
def test_without_an_optimizer_one_goes_on_knowingly(by, folder, caplog):
    for step in (2, 4, 6):
        (folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    checkpoint, start = str(folder / "checkpoint-4") if by == "path" else True, Start()
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), folder, callbacks=[start], **SETTINGS)
    with pytest.raises(ValueError, match="it has no optimizer.pt" if by == "path" else "none is whole"):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.args.save_only_model = True
    cut(folder / "checkpoint-6" / "model.safetensors", 0.5)
    with pytest.raises(ValueError, match="its model.safetensors is cut short"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert "checkpoint-4: it has no optimizer.pt" in caplog.text and "the optimizer starts afresh" in caplog.text
    assert trainer.state.global_step == 6
    assert (start.step, start.rate) == (4, pytest.approx(5e-5 * (1 - 4 / 6)))  # the schedule goes on


@pytest.mark.parametrize(
    "cls, changes, what, evidence",
    [
        (
            Sequence,
            {"num_labels": 3},
            "a model of 4 labels, and this one has 3",
            "classifier.weight is 4 x 16 there, 3 x",
        ),
        (
            Sequence,
            {"hidden_size": 8},
            "a model of another size",
            "word_embeddings.weight is 40 x 16 there, 40 x 8 here",
        ),
        (Sequence, {"num_hidden_layers": 2}, "a model of another size", "it has no bert.encoder.layer.1."),
        (Sequence, {"num_hidden_layers": 0}, "a model of another size", "it has bert.encoder.layer.0."),
        (BertForMaskedLM, {}, "a BertForSequenceClassification, and this is a BertForMaskedLM", "it has no cls."),
        (
            Tokens,
            {},
            "a BertForSequenceClassification, and this is a BertForTokenClassification",
            "it has bert.pooler.",
        ),
    ],
)
def test_the_checkpoint_of_another_model_is_refused(cls, changes, what, evidence, finished, tmp_path):
    model = cls(BertConfig(**{**tiny.SIZES, "num_labels": 4, **changes}))
    trainer = tiny.trainer(model, tiny.dataset(), tmp_path, **SETTINGS)
    with pytest.raises(ValueError) as error:
        trainer.train(resume_from_checkpoint=str(finished[0] / "checkpoint-4"))
    said = str(error.value)
    assert f"checkpoint-4: it holds {what} (" in said and evidence in said and len(said) < 500


class Renamed(Sequence):
    """The same weights under a class of another name."""


def test_a_checkpoint_of_the_same_weights_is_taken(finished, tmp_path):
    checkpoint, settings = finished[0] / "checkpoint-4", {**tiny.SIZES, "num_labels": 4}
    frozen = Sequence(BertConfig(**settings))
    frozen.teacher = torch.nn.Linear(2, 2).requires_grad_(False)  # need not be saved
    for model in (tiny.bert(dropout=0.4), Renamed(BertConfig(**settings)), frozen, torch.nn.Linear(2, 2)):
        assert other_model(checkpoint, model) is None
    assert other_model(finished[0] / "nowhere", tiny.bert()) is None
    older = {**tiny.bert().state_dict(), "bert.embeddings.position_ids": torch.arange(4)}  # of older transformers
    tiny.bert().save_pretrained(tmp_path / "older", state_dict=older)
    save_file({"ema.weight": torch.ones(2)}, tmp_path / "older" / "model_ema.safetensors")  # of a callback
    assert other_model(tmp_path / "older", tiny.bert()) is None
    for name in zoo.CASES:  # some tie weights, others are saved under other names
        zoo.build(name).save_pretrained(tmp_path / name)
        model = zoo.build(name)
        assert other_model(tmp_path / name, model) is None
        model.base_model.requires_grad_(False)
        assert other_model(tmp_path / name, model) is None


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(folder, monkeypatch):
    """The state file of an earlier run would mark a mixture of both runs as whole."""
    faults, save = {}, torch.save

    def spy(content, file, *args, **kwargs):
        faults[file] = checkpoint_fault(os.path.dirname(file))
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", spy)
    tiny.trainer(tiny.bert(), tiny.dataset(), folder, **SETTINGS).train()
    assert all(str(folder / f"checkpoint-{step}" / "optimizer.pt") in faults for step in (2, 4, 6))
    assert all("trainer_state.json" in fault for fault in faults.values())
