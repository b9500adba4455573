"""The Triton kernels against the definition; test_triton.py runs this file in a process of its own.

With TRITON_INTERPRET=1, which must be set before Triton is imported, on the CPU; otherwise compiled, on a CUDA device.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rdrop_trainer.losses import chunked, kernels, rdrop_loss, triton
from support import formulas
from support.formulas import formulas_fast, relative
from support.triton_cases import CLASSES, DEVICE, by_triton, computed, example

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of -inf - -inf


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_equals_the_definition(m, smoothing, way):
    logits, labels = example(3, m)
    labels[1] = -100
    exact = logits.detach().double().requires_grad_()
    passes = exact.split(3) if m > 1 else [exact, exact]  # the mean over pairs needs a pair
    expected = formulas.rdrop(passes, labels.tolist(), 3.0, smoothing=smoothing)
    got = by_triton(logits, labels, alpha=3.0, num_passes=m, label_smoothing=smoothing)
    for term, right in zip(got, expected, strict=True):
        assert term.dtype == torch.float32 and relative(term.detach(), right.detach()) < 1e-6
    got.loss.backward()
    expected[0].backward()
    assert relative(logits.grad, exact.grad) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_naive_formula(dtype, way):
    logits, labels = example(4, dtype=dtype)
    exact, naive = logits.detach().double().requires_grad_(), logits.detach().clone().requires_grad_()
    expected, rough = formulas_fast(exact, labels, "single_label"), formulas_fast(naive, labels, "single_label")
    got = by_triton(logits, labels, alpha=4.0).loss
    for loss in (expected, rough, got):
        loss.backward()
    assert got.dtype == torch.float32 and logits.grad.dtype == dtype
    assert relative(got.detach(), expected.detach()) < 1e-6
    # One rounding, of the result
    assert relative(logits.grad, exact.grad) <= min(relative(naive.grad, exact.grad), torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_close_passes_keep_their_digits(noise, way):
    base, labels = example(2, m=1)
    logits, other = torch.cat([base, base]).detach(), example(2, seed=1)[0].detach()
    logits += noise * other
    logits[2:] += 100  # of no effect on the distributions
    _, divergence, (gradient,) = computed((logits,), labels, weights=(0.0, 1.0))
    a, b = (exact := logits.double().requires_grad_()).log_softmax(-1).split(2)
    expected = 0.5 * ((a.exp() - b.exp()) * (a - b)).sum()
    expected.backward()
    assert relative(divergence, expected.detach()) < 3e-7 / noise
    assert relative(gradient, exact.grad) < 3e-7 / noise


def test_terms_are_divided_by_the_counts_that_are_given(way):
    logits, labels = example(3)
    exact = logits.detach().double().requires_grad_()
    options = {"alpha": 3.0, "num_items": 2, "num_divergence_items": 5}
    expected = rdrop_loss(exact, labels, implementation="reference", **options)
    got = by_triton(logits, labels, **options)
    for term, right in zip(got, expected, strict=True):
        assert relative(term.detach(), right.detach()) < 1e-6
    got.loss.backward()
    expected.loss.backward()
    assert relative(logits.grad, exact.grad) < 1e-6


@pytest.mark.parametrize("m", [2, 5])
def test_identical_passes_have_no_divergence(m, way):
    logits, labels = example(1, m=1)
    _, divergence, (gradient,) = computed((logits.detach().repeat(m, 1),), labels, m, weights=(0.0, 1.0))
    assert divergence == 0 and not gradient.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_items_add_nothing_whatever_they_hold(smoothing, way):
    logits, labels = example(6)
    mask = torch.tensor([True, False, True, False, False, True], device=DEVICE)
    labels[0] = -100
    kept = logits.detach()[mask.repeat(2)].double().requires_grad_()
    expected = rdrop_loss(kept, labels[mask], alpha=4.0, label_smoothing=smoothing, implementation="reference")
    with torch.no_grad():
        logits[1], logits[9], logits[4] = float("nan"), float("inf"), float("-inf")
    labels[[1, 3]] = torch.tensor([10**6, -7], device=DEVICE)
    arguments = ((logits.detach(),), labels)
    task, divergence, _ = computed(*arguments, mask=mask, label_smoothing=smoothing)
    gradient = computed(*arguments, weights=(1 / 2, 2 / 3), mask=mask, label_smoothing=smoothing)[2][0]
    expected.loss.backward()
    assert relative(task / 2, expected.task_loss.detach()) < 1e-6
    assert relative(divergence / 3, expected.divergence.detach()) < 1e-6
    assert relative(gradient[mask.repeat(2)], kept.grad) < 1e-6
    assert not gradient[~mask.repeat(2)].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("masked", [slice(0, 40), slice(30, 31), slice(60, None)])
def test_masked_classes_contribute_nothing(masked, smoothing, way):
    logits, labels = example(2)
    labels = 41 + labels % 19
    with torch.no_grad():
        logits[:, masked] = float("-inf")
    exact = logits.detach().double().requires_grad_()
    expected = rdrop_loss(exact, labels, alpha=4.0, label_smoothing=smoothing, implementation="reference")
    got = by_triton(logits, labels, alpha=4.0, label_smoothing=smoothing)
    got.loss.backward()
    expected.loss.backward()
    assert relative(got.divergence.detach(), expected.divergence.detach()) < 1e-6
    assert relative(got.loss.detach(), expected.loss.detach()) < 1e-6
    assert relative(logits.grad, exact.grad) < 1e-6 and not logits.grad[:, masked].any()


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_stay_finite(magnitude, way):
    logits, labels = example(4)
    with torch.no_grad():
        logits[0, 1] = magnitude
        logits[5] = magnitude
        logits[6, 40:] = magnitude
    exact = logits.detach().double().requires_grad_()
    expected = rdrop_loss(exact, labels, alpha=4.0, label_smoothing=0.1)
    got = by_triton(logits, labels, alpha=4.0, label_smoothing=0.1)
    got.loss.backward()
    expected.loss.backward()
    assert relative(got.loss.detach(), expected.loss.detach()) < 1e-6
    assert relative(logits.grad, exact.grad) < 1e-6


@pytest.mark.parametrize("value", [-1e12, -3e38, 3e38])
def test_a_thread_that_has_only_huge_logits_adds_what_it_should(value, way):
    logits, labels = example(2)
    with torch.no_grad():
        logits[:, 20:60] = value
        logits[[1, 3]] = value  # so all classes are equally probable
    labels[0] = 30 if value > 0 else 3
    exact = logits.detach().double().requires_grad_()
    expected = rdrop_loss(exact, labels, alpha=4.0, implementation="reference")
    got = by_triton(logits, labels, alpha=4.0)
    got.loss.backward()
    expected.loss.backward()
    assert relative(got.loss.detach(), expected.loss.detach()) < 1e-6
    assert relative(logits.grad, exact.grad) < 1e-6


def test_a_nan_or_a_wrong_label_is_seen(way):
    logits, labels = example(2)
    wrong = labels.clone()
    wrong[1] = CLASSES
    assert computed((logits.detach(),), wrong)[0].isnan()
    with torch.no_grad():
        logits[1, 3] = float("nan")
    task, divergence, _ = computed((logits.detach(),), labels)
    assert task.isnan() and divergence.isnan()
    _, divergence, _ = computed((logits.detach(),), labels[[0, 1, 0, 1]], m=1)
    assert divergence == 0


@pytest.mark.skipif(DEVICE != "cpu", reason="threads run the programs of the interpreter")
def test_a_second_sweep_waits_for_all_parts_of_the_first(monkeypatch):
    """Two programs run at the same time; one is slow in its first sweep, and the other begins a second sweep then."""
    logits, labels = example(1)
    expected = computed((logits.detach(),), labels)
    kernel, first_sweep, begun, waited = triton.rdrop_kernel, kernels.first_sweep, [], []

    def slow_at_first(*args):
        begun.append(args)
        slow = len(begun) == 1
        if slow:
            while len(begun) < 2:
                time.sleep(0.001)
            time.sleep(0.1)
        sums = first_sweep(*args)
        waited.append(slow)
        return sums

    class InTwoThreads:
        def __getitem__(self, grid):
            half = grid[0] // 2
            return lambda *args, **options: list(
                ThreadPoolExecutor(2).map(lambda _: kernel[(half,)](*args, **options), range(2))
            )

    monkeypatch.setattr(triton, "split", lambda *_: (2, 0))
    monkeypatch.setattr(triton, "rdrop_kernel", InTwoThreads())
    monkeypatch.setattr(kernels, "first_sweep", slow_at_first)
    got = computed((logits.detach(),), labels)
    assert waited == [False, True]
    for value, right in zip((*got[:2], got[2][0]), (*expected[:2], expected[2][0]), strict=True):
        assert relative(value, right) < 1e-6


@pytest.mark.parametrize(
    "size, item_bytes, blocks, parts",
    [
        (8192, 2 * 151_936 * 2, 19, 4),  # 264 items of 0.6 MB in a cache of 50 MB
        (2048, 2 * 151_936 * 4, 38, 8),
        (512, 2 * 32_000 * 4, 8, 2),
        (4096, 2 * 32_000 * 2, 4, 1),
        (64, 2 * 151_936 * 2, 19, 1),  # all of them fit
        (10**6, 2 * 10**6, 3, 2),  # a part has a block at least
        (0, 2 * 151_936 * 2, 19, 1),
    ],
)
def test_the_items_that_are_begun_fit_in_the_cache(size, item_bytes, blocks, parts, monkeypatch):
    monkeypatch.setattr(triton, "_capacity", lambda device: (264, 50 * 10**6))
    got, lag = triton.split(torch.device("cuda"), size, item_bytes, blocks)
    assert got == parts and 2 * parts * lag >= 264


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("layout", ["one tensor", "separate", "strided", "transposed"])
def test_every_layout_gives_the_same(layout, overwrite, way):
    logits, labels = example(2)
    logits = logits.detach()
    expected, mask = computed((logits,), labels), None
    if layout == "one tensor":
        tensors = (logits.clone(),)
    elif layout == "separate":
        tensors = tuple(z.clone() for z in logits.split(2))
    elif layout == "strided":
        tensors = (torch.full((4, 100), 7.0, device=DEVICE)[:, 11 : 11 + CLASSES],)
        tensors[0].copy_(logits)
        labels = torch.stack([labels, labels + 1], 1)[:, 0]
        mask = torch.tensor([[True, False]] * 2, device=DEVICE)[:, 0]
    else:
        tensors = (logits.T.contiguous().T,)
    got = computed(tensors, labels, overwrite=overwrite, mask=mask)
    assert [g.shape for g in got[2]] == [z.shape for z in tensors]
    gradient = torch.cat(tuple(got[2]))
    for value, right in zip((*got[:2], gradient), (*expected[:2], expected[2][0]), strict=True):
        assert relative(value, right) < 1e-6
    in_place = overwrite and layout != "transposed"  # whose classes do not lie side by side
    assert torch.equal(torch.cat(tensors), gradient if in_place else logits)
    if layout == "strided":
        assert (tensors[0]._base[:, :11] == 7).all() and (tensors[0]._base[:, 11 + CLASSES :] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("of", ["loss", "task_loss", "divergence", "a third of the loss"])
def test_gradients_of_every_term(of, dtype, way):
    logits, labels = example(2, dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    for z, implementation in ((logits, "triton"), (exact, "reference")):
        result = rdrop_loss(z, labels, alpha=4.0, implementation=implementation)
        (result.loss / 3 if of.startswith("a third") else getattr(result, of)).backward()
    assert relative(logits.grad, exact.grad) < max(torch.finfo(dtype).eps / 2, 1e-6)


def test_equals_chunked():
    logits, labels = example(3)
    labels[1] = -100
    mask = torch.tensor([True, True, False], device=DEVICE)
    tensors, options = logits.detach().split(3), {"mask": mask, "label_smoothing": 0.1}
    expected = computed([z.double() for z in tensors], labels, backend=chunked, **options)
    got = computed(tensors, labels, **options)
    assert relative(got[0], expected[0]) < 1e-6 and relative(got[1], expected[1]) < 1e-6
    for gradient, right in zip(got[2], expected[2], strict=True):
        assert relative(gradient, right) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_equals_chunked(dtype, monkeypatch):
    monkeypatch.undo()
    g = torch.Generator(DEVICE).manual_seed(0)
    logits = (3 * torch.randn(2 * 512, 32_000, generator=g, device=DEVICE)).to(dtype)
    labels = torch.randint(0, 32_000, (512,), generator=g, device=DEVICE)
    got = computed((logits,), labels)
    expected = computed((logits.double(),), labels, backend=chunked)
    assert relative(got[0], expected[0]) < 1e-6 and relative(got[1], expected[1]) < 1e-6
    assert relative(got[2][0], expected[2][0]) < max(torch.finfo(dtype).eps / 2, 1e-6)
