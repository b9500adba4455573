"""Which outputs are logits: shapes and the model's own loss tell, or a sentence asks."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForSequenceClassification

from rdrop_trainer import Head, Objective, StepSettings
from support import formulas, tiny
from support.returning import ALPHA, IDS, TAGS, TOKENS, Returning, divergence, is_close, shifted, terms_of, token_loss

ROWS = {"input_ids": IDS, "labels": torch.tensor([0, 1, 2, 0])}


def row_loss(logits, labels):
    return F.cross_entropy(logits, labels)


Named = namedtuple("Named", "loss features logits")
FORMS = {
    "hidden states of tokens": lambda z, h, y: (row_loss(z, y), h[:, None].expand(-1, 6, -1), z),
    "a named tuple": lambda z, h, y: Named(row_loss(z, y), h, z),
    "a loss of one entry": lambda z, h, y: (row_loss(z, y)[None], z),
    "a tuple of states behind": lambda z, h, y: (row_loss(z, y), z, (h, h)),
    "a list": lambda z, h, y: [row_loss(z, y), z],
    "counts and None": lambda z, h, y: (row_loss(z, y), None, y, z),
    "logits within a tuple": lambda z, h, y: (row_loss(z, y), (z, h[:, None])),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_only_output_that_can_be_logits_is_found(form):
    terms, passes, _ = terms_of(Returning(3, FORMS[form], pooled=True), ROWS)
    assert is_close(terms.divergence, divergence(passes))


@dataclass
class Data:
    """Outputs that are no `ModelOutput` of transformers."""

    features: Any
    logits: Any


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_outputs_may_be_a_dataclass(mode):
    model = Returning(3, lambda z, h, y: Data(h, z), pooled=True).train()

    def function(outputs, labels, num_items_in_batch=None):
        return row_loss(outputs.logits, labels)

    objective = Objective.of(model, [ROWS], loss_function=function)
    model.seen.clear()
    terms, passes = objective(model, ROWS, objective.window([ROWS]), StepSettings(ALPHA, forward_mode=mode))
    seen = model.seen[-1].chunk(2) if mode == "concat" else model.seen[-2:]
    loss, task_loss, _ = formulas.rdrop(seen, ROWS["labels"], ALPHA)
    assert is_close(terms.loss, loss) and is_close(terms.task_loss, task_loss)
    first, returned = passes.output(0), passes.first_output(terms.loss)
    assert first.logits.shape == (4, 3) and first.features.shape == (4, 16)
    assert returned["loss"] is terms.loss and returned["logits"].shape == (4, 3)


Unlabeled = namedtuple("Unlabeled", "features logits")


@pytest.mark.parametrize("fields", [Named, Unlabeled])
def test_a_named_tuple_is_returned_with_the_loss_in_front(fields):
    form = {"loss": None} if "loss" in fields._fields else {}
    model = Returning(3, lambda z, h, y: fields(features=h, logits=z, **form), pooled=True).train()

    def function(outputs, labels, num_items_in_batch=None):
        return row_loss(outputs.logits, labels)

    objective = Objective.of(model, [ROWS], loss_function=function)
    terms, passes = objective(model, ROWS, objective.window([ROWS]), StepSettings(alpha=ALPHA), 4)
    loss, *others = passes.first_output(terms.loss)
    assert loss is terms.loss and [z.shape for z in others] == [(4, 16), (4, 3)]


def features_first(z, h, y):
    return 2 * row_loss(z, y), h, z


@pytest.mark.parametrize("returned", [lambda z, h, y: (row_loss(z, y), h, z), lambda z, h, y: (row_loss(z, y), z, h)])
def test_the_own_loss_tells_logits_from_features(returned):
    """Features (B, 16) may be logits of 16 classes, but the loss is not of them."""
    terms, passes, _ = terms_of(Returning(3, returned, pooled=True), ROWS)
    assert is_close(terms.divergence, divergence(passes))


def test_features_in_front_of_logits_are_asked_about():
    """Here the loss is another one."""
    model = Returning(3, features_first, pooled=True)
    sentence = r"2 of its entries \(0: \(4, 16\), 1: \(4, 3\); the loss is not counted\).*rdrop_heads=\[Head"
    with pytest.raises(ValueError, match=sentence):
        terms_of(model, ROWS)
    terms, passes, _ = terms_of(model, ROWS, heads=[Head(logits=1)])
    assert is_close(terms.divergence, divergence(passes))
    model.config = tiny.bert().config
    model.config.num_labels = 3
    terms, passes, _ = terms_of(model, ROWS)
    assert is_close(terms.divergence, divergence(passes))


PROBABILITIES = {
    "rows": ("softmax", 3, ROWS["labels"], lambda z, y: (row_loss(z, y), z.softmax(-1))),
    "tokens": ("softmax", 5, TAGS, lambda z, y: (token_loss(z, y), z.softmax(-1))),
    "one logit": ("sigmoid", 1, torch.tensor([0, 1, 1, 0]), lambda z, y: with_bce(z.sigmoid()[:, 0], y)),
    "multi-label": ("sigmoid", 3, torch.eye(4)[:, :3], lambda z, y: with_bce(z.sigmoid(), y)),
}


def with_bce(p, y):
    return F.binary_cross_entropy(p, y.float()), p


@pytest.mark.parametrize("kind", PROBABILITIES)
def test_probabilities_are_no_logits(kind):
    function, out, labels, returned = PROBABILITIES[kind]

    def model():
        return Returning(
            out, lambda z, h, y: dict(zip(("loss", "logits"), returned(z, y), strict=True)), kind != "tokens"
        )

    batch = {"input_ids": IDS, "labels": labels}
    with pytest.raises(ValueError, match=f"returns probabilities as 'logits'.*in front of its {function}"):
        terms_of(model(), batch)
    objective = Objective.of(model().train(), [batch])
    terms, _ = objective(model().train(), batch, objective.window([batch]), StepSettings(alpha=0.0, num_passes=1))
    assert terms.loss.isfinite()  # plain training needs no logits


def test_probabilities_by_their_logarithm_are():
    returned = lambda z, h, y: {"loss": row_loss(z, y), "logits": z.log_softmax(-1)}  # noqa: E731
    terms, passes, _ = terms_of(Returning(3, returned, pooled=True), ROWS)
    assert is_close(terms.divergence, divergence(passes))


def test_logits_without_a_gradient_are_refused():
    model = Returning(3, lambda z, h, y: {"loss": row_loss(z, y), "logits": z.detach()}, pooled=True)
    with pytest.raises(ValueError, match="'logits' that Returning returns have no gradient.*without detach"):
        terms_of(model, ROWS)
    with torch.no_grad():  # nothing is to learn
        terms_of(model, ROWS)


SECOND = {
    "behind a softmax": ("in front of its softmax", lambda z: z.softmax(-1)),
    "without a gradient": ("'second' that Returning returns have no gradient", lambda z: z.detach()),
}


@pytest.mark.parametrize("kind", SECOND)
def test_each_of_several_heads_is_looked_at(kind):
    sentence, second = SECOND[kind]
    model = Returning(3, lambda z, h, y: {"loss": row_loss(z, y), "first": z, "second": second(z)}, pooled=True)
    heads = [Head(logits=name, labels="labels") for name in ("first", "second")]
    with pytest.raises(ValueError, match=sentence):
        terms_of(model, ROWS, heads=heads)


def test_logits_that_look_like_probabilities_train():
    """0.659... is its own sigmoid, so the two losses are the same there; and two logits may add up to 1."""
    one = Returning(1, lambda z, h, y: with_logits(1e-4 * z[:, 0] + 0.6590461, y), pooled=True)
    ones = {"input_ids": IDS[:2], "labels": torch.ones(2, dtype=torch.long)}
    assert terms_of(one, ones)[0].divergence > 0
    two = Returning(2, lambda z, h, y: {"loss": row_loss(one_in_all(z), y), "logits": one_in_all(z)}, pooled=True)
    assert terms_of(two, {"input_ids": IDS[:1], "labels": torch.zeros(1, dtype=torch.long)})[0].divergence > 0


def with_logits(z, y):
    return {"loss": F.binary_cross_entropy_with_logits(z, y.float()), "logits": z}


def one_in_all(z):
    return 0.5 + 0.1 * torch.stack([z[:, 0], -z[:, 0]], 1)


def test_labels_are_not_looked_for_among_logits_that_are_missing(said):
    """Plain training asks for nothing."""
    Objective.of(Returning(5, lambda z, h, y: {"loss": token_loss(z, y) + 1, "scores": z}).train(), [TOKENS])
    assert not said.records


@pytest.mark.parametrize("steps", [1, 2])
def test_plain_training_needs_no_logits(steps, tmp_path):
    data = [{"input_ids": row, "labels": y} for row, y in zip(IDS, ROWS["labels"], strict=True)]
    model = Returning(3, features_first, pooled=True)
    trainer = tiny.trainer(model, data, tmp_path, data_collator=tiny_collator, rdrop_alpha=0.0)
    trainer.args.gradient_accumulation_steps, trainer.args.per_device_train_batch_size = steps, 4 // steps
    trainer.train()


def test_a_first_batch_without_labels_shows_nothing(said):
    batch = {"input_ids": IDS, "labels": torch.full_like(TAGS, -100)}
    objective = Objective.of(Returning(5, shifted).train(), [batch])
    assert not objective.plan.head.shifted and "does not show" in said.text


def tiny_collator(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


class Tuples(BertForSequenceClassification):
    def forward(self, input_ids, labels=None, **kwargs):
        hidden = self.dropout(self.bert(input_ids, **kwargs).pooler_output)
        logits = self.classifier(hidden)
        return F.cross_entropy(logits, labels), hidden, logits


def test_a_class_of_ones_own_derived_from_one_of_transformers():
    model = tiny.bert(dropout=0.0)
    model.__class__ = Tuples
    model.classifier = nn.Sequential(tiny.PassNoise(2), model.classifier)
    model.train()
    objective = Objective.of(model, [ROWS])
    terms, _ = objective(model, ROWS, objective.window([ROWS]), StepSettings(alpha=ALPHA))
    with torch.no_grad():
        logits = model(torch.cat([IDS, IDS]), torch.cat([ROWS["labels"]] * 2))[2].double()
    assert is_close(terms.divergence, divergence(logits.chunk(2)))
