"""The chunked backend: the definition, its digits in float32, its gradients however they are asked for, its memory."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer.losses import backends, chunked, rdrop, rdrop_loss
from support import formulas
from support.formulas import make, relative
from support.tiny import Sizes

INF = float("inf")


def loss_of(logits, labels, **settings):
    return rdrop_loss(logits, labels, implementation="chunked", **{"alpha": 4.0, **settings})


def definition(logits, labels, alpha=4.0, num_passes=2, label_smoothing=0.0, mask=None):
    """`formulas.rdrop`, vectorised for many classes, in float64; checked against it below."""
    z = logits.double().unflatten(0, (num_passes, -1))
    if mask is not None:
        z, labels = z[:, mask], labels[mask]
    log_p = z.log_softmax(-1)
    ignored = int((labels != -100).sum()) == 0
    task = F.cross_entropy(z.flatten(0, 1), labels.repeat(num_passes), label_smoothing=label_smoothing)
    task = z.sum() * 0 if ignored else task
    p = log_p.exp()
    divergence = ((p - p.mean(0)) * (log_p - log_p.mean(0))).sum((0, 2)).mean() / max(num_passes - 1, 1)
    return task + alpha / 2 * divergence, task, divergence


def compare(logits, labels, tolerance=1e-6, expected=definition, **settings):
    """Loss, terms and gradient against a definition in float64."""
    given, exact = logits.detach().clone().requires_grad_(), logits.detach().double().requires_grad_()
    result, wanted = loss_of(given, labels, **settings), expected(exact, labels, **settings)
    for got, want in zip(result, wanted, strict=True):
        assert relative(got.detach(), want.detach()) < tolerance
    result.loss.backward()
    wanted[0].backward()
    assert relative(given.grad, exact.grad) < tolerance
    return given.grad


@pytest.fixture
def many_chunks(monkeypatch):
    """Float32 arithmetic in chunks of 4 rows, whatever their number."""
    monkeypatch.setattr(chunked, "CHUNK_PER_THREAD", 1)
    monkeypatch.setattr(chunked, "_rows_of_a_chunk", lambda *_: 4)
    monkeypatch.setattr(backends, "FLOAT64_UP_TO", 0)


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
