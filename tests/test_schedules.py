"""Passes, schedules and unlabeled rows on sequence, token and seq2seq heads: every step's loss by the closed form."""

import pytest
import torch
from transformers import default_data_collator

from support import formulas, tiny, zoo
from support.device import USE_CPU

ROUNDING = 2e-6 if USE_CPU else 1e-4  # of a small divergence, which a GPU computes in float32


def rows_of(head, unlabeled=()):
    """Eight rows of one length, some without any label."""
    g = torch.Generator().manual_seed(1)
    rows = []
    for i in range(8):
        ids = torch.randint(5, 40, (6,), generator=g).tolist()
        row = {"input_ids": ids, "attention_mask": [1] * 4 + [0] * 2}
        if head == "single_label":
            row["labels"] = -100 if i in unlabeled else i % 4
        elif head == "token":
            labels = torch.randint(0, 5, (6,), generator=g).tolist()
            row["labels"] = [-100] * 6 if i in unlabeled else [-100, *labels[1 : 2 + i % 3], *[-100] * (4 - i % 3)]
        else:  # an unlabeled row carries the target text whose predictions are compared
            target = torch.randint(5, 40, (5,), generator=g).tolist()
            length = 2 + i % 3
            row["decoder_input_ids"] = [0, *target[:-1]]
            row["decoder_attention_mask"] = [1] * length + [0] * (5 - length)
            row["labels"] = [-100] * 5 if i in unlabeled else target[:length] + [-100] * (5 - length)
        rows.append(row)
    return rows


def by_definition(head, logits, batch, alpha):
    """(loss, task, divergence) of the passes' logits, each (B, ...)."""
    labels = batch["labels"]
    if head == "single_label":
        return formulas.rdrop(logits, labels.tolist(), alpha)
    mask = batch["attention_mask" if head == "token" else "decoder_attention_mask"].bool()
    counted = [(i, t) for i in range(len(labels)) for t in range(labels.shape[1]) if labels[i, t] != -100]
    for i in range(len(labels)):
        if (labels[i] == -100).all():
            counted += [(i, t) for t in range(labels.shape[1]) if mask[i, t]]
    chosen = [torch.stack([z[i, t] for i, t in counted]) for z in logits]
    return formulas.rdrop(chosen, [labels[i, t].item() for i, t in counted], alpha)


# Head, forward mode, settings, alpha of each step: tokens follow every schedule, the other heads some
CASES = [
    ("token", "concat", {"rdrop_num_passes": 4}, [3.0] * 4),
    ("token", "recompute", {"rdrop_num_passes": 4}, [3.0] * 4),
    ("single_label", "recompute", {"rdrop_num_passes": 4}, [3.0] * 4),
    ("token", "concat", {"rdrop_every_n_steps": 2}, [3.0, 0.0, 3.0, 0.0]),
    ("token", "recompute", {"rdrop_warmup_steps": 3}, [1.0, 2.0, 3.0, 3.0]),
    ("token", "recompute", {"rdrop_warmup_steps": 0.5, "rdrop_every_n_steps": 3}, [1.5, 0.0, 0.0, 3.0]),
    ("t5", "concat", {"rdrop_warmup_steps": 0.5, "rdrop_every_n_steps": 3}, [1.5, 0.0, 0.0, 3.0]),
    ("token", "concat", {"unlabeled": (0, 3, 5)}, [3.0] * 4),
    ("single_label", "concat", {"unlabeled": (0, 3, 5)}, [3.0] * 4),
    ("token", "recompute", {"unlabeled": range(8), "rdrop_num_passes": 3}, [3.0] * 4),
    ("t5", "recompute", {"unlabeled": range(8), "rdrop_num_passes": 3}, [3.0] * 4),
]


@pytest.mark.parametrize(
    "head, mode, settings, alphas", CASES, ids=lambda v: "-".join(v) if isinstance(v, dict) else ""
)
def test_every_step_follows_the_closed_form(head, mode, settings, alphas, tmp_path):
    settings = dict(settings)
    rows, num_passes = rows_of(head, settings.pop("unlabeled", ())), settings.get("rdrop_num_passes", 2)
    model = zoo.build(head, dropout=0.2)
    trainer = zoo.trainer(
        head, model, rows, tmp_path, data_collator=default_data_collator, rdrop_alpha=3.0, rdrop_forward_mode=mode,
        num_train_epochs=4, logging_steps=1, **{**tiny.PURE_SGD, "learning_rate": 0.0}, **settings,
    )  # fmt: skip
    batches, logits, compute_loss = [], [], trainer.compute_loss

    def record(model, inputs, **kwargs):
        batches.append(dict(inputs))
        logits.append([])
        return compute_loss(model, inputs, **kwargs)

    def keep(module, args, outputs):
        # Not the one row that a head is checked on, nor what a backward pass runs again
        if torch.is_grad_enabled() and len(outputs.logits) > 1 and len(logits[-1]) < num_passes:
            logits[-1].append(outputs.logits.detach())

    trainer.compute_loss = record
    model.register_forward_hook(keep)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(batches) == len(logs) == 4
    for batch, passes, alpha, logged in zip(batches, logits, alphas, logs, strict=True):
        if mode == "concat" and alpha:
            passes = passes[0].chunk(num_passes)
        if alpha == 0:
            passes = [passes[0], passes[0]]
        loss, task, divergence = (term.item() for term in by_definition(head, passes, batch, alpha))
        assert logged["loss"] == pytest.approx(loss, rel=2e-6)
        assert ("divergence" in logged) == (alpha > 0)
        if alpha:
            assert logged["divergence"] == pytest.approx(divergence, rel=ROUNDING) and divergence > 0
            assert logged["task_loss"] == pytest.approx(task, rel=2e-6)
