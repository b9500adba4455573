"""What is alive when: the first pass, while the second one runs, and what the loss makes beside the logits."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rdrop_trainer import Objective, StepSettings
from rdrop_trainer.losses import chunked, linear_chunks, rdrop_linear_loss, rdrop_loss
from support import zoo


class Alive(TorchDispatchMode):
    """The most bytes held at once by the storages made under it, those of some inputs left out."""

    def __init__(self, *inputs):
        super().__init__()
        self.storages, self.most = {}, 0
        self.inputs = {tensor.untyped_storage()._cdata for tensor in inputs}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.inputs:
                    self.storages[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        self.storages = {key: value for key, value in self.storages.items() if value[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return out


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_of_a_recomputed_pass_only_what_the_loss_needs_is_kept(name, fused):
    """Everything the model returned in pass 1, hidden states of all layers included, is gone when pass 2 begins."""
    model = zoo.build(name).train()
    batch = zoo.batch(name, model) | {"output_hidden_states": True}
    returned, alive = [], []

    def before(*args):
        gc.collect()
        alive.append({key for key, tensor in returned if tensor() is not None})

    def after(module, inputs, outputs):
        for key, value in outputs.items():
            for i, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
                returned.append((f"{key}[{i}]", weakref.ref(tensor)))

    objective = Objective.of(model, [batch])
    settings = StepSettings(forward_mode="recompute", fused_head=str(fused).lower(), allow_deterministic=True)

    def loss():
        return objective(model, batch, objective.window([batch]), settings)[0].loss

    loss()  # what is only checked in the first steps
    task_loss = replace(objective.plan.task_loss, comparison=None)
    objective.plan = replace(objective.plan, task_loss=task_loss, noise=None)
    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    second = loss()
    assert len(alive) == 2 and any("hidden_states[0]" in key for key, _ in returned)
    # What reaches the head is the last of the hidden states
    kept = {key for key, _ in returned if "decoder_hidden_states" in key or name == "llama" and "hidden_states" in key}
    assert alive[1] <= ({max(kept)} if fused else {"logits[0]"})
    second.backward()


@pytest.mark.parametrize("passes", [1, 2])
def test_the_loss_makes_little_beside_the_gradient(passes, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_PER_THREAD", 2**12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = [torch.randn(2 * 500 // passes, 2000).requires_grad_() for _ in range(passes)]
    labels, size = torch.randint(0, 2000, (500,)), 4 * 2 * 500 * 2000
    with Alive(*parts) as alive:
        loss = rdrop_loss(parts, labels, alpha=1.0, implementation="chunked").loss
    assert size <= alive.most < 1.05 * size
    loss.backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_fused_head_makes_a_chunk_of_logits_at_a_time(frozen, monkeypatch):
    """And gradients of what is trained: where adapters are, not of the weight."""
    monkeypatch.setattr(linear_chunks, "ROWS_ON_CPU", 16)
    monkeypatch.setattr(chunked, "CHUNK_PER_THREAD", 2**12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    hidden = torch.randn(2 * 500, 64).requires_grad_()
    weight, labels = torch.randn(2000, 64).requires_grad_(not frozen), torch.randint(0, 2000, (500,))
    with Alive(hidden, weight) as alive:
        loss = rdrop_linear_loss(hidden, weight, labels, alpha=1.0).loss
    gradients, chunk = 4 * (hidden.numel() + weight.numel() * (not frozen)), 4 * 16 * 2000
    assert gradients + chunk < alive.most < gradients + 3 * chunk
    loss.backward()
