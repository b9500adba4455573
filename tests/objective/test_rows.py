"""The single forward of all passes: which entries of a batch follow its rows, and which losses do not stand it."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import set_seed

from rdrop_trainer import Objective, StepSettings
from rdrop_trainer.objective.forward_modes import _are_alike
from rdrop_trainer.objective.rows import doubtful_entries, pick_rows
from support import formulas, tiny

IDS = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
WEIGHTS = [0.5, 1.0, 2.0, 4.0]


class Model(nn.Module):
    """A classifier with four classes and a loss of its own, a function of logits, labels and other entries."""

    def __init__(self, loss, noise=None):
        super().__init__()
        set_seed(0)
        self.embed, self.noise, self.out = nn.Embedding(40, 16), noise or tiny.PassNoise(), nn.Linear(16, 4)
        self.loss, self.rows = loss, []

    def forward(self, input_ids, labels, **entries):
        logits = self.out(self.noise(self.embed(input_ids).mean(1)))
        self.rows.append(len(logits))
        return {"loss": self.loss(logits, labels, self.training, **entries), "logits": logits}


def run(model, mode="concat", **entries):
    """Task loss and divergence of a batch of four, and of its first three rows."""
    model.train()
    batch = {"input_ids": IDS, "labels": LABELS, **entries}
    objective = Objective.of(model, [batch])
    settings = StepSettings(alpha=2.0, forward_mode=mode)
    terms, _ = objective(model, batch, objective.window([batch]), settings)
    return terms, objective


def expected(weights_of_rows):
    """Terms in float64, of the noise of two passes in one forward."""
    model = Model(None).train()
    with torch.no_grad():
        logits = model.out(model.noise(torch.cat([model.embed(IDS).mean(1)] * 2))).double()
    task = (F.cross_entropy(logits, LABELS.repeat(2), reduction="none") * weights_of_rows.repeat(2)).mean()
    divergence = sum(formulas.pair_divergence(a, b, "single_label") for a, b in zip(*logits.chunk(2), strict=True)) / 4
    return task, divergence


def weighted_rows(logits, labels, trains, weights):
    return (F.cross_entropy(logits, labels, reduction="none") * torch.as_tensor(weights)).mean()


def weighted_classes(logits, labels, trains, weights):
    """Weights in the order of the classes; their sum is that of the rows."""
    return (F.cross_entropy(logits, labels, torch.as_tensor(weights), reduction="none")).mean()


@pytest.mark.parametrize("form", [torch.tensor, list, tuple])
@pytest.mark.parametrize("kind", [weighted_rows, weighted_classes])
def test_numbers_as_many_as_rows(kind, form):
    """Sample weights follow the rows; weights of as many classes as there are rows do not."""
    weights = torch.tensor(WEIGHTS).double()
    task, divergence = expected(weights if kind is weighted_rows else weights[LABELS])
    terms, objective = run(Model(kind), weights=form(WEIGHTS))
    assert terms.task_loss.item() == pytest.approx(task.item(), rel=1e-5)
    assert terms.divergence.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert objective.plan.follows == {"weights": kind is weighted_rows}
    # What the first batch showed holds for one of another size
    short = {"input_ids": IDS[:3], "labels": LABELS[:3]}
    short["weights"] = form(WEIGHTS[:3] if kind is weighted_rows else WEIGHTS)
    model = objective.training.model
    model.rows.clear()
    objective(model, short, objective.window([short]), StepSettings())
    assert model.rows == [6]


def test_class_weights_that_are_not_as_many_as_rows():
    """A first batch of another size."""
    model = Model(weighted_classes).train()
    batch = {"input_ids": IDS[:3], "labels": LABELS[:3], "weights": torch.tensor(WEIGHTS)}
    objective = Objective.of(model, [batch])
    objective(model, batch, objective.window([batch]), StepSettings())
    assert objective.plan.follows == {"weights": False} and model.rows[-1] == 6


def test_costs_of_pairs_of_classes():
    """As many classes as rows."""

    def loss(logits, labels, trains, costs):
        return (costs[labels] * logits.softmax(-1)).sum(-1).mean() if len(costs) == 4 else logits.new_tensor(torch.nan)

    assert run(Model(loss), costs=torch.rand(4, 4))[1].plan.follows == {"costs": False}


def test_both_at_once():
    def loss(logits, labels, trains, rows, classes):
        return (F.cross_entropy(logits, labels, classes, reduction="none") * torch.tensor(rows)).mean()

    weights = torch.tensor(WEIGHTS).double()
    task, _ = expected(weights * weights[LABELS])
    terms, objective = run(Model(loss), rows=WEIGHTS, classes=torch.tensor(WEIGHTS))
    assert objective.plan.follows == {"rows": True, "classes": False}
    assert terms.task_loss.item() == pytest.approx(task.item(), rel=1e-5)


def test_an_entry_that_fits_neither_way_is_named():
    def loss(logits, labels, trains, weights):
        assert len(logits) == 4, "always four rows"
        return F.cross_entropy(logits, labels)

    with pytest.raises(ValueError, match=r"not clear whether 'weights'.*\(B, 1\).*\(1, \.\.\.\).*sequential"):
        run(Model(loss), weights=WEIGHTS)


def test_settings_are_passed_on():
    def loss(logits, labels, trains, layers):
        assert layers == [0, 1, 2, 3]
        return F.cross_entropy(logits, labels)

    assert run(Model(loss), layers=[0, 1, 2, 3])[1].plan.follows == {"layers": False}


def test_a_batch_of_one_row_shows_nothing():
    model = Model(weighted_rows).train()
    one, four = ({"input_ids": IDS[:size], "labels": LABELS[:size], "weights": WEIGHTS[:size]} for size in (1, 4))
    objective = Objective.of(model, [one])
    for batch, follows in ((one, {}), (four, {"weights": True})):
        objective(model, batch, objective.window([batch]), StepSettings())
        assert objective.plan.follows == follows


# ---- Losses that depend on the number of rows ----


def negatives_in_the_batch(logits, labels, trains):
    loss = F.cross_entropy(logits, labels)
    return loss + (F.cross_entropy(logits @ logits.T, torch.arange(len(logits))) if trains else 0)


def test_a_loss_that_mixes_rows_only_while_training_is_refused():
    with pytest.raises(ValueError, match='loss of Model depends on the number of rows.*"sequential"'):
        run(Model(negatives_in_the_batch, nn.Dropout(0.3)))
    model = Model(negatives_in_the_batch, nn.Dropout(0.3))
    run(model, "sequential")
    assert model.noise.p == 0.3


class Noise(nn.Module):
    """Noise that no setting of a dropout module stops, and evaluation mode neither."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "torch":
            return F.dropout(x, 0.3)
        if self.kind == "numpy":
            return x * torch.as_tensor(np.random.rand(*x.shape) > 0.3).to(x) / 0.7
        return x * torch.tensor([random.random() > 0.3 for _ in range(x.numel())]).reshape(x.shape).to(x) / 0.7


def mean(logits, labels, trains):
    return F.cross_entropy(3 * logits, labels)


def summed(logits, labels, trains):
    return F.cross_entropy(3 * logits, labels, reduction="sum")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["torch", "numpy", "random"])
def test_noise_that_stays_does_not_make_a_mean_depend_on_rows(kind, seed):
    for loss in (mean, summed, negatives_in_the_batch):
        model = Model(loss, Noise(kind)).train()
        if kind == "torch":
            tiny.in_one_memory(model)
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        if loss is mean:
            assert run(model)[0].divergence > 0
            continue
        with pytest.raises(ValueError, match="depends on the number of rows"):
            run(model)


@pytest.mark.parametrize("once, again, alike", [
    ([50.0], [50.5], True), ([50.0], [52.0], False), ([1e-3], [2e-3], False), ([1e-9], [2e-8], True),
    ([0.0, 2.0] * 8, [1.0, 3.0] * 8, True), ([0.0, 2.0] * 8, [3.0, 5.0] * 8, False), ([float("nan")], [1.0], True),
])  # fmt: skip
def test_losses_are_alike_up_to_two_percent_and_their_noise(once, again, alike):
    assert _are_alike(torch.tensor(once), torch.tensor(again)) is alike


def test_which_entries_are_in_doubt():
    """Not what may point at rows, nor what can be repeated only in one way, or in none."""
    batch = {
        "weights": torch.ones(4), "of_classes": torch.ones(3), "ids": torch.arange(4), "offsets": torch.arange(3),
        "costs": torch.ones(3, 3), "names": list(range(4)), "layers": [0, 1], "texts": list("abcd"),
        "of_no_rows": torch.ones(3, 2), "pixels": torch.ones(4, 2), "one": torch.ones(1, 1), "scale": torch.tensor(2.0),
    }  # fmt: skip
    found = doubtful_entries(batch, 4, {"labels"})
    assert found == {"weights": True, "of_classes": False, "ids": True, "costs": False, "names": False}
    assert doubtful_entries(batch, 4, batch) == {}


def test_some_rows_are_picked_of_all_that_has_rows():
    """As they are repeated: each entry of a tuple, but a list as a whole."""
    of_axes = torch.arange(24).view(3, 4, 2)
    parts = [torch.full((4, 2), i) for i in range(4)]  # as long as the batch, each of its own row
    batch = {
        "input_ids": IDS, "position_ids": of_axes, "pictures": parts, "states": (IDS, IDS + 1), "inner": {"ids": IDS},
        "texts": list("abcd"), "layers": [0, 1, 2, 3], "bias": torch.ones(1, 6), "flag": None,
        "scale": torch.tensor(2.0),
    }  # fmt: skip
    some = pick_rows(batch, [0, 2], 4)
    same = {"input_ids": IDS[::2], "position_ids": of_axes[:, ::2], "bias": batch["bias"], "scale": batch["scale"]}
    assert all(torch.equal(some[key], value) for key, value in same.items())
    assert torch.equal(some["inner"]["ids"], IDS[::2]) and torch.equal(some["states"][1], IDS[::2] + 1)
    assert [int(part[0, 0]) for part in some["pictures"]] == [0, 2] and some["pictures"][0].shape == (4, 2)
    assert (some["texts"], some["layers"], some["flag"]) == (["a", "c"], [0, 1, 2, 3], None)


@pytest.mark.parametrize(
    "entry, fault",
    [
        ({"pixel_values": torch.ones(7, 3)}, r"'pixel_values' has the shape \(7, 3\)"),
        ({"pictures": [torch.ones(2)] * 7}, "'pictures' is a list of 7 entries"),
        ({"cu_seq_lens_q": torch.arange(4)}, "'cu_seq_lens_q' describes sequences packed into rows"),
    ],
)
def test_rows_are_not_picked_where_their_part_is_not_known(entry, fault):
    with pytest.raises(ValueError, match=f"{fault}.*Leave rdrop_row_share at 1"):
        pick_rows({"input_ids": IDS, **entry}, [0, 2], 4)
