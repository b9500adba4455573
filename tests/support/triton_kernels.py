"""The Triton kernels against the definition; test_triton.py runs this file in a process of its own.

With TRITON_INTERPRET=1, which must be set before Triton is imported, on the CPU; otherwise compiled, on a CUDA device.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from rdrop_trainer.losses import chunked, devices, fused, kernels, rdrop_loss, triton
from support import formulas
from support.formulas import formulas_fast, make, relative
from support.operations import Operations

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
if DEVICE == "cpu":
    from triton.runtime import interpreter

    # It prepares Triton's language anew for each call of a function, and puts it back: once will do in this process
    prepared, prepare = set(), interpreter._patch_lang

    def prepare_once(function):
        if (module := function.__module__) not in prepared:
            prepared.add(module)
            prepare(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = prepare_once
CLASSES = 77
by_triton = partial(rdrop_loss, implementation="triton")
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of -inf - -inf


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in a row of few classes, the last of them not full, and several rounds in a block."""
    for name, value in {"BLOCK_BYTES": 256, "WARPS": 1, "WARP": 4, "ITEM_BLOCK": 2, "FEW_LOGITS": 0}.items():
        monkeypatch.setattr(triton, name, value)
    monkeypatch.setattr(fused, "TRITON_SCALES_FROM", 0)


@pytest.fixture(params=["whole items", "split items", "few logits"])
def way(request, monkeypatch):
    """A program for each item; two for each, if it has several blocks; or one for all, several at a time."""
    parts = 2 if request.param == "split items" else 1
    monkeypatch.setattr(triton, "split", lambda device, size, item_bytes, blocks: (min(parts, blocks), 1))
    if request.param == "few logits":
        monkeypatch.setattr(triton, "FEW_LOGITS", 2**15)
        monkeypatch.setattr(triton, "FEW_AT_A_TIME", 2**10)
        monkeypatch.setattr(fused, "TRITON_SCALES_FROM", 2**17)
    return request.param


def example(n, m=2, dtype=torch.float32, **options):
    logits, labels = make("single_label", n, CLASSES, m, dtype, **options)
    return logits.to(DEVICE).requires_grad_(), labels.to(DEVICE)


def computed(logits, labels, m=2, backend=triton, weights=(0.3, 0.7), **options):
    """Task loss, divergence and gradient of sums with these weights."""
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    scales = (torch.tensor(w, dtype=dtype, device=DEVICE) for w in weights)
    options = {"labels": labels, "num_passes": m, "num_items": 1, "num_divergence_items": 1.0, **options}
    if backend is chunked:
        options["dtype"] = dtype
    (_, task, divergence), gradient = backend.loss_and_grad(logits, *scales, True, **options)
    return task, divergence, gradient


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


def masked(n):
    return torch.arange(n, device=DEVICE) % 3 > 0


COUNTS = {"num_items": torch.tensor(3, device=DEVICE), "num_divergence_items": torch.tensor(4.0, device=DEVICE)}


# What decides on the operations: the counts and masks that are given, how the passes lie, and the type of the logits
CALLS = [
    (CLASSES, torch.float32, "2D", {}),
    (CLASSES, torch.float32, "2D", {"mask": masked(6)}),
    (CLASSES, torch.bfloat16, "2D", {"mask": masked(6), **COUNTS}),
    (9, torch.bfloat16, "2D", {"reduction": "sum"}),
    (9, torch.float32, "3D", {"mask": masked(6)}),
    (2, torch.bfloat16, "separate", {}),
    (2, torch.float32, "separate", {"mask": masked(6), **COUNTS}),
]


@pytest.mark.parametrize("classes, dtype, layout, options", CALLS)
def test_few_operations_beside_the_kernels(classes, dtype, layout, options, monkeypatch, way):
    """What a call costs where there are few logits: the start of each operation."""
    monkeypatch.setattr(devices, "can_read", lambda tensor: False)
    logits, labels = make("single_label", 6, classes, 2, dtype)
    logits, labels = logits.to(DEVICE).requires_grad_(), labels.to(DEVICE)
    leaves = [z.detach().requires_grad_() for z in logits.split(6)] if layout == "separate" else [logits]
    if layout == "3D":
        leaves = [logits.detach().unflatten(0, (4, 3)).requires_grad_()]
    devices.has_triton(leaves[0])  # which launches a kernel, once
    launches = []
    for kernel in ("count_kernel", "rdrop_kernel", "total_kernel", "few_kernel", "scale_kernel"):
        monkeypatch.setattr(triton, kernel, Launches(getattr(triton, kernel), launches))
    with Operations() as operations:
        tensors = [z.flatten(0, 1) for z in leaves] if layout == "3D" else leaves
        loss = rdrop_loss(tensors, labels, alpha=4.0, implementation="triton", **options).loss
        torch.autograd.grad(loss, leaves)
    assert len(operations.names) <= 8 and not operations.that_wait, operations.names
    computing = 1 if way == "few logits" else 3 - ("num_items" in options)
    scaling = 0 if way == "few logits" and dtype == torch.float32 else len(leaves)
    assert len(launches) <= computing + scaling


@pytest.mark.parametrize(
    "size, classes, m, few",
    [(6, 9, 2, True), (7, 9, 2, False), (4, 9, 3, True), (5, 9, 3, False), (2, 33, 2, False), (3, 17, 2, True)],
)
def test_few_logits_are_computed_in_one_launch(size, classes, m, few, monkeypatch):
    monkeypatch.setattr(triton, "FEW_LOGITS", 2 * 6 * 16)  # two passes of 6 items of 16 classes
    monkeypatch.setattr(triton, "FEW_AT_A_TIME", 2 * 32)
    launches = []
    for kernel in ("count_kernel", "rdrop_kernel", "total_kernel", "few_kernel"):
        monkeypatch.setattr(triton, kernel, Launches(getattr(triton, kernel), launches))
    logits, labels = make("single_label", size, classes, m, torch.float32)
    got = by_triton(logits.to(DEVICE), labels.to(DEVICE), alpha=4.0, num_passes=m)
    expected = rdrop_loss(logits.double(), labels, alpha=4.0, num_passes=m, implementation="reference")
    assert len(launches) == (1 if few else 3)
    assert relative(got.loss.cpu(), expected.loss) < 1e-6


class Launches:
    """A kernel that notes when it is launched; what the interpreter does inside is no operation of the call."""

    def __init__(self, kernel, noted):
        self.kernel, self.noted = kernel, noted

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.noted.append(self.kernel)
            with _disable_current_modes():
                self.kernel[grid](*args, **options)

        return launch


@pytest.mark.parametrize("masks", [False, True])
def test_counts_of_its_own(masks, way):
    logits, labels = example(5)
    labels[[1, 2]] = -100
    mask = masked(5) if masks else None
    got = by_triton(logits, labels, alpha=4.0, mask=mask)
    expected = rdrop_loss(logits.double(), labels, alpha=4.0, mask=mask, implementation="reference")
    for term, right in zip(got, expected, strict=True):
        assert relative(term.detach(), right.detach()) < 1e-6


def test_no_items(way):
    logits, labels = example(0)
    result = by_triton(logits, labels, alpha=4.0)
    result.loss.backward()
    assert [term.item() for term in result] == [0, 0, 0] and logits.grad.shape == (0, CLASSES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_scale(dtype, factor, monkeypatch):
    monkeypatch.setattr(triton, "SCALE_BLOCK", 16)
    monkeypatch.setattr(triton, "SCALE_PROGRAMS", 2)
    tensor = torch.randn(7, 11, device=DEVICE).to(dtype)
    expected = tensor * factor
    factor_dtype = torch.promote_types(dtype, torch.float32)
    triton.scale_(tensor, torch.tensor(factor, dtype=factor_dtype, device=DEVICE))
    # Triton's interpreter cuts bfloat16 where devices round
    assert torch.allclose(tensor, expected, rtol=torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0, atol=0)


def test_small_gradients_of_the_type_of_their_factor_are_scaled_without_triton(monkeypatch):
    monkeypatch.setattr(devices, "can_read", lambda tensor: False)
    monkeypatch.setattr(fused, "TRITON_SCALES_FROM", 10)
    scaled = []
    monkeypatch.setattr(triton, "scale_", lambda tensor, factor: scaled.append((tensor.dtype, tensor.numel())))
    for dtype, size in ((torch.float32, 9), (torch.float32, 10), (torch.bfloat16, 9)):
        tensor = torch.ones(size, dtype=dtype, device=DEVICE)
        fused._scale_(tensor, torch.tensor(3.0, device=DEVICE))
        assert (tensor[0] == 3) == ((dtype, size) not in scaled)
    assert scaled == [(torch.float32, 10), (torch.bfloat16, 9)]


@pytest.mark.gpu
@pytest.mark.parametrize("with_triton", [False, True])
def test_the_factor_of_a_half_precision_gradient_is_not_rounded(with_triton, monkeypatch):
    """A device multiplies a bfloat16 tensor by a float32 scalar of its own in bfloat16."""
    monkeypatch.setattr(devices, "can_read", lambda tensor: False)
    monkeypatch.setattr(devices, "has_triton", lambda tensor: with_triton)
    monkeypatch.setattr(fused, "TRITON_SCALES_FROM", 2**17)
    monkeypatch.setattr(fused, "SCALED_AT_A_TIME", 100)
    tensor, third = torch.randn(7, 33, device=DEVICE).bfloat16(), torch.tensor(1 / 3, device=DEVICE)
    expected = (tensor.float() * third).bfloat16()
    fused._scale_(tensor, third)
    assert torch.equal(tensor, expected)


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
