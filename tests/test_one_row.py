"""Classifiers over decoders without a padding token take batches of one row alone: the passes run one after another."""

import logging

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    default_data_collator,
    set_seed,
)

from rdrop_trainer import RDropTrainer
from rdrop_trainer.objective import inspect, passes
from support import tiny, zoo

SIZES = {"vocab_size": 40, "num_labels": 4, "pad_token_id": None}
DECODERS = {
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, **SIZES)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**zoo.DECODER, attention_dropout=0.3, **SIZES)),
}


class Weighted(RDropTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, torch.arange(1.0, 5.0, device=labels.device))
        return (loss, outputs) if return_outputs else loss


class Wrapper(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def trained(build, tmp_path, cls=RDropTrainer, **arguments):
    set_seed(0)
    trainer = tiny.trainer(
        build(), tiny.dataset(rows=4), tmp_path, cls, data_collator=default_data_collator, processing_class=None,
        logging_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2, **arguments,
    )  # fmt: skip
    trainer.train()
    return tiny.weights(trainer.model), [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("cls", [RDropTrainer, Weighted])
@pytest.mark.parametrize("name", [*DECODERS, "wrapped"])
def test_they_train_as_in_sequential_mode(name, cls, tmp_path, caplog):
    build = DECODERS.get(name, lambda: Wrapper(DECODERS["gpt2"]()))
    logging.getLogger("transformers").propagate = True
    passes.logger.warning_once.cache_clear()
    weights, logs = trained(build, tmp_path, cls)
    assert sum("no padding token" in message for message in caplog.messages) == 1
    expected, expected_logs = trained(build, tmp_path, cls, rdrop_forward_mode="sequential")
    assert tiny.identical(weights, expected) and all(log["divergence"] > 0 for log in logs)
    assert [log["task_loss"] for log in logs] == [log["task_loss"] for log in expected_logs]


def test_others_are_repeated_still():
    """A padding token, another head, or several rows, which the model itself refuses."""
    one = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = DECODERS["gpt2"]()
    padded.config.pad_token_id = 0
    for model in (padded, tiny.bert(), zoo.build("gpt2")):
        assert len(passes.run_passes(model, one, 2, "concat").runs) == 1
    with pytest.raises(ValueError, match="no padding token"):
        passes.run_passes(DECODERS["gpt2"](), {k: v.repeat(2, 1) for k, v in one.items()}, 2, "concat")


def test_a_training_looks_through_its_model_once(tmp_path, monkeypatch):
    looks = []
    for module in (inspect, passes):
        monkeypatch.setattr(module, "takes_one_row", lambda model: looks.append(model) or False)
    trained(tiny.bert, tmp_path)
    assert len(looks) == 1
