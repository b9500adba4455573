"""What does not count: masked scores, labels of -100, padding."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer import Objective, StepSettings
from support import formulas, tiny, zoo
from support.device import DEVICE, on_device
from support.scorer import ALPHA, ATTENDED, IDS, Scorer, bce, bernoulli, is_close, rows, terms_of, tokens

# ---- Scores of spans ----


@pytest.mark.parametrize("kind", [torch.float, torch.long])
@pytest.mark.parametrize("masked", [-1e12, float("-inf")])
def test_scores_of_spans_are_bernoulli_and_masked_ones_do_not_count(masked, kind):
    """GlobalPointer: a score for each kind of span, its first and its last token."""
    mask = ATTENDED[:, None, :, None].bool() & ATTENDED[:, None, None, :].bool()
    mask = mask.expand(4, 2, 6, 6)

    def spans(z):
        q, k = z.unflatten(-1, (2, 8)).unbind(2)
        scores = torch.stack([q @ k.mT, k @ q.mT], 1)  # (B, H, T, T)
        keep = mask[: len(z)].repeat(len(z) // 4, 1, 1, 1)
        return scores + masked * (~keep) if masked != float("-inf") else scores.masked_fill(~keep, masked)

    def loss(logits, labels):
        keep = mask.repeat(len(logits) // 4, 1, 1, 1)
        return F.binary_cross_entropy_with_logits(logits[keep], labels[keep].float())

    labels = (torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.2).to(kind) * mask.to(kind)
    terms, passes, _ = terms_of(Scorer(16, spans, loss), {"input_ids": IDS, "labels": labels})
    assert is_close(terms.divergence, bernoulli(passes, mask) / 4)


def test_masked_numbers_do_not_count_in_a_regression():
    mask = torch.tensor([True, True, False, True, False])
    model = Scorer(5, lambda z: rows(z) - 1e12 * (~mask), lambda z, y: F.mse_loss(z[:, mask], y[:, mask]), "regression")
    terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": torch.randn(4, 5)})
    assert is_close(terms.divergence, (passes[0] - passes[1])[:, mask].square().mean())


# ---- Labels of -100 in multi-label ----


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_classes_labeled_minus_100_do_not_count_in_a_stock_head(alpha, tmp_path):
    model = zoo.noisy("multi_label", num_passes=2 if alpha else 1).train()
    labels = torch.randint(0, 2, (4, 4), generator=torch.Generator().manual_seed(1)).float()
    labels[0, 1] = labels[1, 3] = labels[1, 0] = -100
    labels[3] = -100  # a row without any label counts nowhere
    trainer = tiny.trainer(
        model, tiny.dataset("multi_label"), tmp_path, rdrop_alpha=alpha, rdrop_allow_deterministic=True
    )
    inputs, labels = on_device({"input_ids": IDS, "attention_mask": ATTENDED}), labels.to(DEVICE)
    got = trainer.compute_loss(model, {**inputs, "labels": labels})
    m = 2 if alpha else 1
    with torch.no_grad():
        passes = model(**{k: torch.cat([v] * m) for k, v in inputs.items()}).logits.chunk(m)
    task = divergence = 0
    for i in range(3):
        kept = labels[i] != -100
        task = task + sum(formulas.task_loss(z[i, kept], labels[i, kept].double(), "multi_label") for z in passes) / m
        if m == 2:
            divergence = divergence + formulas.pair_divergence(passes[0][i, kept], passes[1][i, kept], "multi_label")
    assert is_close(got, (task + alpha / 2 * divergence) / 3)
    again = trainer.compute_loss(model, {**inputs, "labels": labels})  # the model's own loss, which differs, is wrong
    assert is_close(again, got)


def test_accumulation_with_classes_labeled_minus_100(tmp_path):
    data = tiny.dataset("multi_label", rows=11)
    for i, row in enumerate(data):
        row["labels"] = [-100.0 if (i + k) % 3 == 0 or i in (2, 9) else y for k, y in enumerate(row["labels"])]
    updates = []
    for size, steps in ((2, 4), (8, 1)):
        model = zoo.noisy("multi_label")
        before = tiny.weights(model)
        tiny.trainer(
            model, data, tmp_path, rdrop_allow_deterministic=True, per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, **tiny.PURE_SGD,
        ).train()  # fmt: skip
        updates.append(tiny.update(before, tiny.weights(model)))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


# ---- Padding ----


def crf_like(logits, labels):
    """A loss that takes every label for a tag, as a conditional random field does."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten().clamp(min=0))


def test_padding_of_tags_without_a_mark_does_not_count():
    labels = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(1)) * ATTENDED
    batch = {"input_ids": IDS, "attention_mask": ATTENDED, "labels": labels}

    def mean(passes, counted):
        pairs = zip(*(z[counted] for z in passes), strict=True)
        return sum(formulas.pair_divergence(a, b, "single_label") for a, b in pairs) / counted.sum()

    terms, passes, objective = terms_of(Scorer(5, tokens, crf_like), batch)
    assert is_close(terms.divergence, mean(passes, ATTENDED == 1))
    assert objective.plan.head.count(batch).tolist() == [[18, 18]]
    labels = labels.masked_fill(torch.tensor([[1, 0, 0, 0, 0, 0]]).bool(), -100)  # a batch that knows the mark
    terms, passes, _ = terms_of(Scorer(5, tokens, crf_like), {**batch, "labels": labels})
    assert is_close(terms.divergence, mean(passes, labels != -100))


def test_a_stock_token_head_counts_what_its_cross_entropy_counts():
    model = zoo.noisy("token").train()
    batch = {"input_ids": IDS, "attention_mask": ATTENDED, "labels": torch.zeros(4, 6, dtype=torch.long)}
    objective = Objective.of(model, [batch])
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA))
    with torch.no_grad():
        together = model(**{k: torch.cat([v, v]) for k, v in batch.items()})
    passes = [z.flatten(0, 1) for z in together.logits.chunk(2)]
    _, task, divergence = formulas.rdrop(passes, [0] * 24, ALPHA)
    assert is_close(terms.task_loss, task) and is_close(terms.divergence, divergence)


def test_tags_of_several_kinds_for_each_token():
    """Yes or no for each of three tags: a token's divergence is their sum, and padding does not count."""
    labels = torch.randint(0, 2, (4, 6, 3), generator=torch.Generator().manual_seed(1)).float()
    terms, passes, _ = terms_of(
        Scorer(3, tokens, bce), {"input_ids": IDS, "attention_mask": ATTENDED, "labels": labels}
    )
    assert is_close(terms.divergence, bernoulli(passes, ATTENDED == 1) / ATTENDED.sum())


# ---- Regression ----


def test_a_regression_does_not_read_the_mark_of_an_unlabeled_row():
    model, labels = tiny.bert("regression"), torch.tensor([3, -100, 2, 5])
    with pytest.raises(ValueError, match="A label is -100.*regression"):
        Objective.of(model, [{"input_ids": IDS, "labels": labels}])
    Objective.of(model, [{"input_ids": IDS, "labels": labels.float()}])  # a temperature, say
