"""Which outputs are logits, and where their labels stand: shapes and the model's own loss tell, or a sentence asks."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForSequenceClassification, set_seed
from transformers.utils import logging

from rdrop_trainer import Head, Objective, StepSettings
from support import formulas, tiny

ALPHA = 3.0
IDS = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))
TAGS = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(1))
TAGS[1, 4:] = TAGS[2, 2:] = -100
KEPT = TAGS != -100


@pytest.fixture
def said(caplog):
    """What is logged."""
    logging.enable_propagation()
    logging.get_logger("rdrop_trainer.objective.alignment").warning_once.__func__.cache_clear()
    yield caplog
    logging.disable_propagation()


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


# ---- Which outputs are logits ----

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


# ---- Where the labels of tokens stand ----

TOKENS = {"input_ids": IDS, "labels": TAGS}


def token_loss(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def in_place(z, h, y):
    return {"loss": token_loss(z, y), "logits": z}


def shifted(z, h, y):
    return {"loss": token_loss(z[:, :-1], y[:, 1:]), "logits": z}


def padded_right(z, h, y):
    z = F.pad(z, (0, 0, 0, 2), value=0.5)
    return {"loss": token_loss(z[:, :6], y), "logits": z}


def padded_left(z, h, y):
    z = F.pad(z, (0, 0, 2, 0), value=0.5)
    return {"loss": token_loss(z[:, 2:], y), "logits": z}


def of_tags(passes, labels, start=0):
    """Both passes at the tokens that count."""
    return divergence([z[:, start : start + labels.shape[1]][labels != -100] for z in passes])


@pytest.mark.parametrize("returned", [in_place, shifted, padded_right, padded_left])
def test_labels_stand_where_the_own_loss_has_them(returned, said):
    model, forwards = Returning(5, returned), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    terms, passes, _ = terms_of(model, TOKENS)
    want = of_tags(passes, TAGS[:, 1:]) if returned is shifted else of_tags(passes, TAGS)
    assert is_close(terms.divergence, want) and not said.records
    assert len(forwards) == 1 + len(passes)
    assert is_close(terms.task_loss, sum(returned(z, None, TAGS)["loss"] for z in passes) / 2)


@pytest.mark.parametrize("counts", [True, False])
def test_a_loss_function_shows_it_too(counts):
    def function(outputs, labels, num_items_in_batch):
        loss = F.cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return loss / (num_items_in_batch if counts else (labels[:, 1:] != -100).sum())

    model = Returning(5, lambda z, h, y: {"logits": z})
    terms, passes, objective = terms_of(model, TOKENS, (TAGS[:, 1:] != -100).sum(), loss_function=function)
    assert is_close(terms.divergence, of_tags(passes, TAGS[:, 1:])) and objective.plan.head.shifted


def focal(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").square().mean()


@pytest.mark.parametrize("align", ["auto", "first", "shifted"])
def test_a_loss_of_another_kind_leaves_labels_in_place_and_says_so(align, said):
    model = Returning(5, lambda z, h, y: {"loss": focal(z, y), "logits": z})
    terms, passes, _ = terms_of(model, TOKENS, heads=[Head(align=align)])
    labels = TAGS[:, 1:] if align == "shifted" else TAGS
    assert is_close(terms.divergence, of_tags(passes, labels))
    asked = [r.message for r in said.records if 'rdrop_heads=[Head(align="first")]' in r.message]
    assert len(asked) == (align == "auto")


def test_a_loss_that_is_the_same_at_two_places_is_asked_about(said):
    """Here every token of a row is the same, so that labels in place and shifted ones give one loss."""
    batch = {"input_ids": IDS[:, :1].expand(-1, 6), "labels": torch.tensor([0, 1, 2, 3])[:, None].expand(-1, 6)}
    terms_of(Returning(5, in_place), batch)
    [message] = [r.message for r in said.records if 'rdrop_heads=[Head(align="first")]' in r.message]
    assert "or of more than one of these" in message


@pytest.mark.parametrize("align, start", [("auto", None), ("first", 0), ("last", 2), ("shifted", 2)])
def test_a_loss_of_another_kind_with_longer_logits_is_asked_about(align, start):
    model = Returning(5, lambda z, h, y: {"loss": focal(z[:, :6], y), "logits": torch.cat([z, z[:, :2]], 1)})
    if start is None:
        with pytest.raises(ValueError, match='first or at the last positions, or shifted.*rdrop_heads=.*align="first"'):
            terms_of(model, TOKENS)
        return
    terms, passes, _ = terms_of(model, TOKENS, heads=[Head(align=align)])
    passes = [torch.cat([z, z[:, :2]], 1) for z in passes]
    want = of_tags([z[:, 2:] for z in passes], TAGS[:, 1:]) if align == "shifted" else of_tags(passes, TAGS, start)
    assert is_close(terms.divergence, want)


def test_logits_that_become_longer_later_are_asked_about():
    """A model that pads to a multiple of 8 inside may be seen first with a text of 8 tokens."""

    def returned(z, h, y):
        z = F.pad(z, (0, 0, 0, -z.shape[1] % 6), value=0.5)
        return {"loss": token_loss(z[:, : y.shape[1]], y), "logits": z}

    model = Returning(5, returned).train()
    objective = Objective.of(model, [TOKENS])
    short = {"input_ids": IDS[:, :5], "labels": TAGS[:, :5]}
    with pytest.raises(ValueError, match='6 positions for 5 labels.*align="first"'):
        objective(model, short, objective.window([short]), StepSettings())
    terms, passes, _ = terms_of(model, short)
    assert is_close(terms.divergence, of_tags(passes, TAGS[:, :5]))


def test_rows_by_name():
    """Integers (B, T) of yes or no for each of T columns."""
    labels = TAGS.clamp(0, 1)
    model = Returning(
        6,
        lambda z, h, y: {"loss": F.binary_cross_entropy_with_logits(z, y.float()), "logits": z},
        pooled=True,
    )
    batch = {"input_ids": IDS, "labels": labels}
    terms, passes, _ = terms_of(model, batch, heads=[Head(problem="multi_label", align="rows")])
    assert is_close(terms.divergence, divergence(passes, "multi_label"))


# ---- Values ----


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_integers_that_are_no_yes_and_no_make_one_logit_a_regression(shape):
    """Stars from 1 to 5."""
    stars = torch.tensor([1, 5, 3, 4])

    def returned(z, h, y):
        return {"loss": F.mse_loss(z.flatten(), y.flatten().float()), "logits": z.reshape(shape)}

    terms, passes, objective = terms_of(Returning(1, returned, pooled=True), {"input_ids": IDS, "labels": stars})
    assert is_close(terms.divergence, (passes[0] - passes[1]).square().mean())
    # Known for kinds of labels that were seen before
    objective.window([{"input_ids": IDS, "labels": stars.float()}])
    objective.window([{"input_ids": IDS, "labels": stars.clamp(0, 1)}])
    assert objective.plan.head.problem == "regression"


def test_the_first_look_is_at_the_outputs_of_training():
    """`from_pretrained` leaves a model in evaluation mode, where this one returns no features."""

    def returned(z, h, y):
        return (2 * F.cross_entropy(z, y), h, z) if model.training else (F.cross_entropy(z, y), z)

    model, batch = Returning(4, returned, pooled=True), {"input_ids": IDS, "labels": torch.tensor([0, 3, 1, 2])}
    model.eval().dropout.train()  # as it may be
    objective = Objective.of(model, [batch])
    assert [module.training for module in model.modules()] == [False, False, True, False]
    model.train()
    with pytest.raises(ValueError, match="returns a tuple, and 2 of its entries .* may be the logits"):
        objective(model, batch, objective.window([batch]), StepSettings())


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits])
def test_no_loss_reads_the_mark_of_a_row_without_a_label_as_a_value(loss):
    labels = torch.tensor([1, 0, -100, 0] if loss is F.binary_cross_entropy_with_logits else [1, 5, -100, 4])
    known = labels != -100

    def model(counts):
        return Returning(1, lambda z, h, y: {"loss": loss(z[counts, 0], y[counts].float()), "logits": z}, pooled=True)

    batch = {"input_ids": IDS, "labels": labels}
    with pytest.raises(ValueError, match="Returning takes -100, the mark of a row without a label, for a value"):
        terms_of(model(slice(None)), batch)
    assert 0 < terms_of(model(known), batch)[0].task_loss < 20
