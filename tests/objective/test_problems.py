"""Which divergence: by the setting, the configuration, then class and labels; for models with losses of their own."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForTokenClassification, Trainer, set_seed

from rdrop_trainer import Objective, RDropMixin, StepSettings
from rdrop_trainer.objective.task_loss import ModelLoss, StockLoss
from support import formulas, tiny, zoo
from support.device import DEVICE, on_device

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


# ---- One logit per item ----


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_of_a_row_is_bernoulli_whatever_the_labels(shape, squeezed):
    labels = torch.tensor([0, 1, 1, 0]).reshape(shape)
    model = Scorer(1, (lambda z: rows(z).squeeze(-1)) if squeezed else rows, bce)
    terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": labels})
    want = bernoulli([z.reshape(4) for z in passes], slice(None)) / 4
    assert want > 1e-4 and is_close(terms.divergence, want)
    own = sum(F.binary_cross_entropy_with_logits(z.reshape(4), labels.reshape(4).double()) for z in passes) / 2
    assert is_close(terms.task_loss, own)


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("kind", [torch.long, torch.float])
@pytest.mark.parametrize("mark", [-100, -1])
def test_one_logit_of_a_token_is_bernoulli_whatever_the_labels(kind, mark, squeezed):
    """Tokens with a negative label do not count: -1 and -100 mark special tokens, padding, the other text."""
    labels = torch.randint(0, 2, (4, 6), generator=torch.Generator().manual_seed(1)).to(kind)
    labels[:, 0] = mark
    labels[ATTENDED == 0] = mark

    def loss(logits, labels):
        counted = labels >= 0
        return F.binary_cross_entropy_with_logits(logits.view_as(labels)[counted], labels[counted].float())

    model = Scorer(1, (lambda z: z.squeeze(-1)) if squeezed else tokens, loss)
    terms, passes, objective = terms_of(model, {"input_ids": IDS, "attention_mask": ATTENDED, "labels": labels})
    counted = labels >= 0
    want = bernoulli([z.reshape(4, 6) for z in passes], counted) / counted.sum()
    assert is_close(terms.divergence, want) and objective.plan.head.tokens


@pytest.mark.parametrize("columns", [5, 6])
def test_rows_of_as_many_columns_as_tokens_are_still_rows(columns):
    labels = torch.randint(0, 2, (4, columns), generator=torch.Generator().manual_seed(1))
    terms, passes, _ = terms_of(Scorer(columns, rows, bce), {"input_ids": IDS, "labels": labels.float()})
    assert is_close(terms.divergence, bernoulli(passes, slice(None)) / 4)
    batch = {"input_ids": IDS, "labels": labels}
    terms, passes, _ = terms_of(Scorer(columns, rows, bce), batch, problem="multi_label")
    assert is_close(terms.divergence, bernoulli(passes, slice(None)) / 4)
    if columns == 5:
        with pytest.raises(ValueError, match="took the head for token classification.*rdrop_problem"):
            terms_of(Scorer(columns, rows, bce), batch)


class OneLogit(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        counted = labels != -100
        loss = F.binary_cross_entropy_with_logits(outputs.logits.squeeze(-1)[counted], labels[counted].float())
        return (loss, outputs) if return_outputs else loss


def test_a_token_head_with_one_logit_and_a_trainers_loss(tmp_path):
    config = BertConfig(**tiny.SIZES, num_labels=1)
    data = [{**row, "labels": [min(y, 1) for y in row["labels"]]} for row in tiny.dataset("token", rows=8)]
    set_seed(0)
    trainer = tiny.trainer(
        BertForTokenClassification(config), data, tmp_path, type("Over", (RDropMixin, OneLogit), {}), logging_steps=1
    )
    trainer.train()
    assert trainer.state.log_history[0]["divergence"] > 1e-7


def test_a_divergence_of_zero_on_passes_that_differ_stops_the_run(tmp_path):
    """Multiple choice with one choice."""
    data = [{**row, "input_ids": row["input_ids"][:1], "attention_mask": row["attention_mask"][:1], "label": 0}
            for row in zoo.dataset("choice")]  # fmt: skip
    with pytest.raises(ValueError, match="divergence is exactly 0.*1 logit.*rdrop_problem="):
        zoo.trainer("choice", zoo.build("choice"), data, tmp_path).train()
    trainer = zoo.trainer("choice", zoo.build("choice"), data, tmp_path, rdrop_alpha=0.0)
    trainer.train()


# ---- Which problem ----


def test_a_custom_models_problem_type_holds():
    labels = torch.randint(0, 2, (4, 5), generator=torch.Generator().manual_seed(2)).float()
    for labels_ in (labels, labels.long()):
        model = Scorer(5, rows, bce, "multi_label_classification")
        terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": labels_})
        assert is_close(terms.divergence, bernoulli(passes, slice(None)) / 4)
    targets = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))  # as many as tokens, which they are not of
    for settings, training, labels in (
        ({"problem_type": "regression"}, {}, targets.sigmoid()),
        ({}, {"problem": "regression"}, targets.sigmoid()),
        ({}, {}, targets),  # no yes and no, as they lie outside 0 and 1
    ):
        model = Scorer(6, rows, F.mse_loss, **settings)
        terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": labels}, **training)
        assert is_close(terms.divergence, (passes[0] - passes[1]).square().mean())
    model = Scorer(1, tokens, lambda z, y: F.mse_loss(z.squeeze(-1), y))
    terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": targets})
    assert is_close(terms.divergence, (passes[0] - passes[1]).square().mean())


def test_the_setting_goes_before_the_configuration():
    targets = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    model = Scorer(5, rows, F.mse_loss, "multi_label_classification")
    terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": targets}, problem="regression")
    assert is_close(terms.divergence, (passes[0] - passes[1]).square().mean())
    with pytest.raises(ValueError, match="problem='ranking' is unknown"):
        Objective.of(model, [{"input_ids": IDS, "labels": targets}], problem="ranking")


def soft_cross_entropy(logits, labels):
    return -(labels * logits.log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("how", ["labels", "problem_type", "setting"])
def test_soft_labels_are_those_of_a_categorical_divergence(how):
    targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).softmax(-1)
    if how != "labels":
        targets = F.one_hot(targets.argmax(-1), 5).float()
    model = Scorer(5, rows, soft_cross_entropy, "single_label_classification" if how == "problem_type" else None)
    training = {"problem": "single_label"} if how == "setting" else {}
    terms, passes, objective = terms_of(model, {"input_ids": IDS, "labels": targets}, **training)
    want = sum(formulas.pair_divergence(a, b, "single_label") for a, b in zip(*passes, strict=True)) / 4
    assert is_close(terms.divergence, want)
    # What the first window said holds for later ones, whose labels may happen to be whole
    objective.window([{"input_ids": IDS, "labels": F.one_hot(targets.argmax(-1), 5).float()}])
    assert objective.plan.head.soft


def test_a_stock_model_takes_soft_labels_where_the_setting_says_so():
    """By its class alone they would be labels of several classes each."""
    model, batch = tiny.bert().train(), zoo.batch("single_label")
    soft = {**batch, "labels": torch.randn(len(batch["labels"]), 4).softmax(-1)}
    objective = Objective.of(model, [soft], problem="single_label")
    terms, passes = objective(model, soft, objective.window([soft]), StepSettings(alpha=ALPHA))
    logits = [z.detach() for z in passes["logits"][0].chunk(2)]
    want = sum(formulas.pair_divergence(a, b, "single_label") for a, b in zip(*logits, strict=True)) / len(logits[0])
    assert is_close(terms.divergence, want)


def test_every_batch_needs_its_labels():
    batch = zoo.batch("single_label")
    with pytest.raises(ValueError, match="needs `labels` in every training batch, got only: input_ids"):
        Objective.of(tiny.bert(), [batch, {key: batch[key] for key in ("input_ids", "attention_mask")}])


def test_labels_that_are_no_probabilities_of_classes_stay_multi_label():
    one_hot = torch.eye(5)[:4]
    terms, passes, _ = terms_of(Scorer(5, rows, bce), {"input_ids": IDS, "labels": one_hot})
    assert is_close(terms.divergence, bernoulli(passes, slice(None)) / 4)


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize("name", ["row", "choice"])
def test_stock_heads_take_soft_labels_as_cross_entropy_does(name, alpha, tmp_path):
    m = 2 if alpha else 1
    model = zoo.noisy("single_label", m) if name == "row" else zoo.noisy("choice", m)
    if name == "row":
        model.config.problem_type = "single_label_classification"
    batch = zoo.batch("choice", rows=4) if name == "choice" else {"input_ids": IDS, "attention_mask": ATTENDED}
    batch = on_device(batch)
    batch.pop("labels", None)
    data = tiny.dataset() if name == "row" else zoo.dataset("choice")
    build = tiny.trainer if name == "row" else lambda *args, **kwargs: zoo.trainer("choice", *args, **kwargs)
    trainer = build(model.train(), data, tmp_path, rdrop_alpha=alpha, rdrop_allow_deterministic=True)
    with torch.no_grad():
        together = model(**{k: torch.cat([v] * m) for k, v in batch.items()}).logits
    passes = together.chunk(m)
    targets = torch.randn(passes[0].shape, generator=torch.Generator().manual_seed(2)).softmax(-1).to(together)
    loss = trainer.compute_loss(model, {**batch, "labels": targets.double()})
    task = F.cross_entropy(together, targets.double().repeat(m, 1))
    pairs = zip(passes[0], passes[-1], strict=True)
    divergence = sum(formulas.pair_divergence(a, b, "single_label") for a, b in pairs) / 4
    assert is_close(loss, task + alpha / 2 * divergence) and (divergence > 0) == (alpha > 0)


def test_a_stock_head_keeps_its_loss_under_the_setting(tmp_path):
    """The setting chooses the divergence; integer labels of four classes, yes or no for each."""
    model = zoo.noisy("single_label").train()
    batch = {"input_ids": IDS, "attention_mask": ATTENDED, "labels": torch.tensor([0, 1, -100, 3])}
    objective = Objective.of(model, [batch], problem="multi_label")
    assert type(objective.plan.task_loss) is ModelLoss
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA))
    with torch.no_grad():
        together = model(**{k: torch.cat([v, v]) for k, v in batch.items()})
    assert is_close(terms.task_loss, together.loss)
    assert is_close(terms.divergence, bernoulli(together.logits.chunk(2), slice(None)) / 4)
    assert type(Objective.of(model, [batch], problem="single_label").plan.task_loss) is StockLoss


def test_a_stock_token_head_does_not_read_a_problem_type_left_in_its_configuration():
    model = tiny.bert("token")
    model.config.problem_type = "regression"
    batch = {"input_ids": IDS, "labels": torch.zeros(4, 6, dtype=torch.long)}
    plan = Objective.of(model, [batch]).plan
    assert plan.head.problem == "single_label" and type(plan.task_loss) is StockLoss


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
