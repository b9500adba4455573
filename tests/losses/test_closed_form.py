"""Gradients in closed form, however they are asked for; what is left alone, and the memory that is taken."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer.losses import backends, chunked, rdrop, rdrop_loss
from support.closed_form import compare, definition, loss_of
from support.formulas import make, relative
from support.tiny import Sizes

INF = float("inf")


# ---- How the gradient is asked for ----


def asked(result, how):
    return {
        "loss": lambda r: r.loss,
        "loss times three": lambda r: 3 * r.loss,
        "task loss": lambda r: r.task_loss,
        "divergence": lambda r: -2 * r.divergence,
        "all": lambda r: r.loss + 5 * r.task_loss - 7 * r.divergence,
    }[how](result)


@pytest.mark.parametrize("alpha", [0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("how", ["loss", "loss times three", "task loss", "divergence", "all"])
def test_gradients_through_any_of_the_terms(how, dtype, alpha):
    logits, labels = make("single_label", 9, 30, dtype=dtype)
    given, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    asked(loss_of(given, labels, alpha=alpha), how).backward()
    task, divergence = definition(exact, labels)[1:]
    asked(rdrop.RDropLoss(task + alpha / 2 * divergence, task, divergence), how).backward()
    assert relative(given.grad, exact.grad) < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_graph_that_is_kept_can_be_used_again(dtype):
    logits, labels = make("single_label", 9, 30, dtype=dtype)
    logits.requires_grad_()
    loss = loss_of(logits, labels).loss
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    (3 * loss).backward()
    assert relative(logits.grad, 4 * once.double()) < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("backward_in_autocast", [False, True])
def test_in_autocast_the_arithmetic_stays(backward_in_autocast):
    logits, labels = make("single_label", 9, 30)
    given = logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(given, labels).loss
        if backward_in_autocast:
            loss.backward()
    if not backward_in_autocast:
        loss.backward()
    expected = logits.clone().requires_grad_()
    loss_of(expected, labels).loss.backward()
    assert torch.equal(given.grad, expected.grad)


def test_a_float16_gradient_survives_a_small_loss():
    """It would vanish before the loss scale reaches it, were it made in the forward pass."""
    logits, labels = make("single_label", 16, 300, dtype=torch.float16)
    given, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    settings = {"num_items": 4_000, "num_divergence_items": 4_000}
    (65536 * loss_of(given, labels, **settings).loss).backward()
    (65536 / 250 * definition(exact, labels)[0]).backward()
    assert relative(given.grad, exact.grad) < 1e-3
    assert (given.grad == 0).float().mean() < 0.01


def test_the_divergence_is_reported_where_it_is_no_part_of_the_loss():
    logits, labels = make("single_label", 9, 30)
    logits.requires_grad_()
    result = loss_of(logits, labels, alpha=0)
    assert relative(result.divergence.detach(), definition(logits.detach(), labels)[2]) < 1e-6
    assert result.loss == result.task_loss
    result.loss.backward()
    exact = logits.detach().double().requires_grad_()
    F.cross_entropy(exact, labels.repeat(2)).backward()
    assert relative(logits.grad, exact.grad) < 1e-6


def test_alpha_as_a_tensor():
    logits, labels = make("single_label", 9, 30)
    assert loss_of(logits, labels, alpha=torch.tensor(3.0)) == loss_of(logits, labels, alpha=3.0)
    alpha = torch.tensor(3.0, requires_grad=True)
    with pytest.raises(ValueError, match="'chunked' computes problem='single_label' with a number for alpha"):
        loss_of(logits, labels, alpha=alpha)
    many = torch.randn(64, 300)  # enough that "auto" would choose chunked for a number
    result = rdrop_loss(many, labels.repeat(4)[:32], alpha=alpha)
    result.loss.backward()
    assert relative(alpha.grad, result.divergence.detach() / 2) < 1e-6


# ---- What is left alone, and what is taken ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_stay_as_they_are(dtype, many_chunks):
    logits, labels = make("single_label", 9, 30, dtype=dtype)
    labels[2] = -100
    mask = torch.arange(9) != 4
    copies = [t.clone() for t in (logits, labels, mask)]
    for given in (None, mask):
        loss_of(logits.requires_grad_(), labels, mask=given).loss.backward()
    assert all(torch.equal(t, copy) for t, copy in zip((logits, labels, mask), copies, strict=True))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.0), (1.0, 0.0, 2.0), (0.0, 3.0, 2.0), (0.5, 3.0, 2.0)])
def test_a_gradient_through_several_terms(weights):
    logits, labels = make("single_label", 9, 30)
    given, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    for terms in (loss_of(given, labels), definition(exact, labels)):
        sum(weight * term for weight, term in zip(weights, terms, strict=True) if weight).backward()
    assert relative(given.grad, exact.grad) < 1e-6


def test_logits_that_are_not_contiguous(many_chunks):
    logits, labels = make("single_label", 9, 30)
    expected = compare(logits, labels)
    for strided in (logits.T.contiguous().T, torch.stack([logits, logits], -1)[..., 0], F.pad(logits, (1, 2))[:, 1:-2]):
        assert not strided.is_contiguous()
        strided = strided.requires_grad_()
        [gradient] = torch.autograd.grad(loss_of(strided, labels).loss, strided)
        assert relative(gradient, expected) < 1e-6
    sliced = torch.cat([logits, logits]).unflatten(0, (2, 2, 9))[0].requires_grad_()  # views of a larger tensor
    gradients = torch.autograd.grad(loss_of(list(sliced), labels).loss, sliced)
    assert relative(gradients[0].flatten(0, 1), expected) < 1e-6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_memory_of_the_size_of_the_logits_is_taken_for_their_gradient_alone(with_gradient, masked, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_PER_THREAD", 2**12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logits, labels = make("single_label", 600, 1024)
    logits.requires_grad_(with_gradient)
    mask = torch.arange(600) % 5 != 0 if masked else None
    with Sizes() as sizes:
        loss = loss_of(logits, labels, mask=mask).loss
        if with_gradient:
            loss.backward()
    torch.set_num_threads(threads)
    assert len(sizes.large(logits.numel() // 8, logits)) == with_gradient


@pytest.mark.parametrize("implementation", ["auto", "chunked"])
def test_what_is_kept_for_the_backward_are_the_logits(implementation):
    logits, labels = make("single_label", 600, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        rdrop_loss(logits.requires_grad_(), labels, alpha=4.0, implementation=implementation)
    assert sum(kept) < 1.1 * logits.numel()


@pytest.mark.parametrize("wanted", ["no leaf", "no_grad", "inference"])
def test_no_gradient_is_made_where_none_is_wanted(wanted, monkeypatch):
    asked_for, original = [], chunked.loss_and_grad
    monkeypatch.setattr(
        chunked, "loss_and_grad", lambda *args, **rest: asked_for.append(args[3]) or original(*args, **rest)
    )
    logits, labels = make("single_label", 9, 30)
    logits.requires_grad_(wanted != "no leaf")
    with {"no leaf": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[wanted]():
        result = loss_of(logits, labels)
    assert asked_for == [False] and not result.loss.requires_grad
    assert relative(result.loss, definition(logits.detach(), labels)[0]) < 1e-6


def test_auto_takes_the_closed_form_from_some_logits_on(monkeypatch):
    names, original = [], rdrop.loss_and_grad_of
    monkeypatch.setattr(rdrop, "loss_and_grad_of", lambda name, dtype: names.append(name) or original(name, dtype))
    for c in (backends.CHUNKED_FROM // 8 - 1, backends.CHUNKED_FROM // 8):
        rdrop_loss(torch.zeros(8, c), torch.zeros(4, dtype=torch.long), alpha=4.0)
    assert names == ["chunked"]


def test_second_derivatives_are_the_references():
    logits, labels = make("single_label", 9, 30, dtype=torch.float64)
    logits.requires_grad_()
    [first] = torch.autograd.grad(loss_of(logits, labels).loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice|does not require grad"):
        first.sum().backward()
