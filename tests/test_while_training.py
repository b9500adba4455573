"""What is known of a model while it trains: whether it does, and noise that ends or pauses."""

import logging

import pytest
import torch
from torch import nn
from transformers import SwinConfig, Trainer, TrainerCallback

from rdrop_trainer import trainer
from support import tiny


class Wrapper(nn.Module):
    """Its `train` reaches its part alone, so its own flag stays as it was set."""

    def __init__(self, flag):
        super().__init__()
        self.inner, self.config = tiny.bert(dropout=0.3), tiny.bert().config
        self.training = flag

    def train(self, mode=True):
        self.inner.train(mode)
        return self

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


@pytest.mark.parametrize("flag", [True, False])
def test_the_trainer_knows_whether_it_trains(flag, tmp_path):
    arguments = {"eval_dataset": tiny.dataset(), "eval_strategy": "epoch", "logging_steps": 1, "learning_rate": 0.0}
    model = Wrapper(flag)
    run = tiny.trainer(model, tiny.dataset(), tmp_path, **arguments)
    run.train()
    logs = run.state.log_history
    assert all(entry["divergence"] > 0 for entry in logs if "loss" in entry)
    [loss] = [entry["eval_loss"] for entry in logs if "eval_loss" in entry]
    expected = tiny.trainer(model.inner, tiny.dataset(), tmp_path, Trainer, eval_dataset=tiny.dataset()).evaluate()
    assert loss == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_noise_that_ends_is_said_once(tmp_path, caplog):
    class Ends(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None)
                model.config.attention_probs_dropout_prob = 0.0
                for module in model.modules():
                    if hasattr(module, "attention_dropout"):
                        module.attention_dropout = 0.0

    logging.getLogger("transformers").propagate = True
    trainer.logger.warning_once.cache_clear()
    run = tiny.trainer(
        tiny.bert(dropout=0.3), tiny.dataset(), tmp_path, callbacks=[Ends()], logging_steps=1, num_train_epochs=3,
        per_device_train_batch_size=4, rdrop_forward_mode="sequential",
    )  # fmt: skip
    run.train()
    divergences = [entry["divergence"] for entry in run.state.log_history if "divergence" in entry]
    assert all(divergences[:2]) and not any(divergences[2:])
    assert sum("divergence is exactly 0" in message for message in caplog.messages) == 1


class StochasticDepth(nn.Module):
    """Leaves out a layer for half of the rows, by chance also for the same ones in all passes."""

    def __init__(self):
        super().__init__()
        self.config = SwinConfig(drop_path_rate=0.5)
        self.embed, self.layer, self.out = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embed(input_ids).mean(1)
        kept = torch.rand(len(hidden), 1, device=hidden.device) < (0.5 if self.training else 1.0)
        logits = self.out(hidden + kept * self.layer(hidden))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_noise_that_pauses_by_chance_is_not_said(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    trainer.logger.warning_once.cache_clear()
    run = tiny.trainer(
        StochasticDepth(), tiny.dataset(), tmp_path, logging_steps=1, per_device_train_batch_size=1,
        rdrop_forward_mode="sequential",
    )  # fmt: skip
    run.train()
    divergences = [entry["divergence"] for entry in run.state.log_history if "divergence" in entry]
    assert any(divergences) and not all(divergences[-6:])
    assert "divergence is exactly 0" not in caplog.text
    run = tiny.trainer(StochasticDepth(), tiny.dataset(), tmp_path, logging_steps=1, per_device_train_batch_size=12)
    run.model.config.drop_path_rate = 0.0  # so that nothing tells of the noise but the divergence
    run.train()
    assert "divergence is exactly 0" not in caplog.text
