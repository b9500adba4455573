"""A pass that keeps nothing, and runs again in the backward."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rdrop_trainer.objective.recompute import recomputed
from rdrop_trainer.objective.snapshot import Snapshot

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 3), nn.Tanh())


def gradients(model, forward, backwards=1):
    torch.manual_seed(1)
    out = forward(torch.linspace(-1, 1, 20).reshape(5, 4))
    torch.manual_seed(2)  # the backward must not depend on it
    for i in range(backwards):
        out.square().sum().backward(retain_graph=i < backwards - 1)
    assert torch.initial_seed() == 2
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_gradients_are_those_of_the_pass(model, nested, backwards):
    expected = gradients(model, model, backwards)
    inner = partial(checkpoint, model, use_reentrant=False) if nested else model
    got = gradients(model, lambda x: recomputed(lambda: inner(x), model, CPU), backwards)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_it_keeps_nothing(model):
    kept = []
    model[0].register_forward_hook(lambda module, args, out: kept.append(weakref.ref(out.untyped_storage())))
    last = []  # as of a model that holds its last output
    model.register_forward_hook(lambda module, args, out: last.append(out))
    out = recomputed(lambda: model(torch.randn(5, 4)), model, CPU)
    assert kept[0]() is None
    out.sum().backward()
    assert len(kept) == len(last) == 2 and kept[1]() is None


def test_it_runs_again_before_the_backward_enters_a_module(model):
    """As DeepSpeed's ZeRO-3 needs it, which gathers weights there, and lets go of them at the end of a forward."""
    seen = []
    model.register_forward_hook(lambda *args: seen.append("forward"))
    for module in (model, model[-1]):
        module.register_full_backward_pre_hook(lambda *args: seen.append("backward"))
    rows = torch.randn(5, 4, requires_grad=True)
    weight = model[0].weight
    out = recomputed(lambda: {"logits": model(rows), "weight": weight, "loss": None}, model, CPU)
    out["logits"].sum().backward()
    assert seen == ["forward", "forward", "backward", "backward"]
    assert not weight._backward_hooks and not out["logits"]._backward_hooks  # of which one may be held for long


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_every_device_draws_the_same_noise_again(monkeypatch):
    """Of devices, which are not there: their generators count."""

    class Devices:
        states = [10, 20]

        def device_count(self):
            return 2

        def get_rng_state(self, device):
            return torch.tensor(self.states[device])

        def set_rng_state(self, state, device):
            self.states[device] = int(state)

    devices, weight = Devices(), torch.ones(3, requires_grad=True)
    monkeypatch.setattr(torch, "get_device_module", lambda device: devices)

    def noisy():
        devices.states = [state + 1 for state in devices.states]
        return (weight * sum(devices.states)).exp().log()

    out = recomputed(noisy, nn.Module(), torch.device("cuda"))
    assert devices.states == [11, 21] and out.tolist() == [32.0] * 3
    devices.states = [70, 80]
    out.sum().backward()
    assert devices.states == [70, 80] and weight.grad.tolist() == pytest.approx([32.0] * 3)


def test_mixed_precision_is_as_it_was(model):
    def dtypes():
        found.append(model(torch.ones(5, 4)).dtype)
        return model(torch.ones(5, 4)).float()

    found = []
    with torch.autocast("cpu", torch.bfloat16):
        out = recomputed(dtypes, model, CPU)
    out.sum().backward()
    assert found == [torch.bfloat16] * 2 and not torch.is_autocast_enabled("cpu")


def test_a_pass_that_does_something_else_stops(model):
    sizes = iter([5, 6])
    out = recomputed(lambda: model(torch.ones(next(sizes), 4)), model, CPU)
    with pytest.raises(RuntimeError, match="does not do the same twice.*'sequential'"):
        out.sum().backward()


class ReadTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[1], grad * ctx.saved_tensors[0]


def test_tensors_read_twice_take_one_run(model):
    def run(x):
        runs.append(1)
        hidden = model(x)
        return ReadTwice.apply(hidden.sin(), hidden.exp())

    runs = []
    expected = gradients(model, run)
    runs.clear()
    got = gradients(model, lambda x: recomputed(lambda: run(x), model, CPU))
    assert len(runs) == 2 and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_buffer_counts_as_the_pass_had_it():
    """A running scale, which the pass moves before it uses it, and a later pass moves again."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x):
            self.scale.mul_(0.5)
            return self.weight * self.scale[:] * x

    scaled = Scaled()
    out = recomputed(lambda: scaled(1.0), scaled, CPU)
    scaled(1.0)
    out.sum().backward()
    assert scaled.weight.grad.tolist() == [0.5] * 3 and scaled.scale.tolist() == [0.25] * 3


def test_a_pass_may_take_gradients_itself(model):
    """A model of a potential and its force, say."""

    def forces(x):
        x = x.clone().requires_grad_()
        out = model(x)
        (force,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return torch.cat([out, force], dim=1)

    expected, kept = gradients(model, forces), []
    model[0].register_forward_hook(lambda module, args, out: kept.append(weakref.ref(out.untyped_storage())))

    def again(x):
        out = recomputed(lambda: forces(x), model, CPU)
        assert all(hidden() is None for hidden in kept)
        return out

    got = gradients(model, again)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_device_whose_generators_are_not_known_is_no_fault():
    """XLA, say, of which torch has no module."""
    Snapshot(nn.Dropout(), torch.device("xla")).restore()
