"""The chunked backend: the definition, its digits in float32, masks and extremes."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer.losses import backends, rdrop_loss
from support import formulas
from support.closed_form import compare, definition, loss_of
from support.formulas import make, relative

INF = float("inf")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("n, c", [(1, 1), (1, 2), (7, 3), (33, 17)])
def test_equals_the_definition(n, c, m, smoothing):
    logits, labels = make("single_label", n, c, m)
    labels[n // 2 + 1 :: 3] = -100
    by_pairs = formulas.rdrop(logits.double().split(n), labels, 4.0, smoothing=smoothing)
    for got, want in zip(loss_of(logits, labels, num_passes=m, label_smoothing=smoothing), by_pairs, strict=True):
        assert relative(got, want) < 1e-6
    if c > 1:
        compare(logits, labels, num_passes=m, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 4, 11])
def test_many_chunks_in_float32(m, n, smoothing, many_chunks):
    logits, labels = make("single_label", n, 301, m)
    labels[3::4] = -100
    compare(logits, labels, num_passes=m, label_smoothing=smoothing)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_tensor_a_pass_is_the_same(m, many_chunks):
    logits, labels = make("single_label", 9, 30, m)
    passes = [z.clone().requires_grad_() for z in logits.split(9)]
    together = logits.requires_grad_()
    apart, whole = loss_of(passes, labels, num_passes=m), loss_of(together, labels, num_passes=m)
    assert apart == whole
    apart.loss.backward()
    whole.loss.backward()
    assert torch.equal(torch.cat([z.grad for z in passes]), together.grad)


def test_only_the_passes_that_need_a_gradient_get_one():
    logits, labels = make("single_label", 9, 30)
    first, second = logits.split(9)
    second = second.clone().requires_grad_()
    loss_of([first, second], labels).loss.backward()
    together = logits.clone().requires_grad_()
    loss_of(together, labels).loss.backward()
    assert first.grad is None and torch.equal(second.grad, together.grad[9:])


# More than 2^20 logits, so that the arithmetic is float32's
@pytest.mark.parametrize("shift", [0, 3, 40, 1e4])
@pytest.mark.parametrize("n, c, scale", [(30, 20_000, 1), (30, 20_000, 10), (4, 150_000, 5)])
def test_float32_keeps_its_digits(n, c, scale, shift):
    """Peaked distributions; passes that are close but for a shift that all classes have in common."""
    g = torch.Generator().manual_seed(1)
    base = torch.randn(n, c, generator=g) * scale
    logits = torch.cat([base, base + 0.3 * torch.randn(n, c, generator=g) + shift])
    assert logits.numel() > backends.FLOAT64_UP_TO
    compare(logits, torch.randint(0, c, (n,), generator=g))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [2, 3])
def test_half_precision_is_no_worse_than_the_naive_formula(dtype, m, monkeypatch):
    monkeypatch.setattr(backends, "FLOAT64_UP_TO", 0)
    logits, labels = make("single_label", 40, 3000, m, dtype)
    given, exact, naive = (logits.clone().to(t).requires_grad_() for t in (dtype, torch.float64, dtype))
    result, expected = loss_of(given, labels, num_passes=m), definition(exact, labels, num_passes=m)
    assert result.loss.dtype == torch.float32
    log_p = naive.log_softmax(-1).unflatten(0, (m, -1))
    spread = ((log_p.exp() - log_p.exp().mean(0)) * (log_p - log_p.mean(0))).sum((0, 2)).mean() / (m - 1)
    by_hand = F.cross_entropy(naive, labels.repeat(m)) + 2 * spread
    for loss in (result.loss, expected[0], by_hand):
        loss.backward()
    assert relative(result.loss.detach(), expected[0].detach()) < 1e-6
    assert given.grad.dtype == dtype
    assert relative(given.grad, exact.grad) <= relative(naive.grad, exact.grad)


@pytest.mark.parametrize("term", ["task_loss", "divergence"])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_gradcheck_of_the_terms(m, term):
    logits, labels = make("single_label", 5, 4, m, torch.float64)
    labels[1] = -100
    mask = torch.tensor([True, True, True, False, True])

    def value(z):
        return getattr(loss_of(z, labels, num_passes=m, label_smoothing=0.1, mask=mask), term)

    assert torch.autograd.gradcheck(value, logits.requires_grad_())


@pytest.mark.parametrize("as_sequence", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_masked_items_count_nowhere_whatever_they_hold(dtype, as_sequence, many_chunks):
    logits, labels = make("single_label", 14, 6, dtype=dtype)
    mask = torch.arange(14) % 3 != 1
    both = mask.repeat(2)
    without = logits[both].clone().requires_grad_()
    expected = loss_of(without, labels[mask])
    expected.loss.backward()
    logits[~both] = torch.tensor([float("nan"), INF, -INF, 1, 2, 3], dtype=dtype)
    labels[~mask] = 77
    passes = [z.clone().requires_grad_() for z in (logits.split(14) if as_sequence else (logits,))]
    result = loss_of(passes if as_sequence else passes[0], labels, mask=mask)
    assert result == expected
    result.loss.backward()
    gradient = torch.cat([z.grad for z in passes])
    assert torch.equal(gradient[both], without.grad) and (gradient[~both] == 0).all()


@pytest.mark.parametrize("case", ["no rows", "all masked", "no label", "no labels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_to_count(case, dtype):
    logits, labels = make("single_label", 0 if case == "no rows" else 5, 3, dtype=dtype)
    logits.requires_grad_()
    mask = torch.zeros(5, dtype=torch.bool) if case == "all masked" else None
    if case.startswith("no label"):
        labels = torch.full((5,), -100) if case == "no label" else None
    result = loss_of(logits, labels, mask=mask)
    result.loss.backward()
    assert result.task_loss == 0 and logits.grad.isfinite().all()
    counts = case.startswith("no label")
    assert (result.divergence > 0) == counts and bool(logits.grad.abs().sum() > 0) == counts


@pytest.mark.parametrize("magnitude", [1e4, -1e4, 200, -200])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_extreme_logits(m, smoothing, magnitude, many_chunks):
    """In one class, in all classes of one pass, and in all passes."""
    logits, labels = make("single_label", 6, 9, m)
    logits[0, 1] = magnitude
    logits[2] += magnitude
    logits.unflatten(0, (m, -1))[:, 3] += magnitude
    compare(logits, labels, num_passes=m, label_smoothing=smoothing, tolerance=2e-6)


@pytest.mark.parametrize("ahead", [10, 30, 80])
def test_one_class_far_ahead(ahead, many_chunks):
    logits, labels = make("single_label", 6, 50)
    logits[:, 7] += ahead
    compare(logits, labels)
    result = loss_of(logits, torch.full((6,), 7))
    exact = definition(logits, torch.full((6,), 7))
    assert all(abs(got - want) <= 1e-6 * ahead for got, want in zip(result, exact, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_classes_masked_in_all_passes_contribute_nothing(m, smoothing, many_chunks):
    logits, labels = make("single_label", 6, 9, m)
    masked = torch.zeros(6, 9, dtype=torch.bool)
    masked[:3, 8], masked[1, 6:] = True, True  # other classes in other rows
    labels = labels.clamp(max=5)
    given = logits.masked_fill(masked.repeat(m, 1), -INF).requires_grad_()
    result = loss_of(given, labels, num_passes=m, label_smoothing=smoothing)
    result.loss.backward()
    exact = given.detach().double().requires_grad_()
    expected = rdrop_loss(exact, labels, alpha=4.0, num_passes=m, label_smoothing=smoothing, implementation="reference")
    expected.loss.backward()
    for got, want in zip(result, expected, strict=True):
        assert relative(got.detach(), want.detach()) < 1e-6
    assert relative(given.grad, exact.grad) < 1e-6
    assert (given.grad[masked.repeat(m, 1)] == 0).all()
    if m == 2 and not smoothing:
        kept = [z[~hidden] for z, hidden in zip(logits, masked.repeat(2, 1), strict=True)]
        by_pairs = (
            sum(formulas.rdrop([a[None], b[None]], [-100], 4.0)[2] for a, b in zip(kept[:6], kept[6:], strict=True)) / 6
        )
        assert relative(result.divergence.detach(), by_pairs) < 1e-6


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("m", [2, 3])
def test_classes_masked_by_the_smallest_number_contribute_nothing(m, implementation, monkeypatch):
    """Chameleon's logits, for one: there the sum of some passes would be -inf."""
    monkeypatch.setattr(backends, "FLOAT64_UP_TO", 0)
    logits, labels = make("single_label", 6, 9, m)
    logits[:, 7:] = torch.finfo(torch.float32).min
    labels = labels.clamp(max=6)
    exact = logits.double().requires_grad_()
    wanted = definition(exact, labels, num_passes=m)
    wanted[0].backward()
    given = logits.detach().requires_grad_()
    result = rdrop_loss(given, labels, alpha=4.0, num_passes=m, implementation=implementation)
    result.loss.backward()
    for got, want in zip(result, wanted, strict=True):
        assert relative(got.detach(), want.detach()) < 1e-6
    assert relative(given.grad, exact.grad) < 1e-6


def test_a_class_masked_in_one_pass_alone_has_no_finite_divergence():
    logits, labels = make("single_label", 4, 5)
    logits[2, 4] = -INF
    assert not loss_of(logits, labels.clamp(max=3)).divergence.isfinite()
