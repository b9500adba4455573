"""A model with logits of any shape and a loss of its own, and the R-Drop terms of one batch."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import set_seed

from rdrop_trainer import Objective, StepSettings
from support import formulas

ALPHA = 3.0
IDS = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))
ATTENDED = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0], [1] * 3 + [0] * 3])


class Scorer(nn.Module):
    """Logits of any shape from a text, with a loss of its own; keeps the logits of each pass.

    Args:
        shape: makes the logits of hidden states (B, T, H).
        loss: of logits and labels.
        problem_type: of its configuration; the model has none without it.
    """

    def __init__(self, out, shape, loss, problem_type=None):
        super().__init__()
        set_seed(0)
        self.embed, self.dropout, self.out = nn.Embedding(40, 16), nn.Dropout(0.3), nn.Linear(16, out)
        self.shape, self.loss, self.seen = shape, loss, []
        if problem_type:
            self.config = SimpleNamespace(problem_type=problem_type)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.shape(self.out(self.dropout(self.embed(input_ids))))
        if self.training:
            self.seen.append(logits.detach().double())
        return {"loss": self.loss(logits, labels), "logits": logits}


def terms_of(model, batch, settings=None, **training):
    """The terms of one batch, and the logits of both passes in float64."""
    model.train()
    objective = Objective.of(model, [batch], **training)
    model.seen.clear()
    settings = StepSettings(alpha=ALPHA, forward_mode="sequential") if settings is None else settings
    terms, _ = objective(model, batch, objective.window([batch]), settings)
    return terms, model.seen, objective


def bernoulli(passes, counted):
    """Sum over all entries that count."""
    a, b = (z[counted] for z in passes)
    return formulas.pair_divergence(a, b, "multi_label")


def rows(z):
    return z.mean(1)


def tokens(z):
    return z


def bce(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, labels.float().view_as(logits))


def is_close(got, want):
    return got.item() == pytest.approx(want.item(), rel=1e-5)
