"""What a device does differently, on the CPU: no value is read and no row is picked."""

from functools import partial

import pytest
import torch

from rdrop_trainer.losses import devices, rdrop_linear_loss, rdrop_loss
from support.formulas import make, relative
from support.operations import Operations

N, CLASSES, HIDDEN = 12, 30, 5
MASK = torch.arange(N) % 3 > 0


@pytest.fixture
def on_a_device(monkeypatch):
    monkeypatch.setattr(devices, "can_read", lambda tensor: False)


def loss_of(problem, implementation, **settings):
    return partial(rdrop_loss, problem=problem, implementation=implementation, alpha=4.0, **settings)


def linear(tensors, labels, **settings):
    return rdrop_linear_loss(tensors, torch.arange(CLASSES * HIDDEN).reshape(CLASSES, -1).sin(), labels, **settings)


LOSSES = {
    "reference": ("single_label", loss_of("single_label", "reference", label_smoothing=0.1)),
    "chunked": ("single_label", loss_of("single_label", "chunked", label_smoothing=0.1)),
    "multi_label": ("multi_label", loss_of("multi_label", "auto")),
    "regression": ("regression", loss_of("regression", "auto")),
    "linear": ("single_label", partial(linear, alpha=4.0, label_smoothing=0.1)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_and_the_result_is_that_of_the_items_that_count(name, dtype, masked, on_a_device):
    problem, loss = LOSSES[name]
    logits, labels = make(problem, N, HIDDEN if name == "linear" else CLASSES, 2, dtype)
    mask = MASK if masked else None
    kept = logits[MASK.repeat(2)] if masked else logits
    expected, exact = [], kept.detach().double().requires_grad_()
    right = loss(exact, labels[MASK] if masked else labels)
    [expected] = torch.autograd.grad(right.loss, exact)
    if masked:
        logits[~MASK.repeat(2)] = torch.nan
        labels[~MASK] = 10**6
    logits = logits.requires_grad_()
    with Operations() as operations:
        got = loss(logits, labels, mask=mask)
        [gradient] = torch.autograd.grad(got.loss, logits)
    assert not operations.that_wait
    exact_to = 1e-12 if dtype == torch.float64 else 1e-2
    for term, value in zip(got, right, strict=True):
        assert relative(term.detach(), value.detach()) < exact_to
    assert relative(gradient[MASK.repeat(2)] if masked else gradient, expected) < exact_to
    assert not masked or not gradient[~MASK.repeat(2)].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradients_of_a_head_do_not_see_rows_that_do_not_count(dtype, on_a_device):
    hidden, labels = make("single_label", N, HIDDEN, 2, dtype)
    weight = torch.randn(CLASSES, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    keep = MASK.repeat(2)
    right = rdrop_linear_loss(hidden[keep], weight, labels[MASK], alpha=4.0)
    [expected] = torch.autograd.grad(right.loss, weight)
    hidden[~keep] = torch.nan
    [gradient] = torch.autograd.grad(rdrop_linear_loss(hidden, weight, labels, alpha=4.0, mask=MASK).loss, weight)
    assert relative(gradient, expected) < (1e-12 if dtype == torch.float64 else 1e-2)


def test_require():
    devices.require(torch.tensor(True), "fine")
    with pytest.raises(ValueError, match="not fine"):
        devices.require(torch.tensor(False), "not fine")
