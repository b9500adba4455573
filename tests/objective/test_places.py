"""Where the labels of tokens stand among the logits, and what the values of labels tell."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer import Head, Objective, StepSettings
from support.returning import IDS, TAGS, TOKENS, Returning, divergence, is_close, shifted, terms_of, token_loss

# ---- Where the labels of tokens stand ----


def in_place(z, h, y):
    return {"loss": token_loss(z, y), "logits": z}


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
