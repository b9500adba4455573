"""A model without noise, or whose noise does not reach its predictions, has no R-Drop, which is said."""

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from support import tiny


def test_a_model_without_dropout_stops_with_the_settings_that_are_zero(tmp_path):
    trainer = tiny.trainer(tiny.bert(dropout=0.0), tiny.dataset(), tmp_path)
    with pytest.raises(ValueError, match="hidden_dropout_prob, attention_probs.*rdrop_dropout=0.1.*set_dropout"):
        trainer.train()
    allowed = tiny.trainer(
        tiny.bert(dropout=0.0), tiny.dataset(), tmp_path, rdrop_allow_deterministic=True, logging_steps=1
    )
    allowed.train()
    assert max(tiny.logged(allowed, "divergence")) < 1e-9


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_stock_modernbert_has_no_noise(mode, tmp_path):
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    model = ModernBertForSequenceClassification(ModernBertConfig(**tiny.SIZES, **special, num_labels=4))
    trainer = tiny.trainer(model, tiny.dataset(), tmp_path, rdrop_forward_mode=mode)
    with pytest.raises(ValueError, match="no active dropout.*attention_dropout.*embedding_dropout"):
        trainer.train()


class DeafDropout(BertForSequenceClassification):
    """Has dropout that reaches nothing."""

    def __init__(self, config):
        super().__init__(config)
        self.idle = nn.Dropout(0.5)


def test_dropout_that_never_reaches_the_predictions_stops(tmp_path):
    model = DeafDropout(tiny.bert(dropout=0.0).config)
    trainer = tiny.trainer(model, tiny.dataset(rows=32), tmp_path, num_train_epochs=8)
    with pytest.raises(ValueError, match=r"after 20 R-Drop steps.*dropout 0.5 \(idle\)"):
        trainer.train()
    assert trainer.state.global_step == 19


class ZeroInit(nn.Module):
    """As LoRA: dropout in front of a matrix that starts as zeros."""

    def __init__(self):
        super().__init__()
        self.dropout, self.b = nn.Dropout(0.5), nn.Parameter(torch.zeros(16))

    def forward(self, hidden):
        return hidden + self.dropout(hidden) * self.b


def test_dropout_in_front_of_zeros_may_start_late(tmp_path):
    """With accumulation and a learning-rate warm-up, the passes are identical for some micro-batches of two steps."""
    model = tiny.bert(dropout=0.0)
    model.dropout = ZeroInit()
    trainer = tiny.trainer(model, tiny.dataset(rows=64), tmp_path, per_device_train_batch_size=4, learning_rate=0.1,
                           gradient_accumulation_steps=2, warmup_steps=4, logging_steps=1)  # fmt: skip
    trainer.train()
    divergences = tiny.logged(trainer, "divergence")
    assert divergences[0] == 0 and divergences[-1] > 0


def test_noise_that_is_no_dropout_is_noise(tmp_path):
    """Tiny Gaussian noise, in bfloat16: no dropout is active, and the passes are nearly but not bit-identical."""

    class Gaussian(nn.Module):
        def forward(self, hidden):
            return hidden + 0.02 * torch.randn_like(hidden)

    model = tiny.bert(dropout=0.0).to(torch.bfloat16)
    model.dropout = Gaussian()
    tiny.trainer(model, tiny.dataset(), tmp_path).train()


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_concat_finds_no_noise_whatever_the_rounding(rows, tmp_path):
    trainer = tiny.trainer(tiny.bert(dropout=0.0), tiny.dataset(rows=rows), tmp_path, per_device_train_batch_size=rows)
    with pytest.raises(ValueError, match="no active dropout"):
        trainer.train()
