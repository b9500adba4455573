"""Half precision, gradient checkpointing and compilation: the same losses and gradients."""

import pytest
import torch

from support import formulas, tiny, zoo
from support.device import DEVICE, USE_CPU

CASES = ("choice", "question", "masked_lm", "llama", "t5", "bart", "vit", "wav2vec2")
MODES = ("concat", "sequential", "recompute")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_autocast_gives_the_float32_loss_within_its_rounding(name, dtype, tmp_path):
    losses, divergences, seen = [], [], []
    for enabled in (False, True):
        model = zoo.noisy(name)
        model._forward_pre_hooks.clear()  # that made the inputs float64
        model = model.float().train()
        model.register_forward_hook(lambda *args: seen.append(args[-1]))
        trainer = zoo.trainer(name, model, zoo.dataset(name), tmp_path, rdrop_alpha=2.0, rdrop_allow_deterministic=True)
        batch = zoo.batch(name, model)
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=enabled):
            loss = trainer.compute_loss(model, batch)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        rows, output = len(next(iter(batch.values()))), seen[-1]
        keys = ("start_logits", "end_logits") if zoo.CASES[name].kind == "question" else ("logits",)
        if enabled and name != "bart":  # which adds a float32 bias to its logits
            assert output[keys[0]].dtype == dtype
        passes = [{key: output[key].detach()[k * rows : (k + 1) * rows].double() for key in keys} for k in range(2)]
        parts = [zoo.items(name, outputs, batch) for outputs in passes]
        terms = [formulas.rdrop([a[0], b[0]], a[1].tolist(), 2.0) for a, b in zip(*parts, strict=True)]
        # The arithmetic on the logits is float32's, whatever their type
        assert loss.item() == pytest.approx(sum(t[0] for t in terms).item() / len(terms), rel=1e-6 if USE_CPU else 1e-5)
        losses.append(loss.item())
        divergences.append(sum(t[2] for t in terms).item() / len(terms))
    eps = torch.finfo(dtype).eps
    assert losses[1] == pytest.approx(losses[0], rel=4 * eps)
    assert divergences[1] == pytest.approx(divergences[0], rel=40 * eps)


def test_bf16_training_is_close_to_float32(tmp_path):
    logs = []
    for bf16 in (False, True):
        trainer = zoo.trainer("llama", zoo.build("llama"), zoo.dataset("llama"), tmp_path, bf16=bf16, logging_steps=1)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "divergence" in entry])
    for a, b in zip(*logs, strict=True):
        assert b["task_loss"] == pytest.approx(a["task_loss"], rel=0.02)
        assert b["divergence"] == pytest.approx(a["divergence"], rel=0.2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["masked_lm", "llama", "t5", "bart", "vit"])
def test_gradient_checkpointing_changes_nothing(name, mode, tmp_path):
    updates = []
    for checkpointing in (False, True):
        model = zoo.build(name, dropout=0.2)
        trainer = zoo.trainer(
            name, model, zoo.dataset(name), tmp_path, rdrop_forward_mode=mode, gradient_checkpointing=checkpointing,
            **tiny.PURE_SGD,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name, mode", [("llama", "concat"), ("t5", "sequential"), ("masked_lm", "recompute")])
def test_compiled_models_train_alike(name, mode, tmp_path):
    updates = []
    for compiled in (False, True):
        model = zoo.build(name, dropout=0.0)
        trainer = zoo.trainer(
            name, model, zoo.dataset(name, rows=8), tmp_path, rdrop_forward_mode=mode, torch_compile=compiled,
            rdrop_allow_deterministic=True, **tiny.PURE_SGD,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-4
