"""What the Triton backend launches beside its kernels; test_triton.py runs this file as it does triton_kernels.py."""

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from rdrop_trainer.losses import devices, fused, rdrop_loss, triton
from support.formulas import make, relative
from support.operations import Operations
from support.triton_cases import CLASSES, DEVICE, by_triton, example

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of -inf - -inf


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
