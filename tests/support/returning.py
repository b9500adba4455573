"""A model that returns what a test says, and the R-Drop terms of one batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import set_seed

from rdrop_trainer import Objective, StepSettings
from support import formulas

ALPHA = 3.0
IDS = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))
TAGS = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(1))
TAGS[1, 4:] = TAGS[2, 2:] = -100
KEPT = TAGS != -100
TOKENS = {"input_ids": IDS, "labels": TAGS}


class Returning(nn.Module):
    """Keeps the logits of its passes.

    Args:
        out: how many logits.
        returned: what it returns of logits, hidden states and labels.
        pooled: predictions for rows.
    """

    def __init__(self, out, returned, pooled=False):
        super().__init__()
        set_seed(0)
        self.embed, self.dropout, self.out = nn.Embedding(40, 16), nn.Dropout(0.3), nn.Linear(16, out)
        self.returned, self.pooled, self.seen = returned, pooled, []

    def forward(self, input_ids, labels=None, attention_mask=None):
        hidden = self.dropout(self.embed(input_ids))
        hidden = hidden.mean(1) if self.pooled else hidden
        logits = self.out(hidden)
        self.seen.append(logits.detach().double())
        return self.returned(logits, hidden, labels)


def terms_of(model, batch, count=None, **training):
    model.train()
    objective = Objective.of(model, [batch], **training)
    model.seen.clear()
    window = objective.window([batch])
    terms, _ = objective(model, batch, window, StepSettings(alpha=ALPHA, forward_mode="sequential"), count)
    return terms, model.seen, objective


def divergence(passes, problem="single_label"):
    """Mean over the rows of logits (N, C)."""
    return sum(formulas.pair_divergence(a, b, problem) for a, b in zip(*passes, strict=True)) / len(passes[0])


def is_close(got, want):
    return got.item() == pytest.approx(want.item(), rel=1e-5)


def token_loss(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def shifted(z, h, y):
    return {"loss": token_loss(z[:, :-1], y[:, 1:]), "logits": z}
