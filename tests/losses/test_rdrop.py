"""`rdrop_loss` against the definition, at extremes, and with input it must refuse."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer.losses import rdrop_loss
from support import formulas
from support.formulas import formulas_fast, make, relative

PROBLEMS = ("single_label", "multi_label", "regression")
IMPLEMENTATIONS = ("reference", "chunked")
# The closed form is that of the categorical divergence
BY_PROBLEM = [("single_label", "chunked"), *((problem, "reference") for problem in PROBLEMS)]
each_problem = pytest.mark.parametrize("problem, implementation", BY_PROBLEM)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def loss_of(logits, labels, implementation, problem="single_label", **settings):
    return rdrop_loss(logits, labels, implementation=implementation, problem=problem, **{"alpha": 4.0, **settings})


@each_problem
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("n, c", [(1, 1), (1, 2), (7, 3), (33, 17)])
def test_equals_the_definition(problem, m, n, c, implementation):
    if problem == "single_label" and c == 1:
        c = 2
    logits, labels = make(problem, n, c, m)
    logits.requires_grad_()
    expected_logits = logits.detach().double().requires_grad_()
    result = loss_of(logits, labels, implementation, problem, alpha=3.0, num_passes=m)
    expected = formulas.rdrop(expected_logits.split(n), labels, 3.0, problem)
    for got, want in zip(result, expected, strict=True):
        assert relative(got.detach(), want.detach()) < 1e-6
    result.loss.backward()
    expected[0].backward()
    assert relative(logits.grad, expected_logits.grad) < 1e-6
    assert logits.grad.reshape(m, n, c).abs().sum((1, 2)).gt(0).all()  # every pass learns


@each_implementation
@pytest.mark.parametrize("n, c", [(64, 10), (64, 5000), (3, 150_000)])
@pytest.mark.parametrize("noise", [1.0, 0.1, 0.001])
def test_float32_keeps_its_digits_when_passes_are_close(n, c, noise, implementation):
    g = torch.Generator().manual_seed(1)
    base = torch.randn(n, c, generator=g) * 3
    logits = torch.cat([base + noise * torch.randn(n, c, generator=g) for _ in range(2)]).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    a, b = exact.log_softmax(-1).split(n)
    expected = 0.5 * ((a.exp() - b.exp()) * (a - b)).sum(-1).mean()
    got = loss_of(logits, torch.zeros(n, dtype=torch.long), implementation).divergence
    assert relative(got.detach(), expected.detach()) < 1e-6
    got.backward()
    expected.backward()
    assert relative(logits.grad, exact.grad) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_problem
def test_half_precision_is_no_worse_than_the_naive_formula(dtype, problem, implementation):
    logits, labels = make(problem, 40, 3000 if problem == "single_label" else 6, dtype=dtype)
    expected = formulas_fast(logits.double(), labels, problem)
    got = loss_of(logits, labels, implementation, problem).loss
    assert got.dtype == torch.float32
    naive_error = relative(formulas_fast(logits, labels, problem), expected)
    assert relative(got, expected) <= naive_error + 1e-6


@each_implementation
def test_seed_and_paper_weights(implementation):
    """alpha means what it means in the paper (half its loss) and in bojone's crossentropy_with_rdrop."""
    logits, labels = make("single_label", 6, 4)
    a, b = logits.double().log_softmax(-1).split(6)
    ce1, ce2 = F.nll_loss(a, labels), F.nll_loss(b, labels)
    kl12 = (a.exp() * (a - b)).sum(-1).mean()
    kl21 = (b.exp() * (b - a)).sum(-1).mean()
    paper = ce1 + ce2 + 4 * 0.5 * (kl12 + kl21)
    seed = 0.5 * (ce1 + ce2) + 4 / 4 * (kl12 + kl21)
    got = loss_of(logits, labels, implementation).loss
    assert relative(got, paper / 2) < 1e-6
    assert relative(got, seed) < 1e-6


@each_implementation
def test_unlabeled_items_count_in_the_divergence_only(implementation):
    logits, labels = make("single_label", 6, 4)
    labels[[1, 4]] = -100
    expected = formulas.rdrop(logits.split(6), labels, 4.0)
    for got, want in zip(loss_of(logits, labels, implementation), expected, strict=True):
        assert relative(got, want) < 1e-6


@each_implementation
@pytest.mark.parametrize("labels", [torch.full((5,), -100), None])
def test_nothing_labeled_gives_task_zero_and_a_gradient_from_the_divergence(labels, implementation):
    logits, _ = make("single_label", 5, 3)
    logits.requires_grad_()
    result = loss_of(logits, labels, implementation)
    assert result.task_loss == 0
    result.loss.backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@each_problem
def test_identical_passes_have_no_divergence(problem, implementation):
    logits, labels = make(problem, 9, 5, m=1)
    two, five = (loss_of(logits.repeat(m, 1), labels, implementation, problem, num_passes=m) for m in (2, 5))
    assert two.divergence == 0 and abs(five.divergence.item()) <= 1e-12


@each_problem
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_stay_finite(problem, magnitude, implementation):
    logits, labels = make(problem, 4, 3)
    logits[0, 1] = magnitude
    logits[5] = magnitude
    logits.requires_grad_()
    result = loss_of(logits, labels, implementation, problem)
    result.loss.backward()
    assert result.loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("problem, implementation", BY_PROBLEM[:3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_masked_class_contributes_nothing(problem, smoothing, implementation):
    smoothing = smoothing if problem == "single_label" else 0.0
    logits, labels = make(problem, 4, 3)
    if problem == "multi_label":
        labels[:, 2] = 0
    else:
        labels = labels.clamp(max=1)
    masked = logits.clone()
    masked[:, 2] = float("-inf")
    masked.requires_grad_()
    got = loss_of(masked, labels, implementation, problem, label_smoothing=smoothing)
    without = loss_of(logits[:, :2], labels if labels.dim() == 1 else labels[:, :2], implementation, problem)
    assert relative(got.divergence.detach(), without.divergence) < 1e-6
    got.loss.backward()
    assert got.loss.isfinite() and masked.grad.isfinite().all()
    assert (masked.grad[:, 2] == 0).all()


@each_implementation
def test_many_classes_and_empty_batches(implementation):
    logits, labels = make("single_label", 2, 150_000)
    a, b = logits.double().log_softmax(-1).split(2)
    expected = 0.5 * ((a.exp() - b.exp()) * (a - b)).sum(-1).mean()
    assert relative(loss_of(logits, labels, implementation).divergence, expected) < 1e-6
    empty = loss_of(torch.empty(0, 4, requires_grad=True), torch.empty(0, dtype=torch.long), implementation)
    empty.loss.backward()
    assert [t.item() for t in empty] == [0, 0, 0]


@each_implementation
def test_label_smoothing_equals_torch(implementation):
    logits, labels = make("single_label", 8, 5)
    labels[3] = -100
    expected = F.cross_entropy(logits.double(), labels.repeat(2), label_smoothing=0.2)
    task_loss = loss_of(logits, labels, implementation, alpha=0, label_smoothing=0.2).task_loss
    assert relative(task_loss, expected) < 1e-6


@each_implementation
def test_counts_and_reductions(implementation):
    logits, labels = make("single_label", 6, 4)
    labels[0] = -100
    plain = loss_of(logits, labels, implementation)
    counted = loss_of(logits, labels, implementation, num_items=10, num_divergence_items=torch.tensor(24))
    assert relative(counted.task_loss, plain.task_loss * 5 / 10) < 1e-6
    assert relative(counted.divergence, plain.divergence * 6 / 24) < 1e-6
    shared = loss_of(logits, labels, implementation, num_items=torch.tensor(0.5))  # one item of two processes
    assert relative(shared.task_loss, plain.task_loss * 5 / 0.5) < 1e-6
    summed = loss_of(logits, labels, implementation, reduction="sum")
    assert relative(summed.divergence, plain.divergence * 6) < 1e-6
    assert relative(summed.task_loss, plain.task_loss) < 1e-6
    assert relative(summed.loss, summed.task_loss + 2 * summed.divergence) < 1e-6
    assert loss_of(logits, labels, implementation, num_items=0).task_loss.isfinite()


@each_implementation
def test_one_pass_is_the_plain_loss(implementation):
    logits, labels = make("single_label", 6, 4, m=1)
    result = loss_of(logits, labels, implementation, num_passes=1)
    assert relative(result.loss, F.cross_entropy(logits.double(), labels)) < 1e-6
    assert result.divergence == 0


def test_regression_takes_flat_labels():
    logits, _ = make("regression", 6, 1)
    labels = torch.tensor([0.0, 1.0, -100.0, 3.0, 4.0, 5.0])  # where -100 is a value as others are
    expected = formulas.rdrop(logits.split(6), labels, 4.0, "regression")
    assert relative(rdrop_loss(logits, labels, alpha=4.0, problem="regression").loss, expected[0]) < 1e-6


# ---- Soft labels, and entries that do not count ----


def soft_labels(n, c):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_probabilities_as_labels_are_those_of_cross_entropy(smoothing):
    logits, _ = make("single_label", 6, 4)
    targets = soft_labels(6, 4).float()
    got = rdrop_loss(logits, targets, alpha=3.0, label_smoothing=smoothing)
    exact = logits.double()
    task = F.cross_entropy(exact, targets.double().repeat(2, 1), label_smoothing=smoothing)
    _, _, divergence = formulas.rdrop(exact.split(6), [0] * 6, 3.0)
    for term, want in zip(got, (task + 1.5 * divergence, task, divergence), strict=True):
        assert relative(term, want) < 1e-6
    many, labels = make("single_label", 100, 300)[0], soft_labels(100, 300).float()
    large = rdrop_loss(many, labels, alpha=0.0, mask=torch.arange(100) < 40)  # enough logits for a closed form
    kept = many.double().unflatten(0, (2, 100))[:, :40].flatten(0, 1)
    assert relative(large.task_loss, F.cross_entropy(kept, labels[:40].double().repeat(2, 1))) < 1e-6
    with pytest.raises(ValueError, match="with probabilities"):
        rdrop_loss(logits, targets, alpha=3.0, implementation="chunked")


def test_probabilities_of_a_masked_class():
    logits, _ = make("single_label", 6, 4)
    targets = torch.cat([soft_labels(6, 3).float(), torch.zeros(6, 1)], -1)
    logits[:, 3] = float("-inf")
    logits.requires_grad_()
    got = rdrop_loss(logits, targets, alpha=3.0)
    without = rdrop_loss(logits[:, :3].detach(), targets[:, :3], alpha=3.0)
    assert relative(got.loss.detach(), without.loss) < 1e-6
    got.loss.backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 3] == 0).all()


@pytest.mark.parametrize("m", [2, 3])
def test_classes_labeled_minus_100_do_not_count(m):
    """The mean over classes is over those that count; a row without any counts neither as labeled nor otherwise."""
    logits, labels = make("multi_label", 5, 4, m)
    labels[0, 1] = labels[2, 3] = labels[2, 0] = -100
    labels[4] = -100
    logits.requires_grad_()
    got = rdrop_loss(logits, labels, alpha=3.0, num_passes=m, problem="multi_label")
    passes, tasks, divergences = logits.detach().double().unflatten(0, (m, 5)), [], []
    for row in range(4):
        kept = labels[row] != -100
        z, y = passes[:, row, kept], labels[row, kept].double()
        tasks.append(sum(formulas.task_loss(one, y, "multi_label") for one in z) / m)
        pairs = [formulas.pair_divergence(z[a], z[b], "multi_label") for a in range(m) for b in range(a + 1, m)]
        divergences.append(sum(pairs) / len(pairs))
    task, divergence = sum(tasks) / 4, sum(divergences) / 4
    for term, want in zip(got, (task + 1.5 * divergence, task, divergence), strict=True):
        assert relative(term.detach(), want) < 1e-6
    got.loss.backward()
    assert (logits.grad.unflatten(0, (m, 5))[:, labels == -100] == 0).all()


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
@pytest.mark.parametrize("masked", [float("-inf"), -1e12, torch.finfo(torch.float32).min, "mask", "minus a mask"])
def test_masked_entries_do_not_count(problem, masked):
    logits, labels = make(problem, 4, 3)
    for y in (labels,) if problem == "multi_label" else ():
        y[:, 2] = 0
    given, mask = logits.clone(), None
    if masked == "mask":
        mask = torch.tensor([True, True, False]).expand(4, 3)
        given[:, 2] = labels[:, 2] = torch.nan
    elif masked == "minus a mask":
        given[:, 2] -= 1e12
    else:
        given[:, 2] = masked
    given.requires_grad_()
    got = rdrop_loss(given, labels, alpha=3.0, problem=problem, mask=mask)
    want = formulas.rdrop(logits[:, :2].split(4), labels[:, :2], 3.0, problem)
    for term, expected in zip(got, want, strict=True):
        assert relative(term.detach(), expected) < 1e-6
    got.loss.backward()
    assert given.grad.isfinite().all() and (given.grad[:, 2] == 0).all()


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_an_item_without_an_entry_that_counts_does_not_count(problem):
    logits, labels = make(problem, 4, 3)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1] = False
    got = rdrop_loss(logits, labels, alpha=3.0, problem=problem, mask=mask)
    want = rdrop_loss(logits, labels, alpha=3.0, problem=problem, mask=mask.any(-1))
    assert [relative(a, b) < 1e-6 for a, b in zip(got, want, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": -1}, "alpha must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"problem": "ranking"}, "'ranking' is unknown"),
        ({"reduction": "none"}, "'none' is unknown"),
        ({"num_passes": 3}, r"num_passes=3, got \(8, 3\)"),
        ({"num_passes": 0}, "at least 1"),
        ({"logits": torch.zeros(2, 4, 3)}, r"got \(2, 4, 3\)"),
        ({"logits": torch.zeros(8, 3, dtype=torch.long)}, "floating"),
        ({"labels": torch.zeros(8, dtype=torch.long)}, "those of one pass"),
        ({"labels": torch.zeros(4)}, "must be integers"),
        ({"labels": torch.tensor([0, 1, 3, -100])}, r"-100 or in \[0, 3\), got 3"),
        ({"labels": torch.tensor([0, 1, -1, -100])}, r"-100 or in \[0, 3\), got -1"),
        ({"problem": "multi_label"}, r"labels must have shape \(4, 3\)"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"label_smoothing": 0.1, "problem": "regression"}, "only fits"),
        ({"alpha": float("inf")}, "alpha must be a finite number"),
        (
            {"implementation": "fast"},
            "implementation='fast' is unknown; expected one of auto, reference, chunked, trit",
        ),
        ({"implementation": "chunked", "problem": "multi_label", "labels": torch.zeros(4, 3)}, "got 'multi_label'"),
        ({"implementation": "triton", "logits": torch.zeros(8, 3).double()}, "needs logits on a CUDA device"),
        ({"logits": ()}, "one tensor or 2, got an empty sequence"),
        (
            {"logits": (torch.zeros(4, 3),) * 3},
            r"or 2 of \(N, C\), with num_passes=2, got \(4, 3\), \(4, 3\), \(4, 3\)",
        ),
        ({"logits": (torch.zeros(4, 3), torch.zeros(4, 2))}, r"got \(4, 3\), \(4, 2\)"),
        ({"logits": (torch.zeros(4, 3), torch.zeros(4, 3).double())}, "one floating type, got torch.float32, torch.fl"),
        ({"labels": torch.zeros(4, 2)}, r"must have shape \(4, 3\)"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, r"mask must be booleans of shape \(4,\), got"),
        ({"mask": torch.ones(8, dtype=torch.bool)}, r"mask must be booleans of shape \(4,\)"),
        ({"mask": torch.ones(4)}, "got torch.float32 of"),
        ({"labels": torch.ones(4, dtype=torch.bool)}, "must be integers"),
        ({"labels": torch.tensor([0, 1, 5, 9]), "mask": torch.tensor([True, True, False, True])}, "got 9"),
    ],
)
def test_refuses(change, message):
    arguments = {"logits": torch.zeros(8, 3), "labels": torch.zeros(4, dtype=torch.long), "alpha": 4.0, **change}
    logits, labels = arguments.pop("logits"), arguments.pop("labels")
    with pytest.raises(ValueError, match=message):
        rdrop_loss(logits, labels, **arguments)


@pytest.mark.parametrize("problem", ["regression", "multi_label"])
@pytest.mark.parametrize("value", [-float("inf"), -2e8])
def test_a_model_that_has_diverged_is_not_masked(problem, value):
    """Its loss is as large as it is, so that the training stops at it."""
    logits, labels = torch.full((2, 1), value), torch.ones(1, 1)
    assert not rdrop_loss(logits, labels, alpha=1.0, problem=problem).task_loss < 1e7
