"""What a device does differently, on the CPU: no value is read and no row is picked."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rdrop_trainer.losses import devices, rdrop_linear_loss, rdrop_loss
from rdrop_trainer.losses.backends import choose_fused
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


@pytest.fixture
def triton_that(monkeypatch):
    """A CUDA device whose first launch does something; the launches so far, and what stands for its logits."""

    def make(error):
        launched = []

        def scale_(tensor, factor):
            launched.append(tensor.dtype)
            if error is not None:
                raise error

        monkeypatch.setattr(devices, "import_module", lambda *_: SimpleNamespace(scale_=scale_))
        monkeypatch.setattr(devices, "_is_installed", lambda package: True)
        return launched, SimpleNamespace(is_cuda=True, device=torch.device("cpu"), dtype=torch.bfloat16)

    devices._launches.cache_clear()
    yield make
    devices._launches.cache_clear()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Failed to find C compiler. Please specify via CC"), PermissionError(13, "no"), ImportError()],
)
def test_without_a_working_triton_the_loss_is_made_in_chunks(error, triton_that):
    launched, logits = triton_that(error)
    with pytest.warns(UserWarning, match=rf"Triton does not work here \({type(error).__name__}.*in chunks instead"):
        assert choose_fused("auto", logits) == "chunked"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_fused("auto", logits) == "chunked" and launched == [torch.bfloat16]
        with pytest.raises(ValueError, match="triton .* in working order"):
            choose_fused("triton", logits)


def test_a_triton_that_works_is_tried_once(triton_that):
    launched, logits = triton_that(None)
    assert [choose_fused("auto", logits) for _ in range(2)] == ["triton"] * 2 and len(launched) == 1


def test_no_memory_says_nothing_about_triton(triton_that):
    _, logits = triton_that(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        choose_fused("auto", logits)
    with FakeTensorMode():
        assert not devices.has_triton(torch.empty(1, device="cuda"))
    assert choose_fused("auto", triton_that(None)[1]) == "triton"
