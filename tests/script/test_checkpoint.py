"""What is loaded to be trained: the type of the weights, and heads for other labels."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rdrop_trainer import trainer
from rdrop_trainer.glue.tasks import get_task
from rdrop_trainer.script.arguments import ModelArguments
from rdrop_trainer.script.checkpoint import load_checkpoint
from rdrop_trainer.script.cost import peak_memory
from support.runs import run, write_csv


@pytest.fixture
def half(model, tmp_path):
    """The model, stored in half precision, with a head for three labels of its own."""
    config = AutoConfig.from_pretrained(model, num_labels=3)
    stored = AutoModelForSequenceClassification.from_pretrained(model, config=config).bfloat16()
    stored.save_pretrained(tmp_path / "half")
    for path in model.glob("*token*"):
        (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "half"


@pytest.mark.parametrize(
    "flags, dtype", [("", torch.float32), ("--bf16", torch.float32), ("--dtype auto", torch.bfloat16)]
)
def test_checkpoints_in_half_precision_are_trained_in_float32(flags, dtype, half, here, caplog):
    """At 2e-5 most weights in bfloat16 would never change."""
    logging.getLogger("transformers").propagate = True
    trainer.logger.warning_once.cache_clear()
    write_csv(here / "a.csv")
    assert run(half, f"--train_file a.csv --do_train --learning_rate 2e-5 --output_dir out {flags}") == 0
    before = AutoModelForSequenceClassification.from_pretrained(half, num_labels=2, ignore_mismatched_sizes=True)
    after = AutoModelForSequenceClassification.from_pretrained(here / "out")
    assert after.dtype == dtype
    name = "bert.encoder.layer.0.attention.self.query.weight"
    kept = (before.get_parameter(name).float() == after.get_parameter(name).float()).float().mean()
    assert kept < 0.05 if dtype == torch.float32 else kept > 0.5
    assert any("Trainable weights are in torch.bfloat16" in m for m in caplog.messages) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("task", ["mnli", "stsb", "mrpc"])
def test_a_head_that_is_said_to_be_replaced_is_replaced(task, half, caplog):
    """Also one with as many labels, of other names (three of natural language inference for three stars, say)."""
    stored = AutoModelForSequenceClassification.from_pretrained(half, dtype=torch.float32)
    names = {0: "one star", 1: "two stars", 2: "three stars"}
    stored.config.id2label, stored.config.label2id = names, {name: i for i, name in names.items()}
    stored.save_pretrained(half)
    model, _, _ = load_checkpoint(ModelArguments(str(half)), get_task(task), will_train=True)
    same = [torch.equal(a, b) for a, b in zip(model.bert.parameters(), stored.bert.parameters(), strict=True)]
    assert all(same) and model.num_labels == {"mnli": 3, "stsb": 1, "mrpc": 2}[task]
    if task == "mnli":
        assert (model.classifier.weight != stored.classifier.weight).all()


def test_memory_is_that_of_the_device_of_the_run():
    """A machine may have a GPU that a run does not use."""
    found = peak_memory(torch.device("cpu"))
    assert found is None or (found["of"] == "process" and found["bytes"] > 2**20)
