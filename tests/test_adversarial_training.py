"""FGM and AWP over R-Drop, as docs/adversarial-training.md has them: gradients, logs, precision."""

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from rdrop_trainer import RDropTrainer
from support import adversarial, formulas, tiny
from support.adversarial import RECIPES, OnePassOfThePlainLoss

DATA = tiny.dataset(rows=16)


def run(cls, tmp_path, rows=16, steps=1, model=None, data=DATA, **arguments):
    model = model or adversarial.model()
    before = tiny.weights(model)
    arguments = {**tiny.PURE_SGD, "logging_steps": 1, "train_sampling_strategy": "sequential", **arguments}
    trainer = tiny.trainer(
        model, data, tmp_path, cls, per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
        callbacks=[OnePassOfThePlainLoss()], **arguments,
    )  # fmt: skip
    trainer.train()
    return tiny.update(before, tiny.weights(trainer.model)), trainer


def moved(name, model):
    """The weights that a recipe moves, along their gradients, by the definition."""
    if name == "FGM":
        weights, size = [model.get_input_embeddings().weight], lambda p: 1.0
    else:
        weights, size = [p for p in model.parameters() if p.dim() > 1], lambda p: 0.01 * p.norm()
    return [(p, size(p.detach()) * p.grad / p.grad.norm()) for p in weights if p.grad is not None]


@pytest.mark.parametrize("name", RECIPES)
def test_the_update_is_that_of_both_losses(name, tmp_path):
    update, trainer = run(RECIPES[name], tmp_path)
    model = adversarial.model().train()
    batch = trainer.data_collator(DATA)
    labels = batch.pop("labels")
    before = tiny.weights(model)
    passes = model(**{key: torch.cat([value, value]) for key, value in batch.items()}).logits.split(16)
    loss, task, divergence = formulas.rdrop(passes, labels.tolist(), 4.0)
    loss.backward()
    model.pass_noise.num_passes = 1
    for p, step in moved(name, model):
        p.data += step
    nn.functional.cross_entropy(model(**batch).logits, labels).backward()
    model.load_state_dict(before)
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert tiny.relative(update, tiny.update(before, tiny.weights(model))) < 1e-6
    [log] = [log for log in trainer.state.log_history if "loss" in log]
    assert divergence > 1e-3 and log["divergence"] == pytest.approx(divergence.item(), rel=1e-5)
    assert log["task_loss"] == pytest.approx(task.item(), rel=1e-5) and log["loss"] == pytest.approx(loss.item())
    assert trainer.args.rdrop_alpha == 4.0


@pytest.mark.parametrize("name", RECIPES)
def test_four_of_4_equal_one_of_16(name, tmp_path):
    whole, one = run(RECIPES[name], tmp_path)
    parts, four = run(RECIPES[name], tmp_path, rows=4, steps=4)
    plain, _ = run(RDropTrainer, tmp_path)
    assert tiny.relative(parts, whole) < 1e-6 and tiny.relative(plain, whole) > 0.1
    for term in ("loss", "task_loss", "divergence"):
        assert four.state.log_history[0][term] == pytest.approx(one.state.log_history[0][term], rel=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_bf16_gives_the_weights_back(name, tmp_path):
    arguments = {"bf16": True, "rows": 4, "steps": 2, "data": DATA[:8]}
    still, _ = run(RECIPES[name], tmp_path, model=adversarial.model().float(), learning_rate=0.0, **arguments)
    assert not still.any()
    update, trainer = run(RECIPES[name], tmp_path, model=adversarial.model().float(), **arguments)
    exact, _ = run(RECIPES[name], tmp_path, model=adversarial.model().float(), **{**arguments, "bf16": False})
    assert 0 < tiny.relative(update, exact) < 0.05
    assert trainer.state.log_history[0]["divergence"] > 0


class LeavesOut(TrainerCallback):
    """As a scaler does a step whose gradient overflowed."""

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        optimizer.zero_grad()


@pytest.mark.parametrize("name", RECIPES)
def test_an_overflow_in_fp16_does_not_end_the_training(name, tmp_path):
    model = adversarial.model()
    weight = model.get_input_embeddings().weight
    weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    before = tiny.weights(model)
    trainer = tiny.trainer(model, DATA, tmp_path, RECIPES[name], callbacks=[LeavesOut()], **tiny.PURE_SGD)
    trainer.train()
    assert trainer.state.global_step == 2 and tiny.identical(before, tiny.weights(model))


class Twice(RDropTrainer):
    """As much code of users has it: at every micro-batch, with R-Drop's loss in the second backward too."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        weight = self.model.get_input_embeddings().weight
        weight.data += 1.0
        self.second(model, inputs)
        weight.data -= 1.0
        return loss

    def second(self, model, inputs):
        super().training_step(model, inputs)


class TwiceByHand(Twice):
    def second(self, model, inputs):
        self.accelerator.backward(self.compute_loss(model, self._prepare_inputs(inputs)))


class NoSuper(RDropTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        for moved in (0.0, 1.0):
            self.model.get_input_embeddings().weight.data += moved
            loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
        self.model.get_input_embeddings().weight.data -= moved
        return loss.detach()


@pytest.mark.parametrize("cls", [Twice, TwiceByHand, NoSuper])
def test_the_logged_terms_are_of_the_first_loss(cls, tmp_path):
    """Whatever comes after it in a micro-batch."""
    _, own = run(RDropTrainer, tmp_path, rows=4, steps=4, learning_rate=0.0)
    _, trainer = run(cls, tmp_path, rows=4, steps=4, learning_rate=0.0)
    for term in ("task_loss", "divergence"):
        assert trainer.state.log_history[0][term] == pytest.approx(own.state.log_history[0][term], rel=1e-9)


def test_a_loss_in_evaluation_mode_is_plain(tmp_path):
    """A helper of a training step that looks at the loss without dropout."""

    class Looks(RDropTrainer):
        def compute_loss_context_manager(self):
            batch, plain = self._prepare_inputs(self.data_collator(DATA)), []
            with torch.no_grad():
                seen = self.compute_loss(self.model.eval(), batch)
                plain = self.model(**batch).loss
            self.model.train()
            assert torch.equal(seen, plain)
            return super().compute_loss_context_manager()

    _, trainer = run(Looks, tmp_path)
    assert trainer.state.log_history[0]["divergence"] > 0
