"""Which divergence: by the setting, the configuration, then class and labels; for models with losses of their own."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForTokenClassification, Trainer, set_seed

from rdrop_trainer import Objective, RDropMixin, StepSettings
from rdrop_trainer.objective.task_loss import ModelLoss, StockLoss
from support import formulas, tiny, zoo
from support.device import on_device
from support.scorer import ALPHA, ATTENDED, IDS, Scorer, bce, bernoulli, is_close, rows, terms_of, tokens

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
