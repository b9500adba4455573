"""Subclasses that override in front of R-Drop, as users write them: as behind it, or refused with a sentence."""

import logging

import pytest
import torch
from torch import nn
from transformers import SwinConfig, Trainer, TrainerCallback

from rdrop_trainer import RDropMixin, RDropTrainer, trainer
from support import formulas, tiny, zoo

WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
OF_CLASS_2 = [
    {**row, "labels": 2} for row in tiny.dataset(rows=8)
]  # weighted means of its batches average to the whole's


def weighted(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """The commonest override: class weights."""
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    loss = nn.functional.cross_entropy(outputs.logits, labels, WEIGHTS.to(outputs.logits)) * 3
    return (loss, outputs) if return_outputs else loss


class Weighted(Trainer):
    compute_loss = weighted


class Behind(RDropMixin, Weighted):
    pass


class InFront(RDropTrainer):
    compute_loss = weighted


class OtherWayRound(Weighted, RDropTrainer):
    pass


def run(cls, tmp_path, rows=2, steps=4, data=OF_CLASS_2, **arguments):
    """One step of SGD: minus the gradient, and what was logged."""
    model = zoo.noisy("single_label")
    trainer = tiny.trainer(
        model, data, tmp_path, cls, per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
        logging_steps=1, train_sampling_strategy="sequential", **tiny.PURE_SGD, **arguments,
    )  # fmt: skip
    return tiny.trained(trainer), trainer


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
@pytest.mark.parametrize("cls", [InFront, OtherWayRound])
def test_a_compute_loss_in_front_works_as_one_behind(cls, mode, tmp_path):
    if mode != "concat":  # the pass noise counts rows
        tiny_noise = {"rdrop_allow_deterministic": True, "rdrop_forward_mode": mode}
    else:
        tiny_noise = {"rdrop_forward_mode": mode}
    expected, behind = run(Behind, tmp_path, **tiny_noise)
    update, trainer = run(cls, tmp_path, **tiny_noise)
    assert torch.equal(update, expected)
    log, wanted = trainer.state.log_history[0], behind.state.log_history[0]
    assert log["divergence"] == wanted["divergence"] and log["task_loss"] == wanted["task_loss"]
    assert mode != "concat" or log["divergence"] > 0
    assert "compute_loss" not in vars(trainer)


def test_its_update_is_exact_and_its_loss_the_definition(tmp_path):
    whole, trainer = run(InFront, tmp_path, rows=8, steps=1)
    parts, _ = run(InFront, tmp_path, rows=2, steps=4)
    plain, _ = run(InFront, tmp_path, rows=2, steps=4, rdrop_alpha=0.0)
    wanted, _ = run(Weighted, tmp_path, rows=8, steps=1)
    assert tiny.relative(parts, whole) < 1e-5 and tiny.relative(plain, wanted) > 1e-3  # noise of one pass, and of none
    model = zoo.noisy("single_label").train()
    batch = trainer.data_collator(OF_CLASS_2)
    doubled = {key: torch.cat([value, value]) for key, value in batch.items() if key != "labels"}
    passes = model(**doubled).logits.split(8)
    own = sum(nn.functional.cross_entropy(z, batch["labels"], WEIGHTS.to(z)) * 3 for z in passes) / 2
    divergence = formulas.rdrop(passes, batch["labels"].tolist(), 0.0)[2]
    log = trainer.state.log_history[0]
    assert log["task_loss"] == pytest.approx(own.item(), rel=1e-5)
    assert log["divergence"] == pytest.approx(divergence.item(), rel=1e-4)


def test_evaluation_is_that_of_the_override(tmp_path):
    losses = []
    for cls in (InFront, Weighted):
        arguments = {"eval_dataset": tiny.dataset(), "eval_strategy": "epoch"}
        trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, learning_rate=0.0, **arguments)
        trainer.train()
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
        losses[-1].append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_an_override_that_adds_to_ours_goes_on(tmp_path):
    class Adds(RDropTrainer):
        calls = 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.calls += 1
            return super().compute_loss(model, inputs, *args, **kwargs) + 100.0  # asked for no outputs

    plain, _ = run(RDropTrainer, tmp_path)
    update, trainer = run(Adds, tmp_path)
    assert torch.equal(update, plain) and trainer.calls == 4
    log = trainer.state.log_history[0]
    assert log["divergence"] > 0 and log["loss"] == pytest.approx(log["task_loss"] + 2 * log["divergence"] + 400)


@pytest.mark.parametrize("behind", [True, False])
def test_old_signatures_and_losses_over_the_count(behind, tmp_path):
    def old(self, model, inputs, return_outputs=False):
        return weighted(self, model, inputs, return_outputs)

    class OldSuper(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            loss, outputs = super().compute_loss(model, inputs, True)
            return (3 * loss, outputs) if return_outputs else 3 * loss

    def over_count(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = 3 * nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def made(function):
        if behind:
            return type("Over", (RDropMixin, type("Own", (Trainer,), {"compute_loss": function})), {})
        return type("Own", (RDropTrainer,), {"compute_loss": function})

    expected = run(Behind, tmp_path)[0]
    update, trainer = run(made(old), tmp_path, eval_dataset=tiny.dataset())
    assert torch.equal(update, expected) and trainer.evaluate()["eval_loss"] > 0
    for cls in (OldSuper, made(over_count)):
        assert tiny.relative(run(cls, tmp_path)[0], expected) < 1e-6


def test_overrides_over_overrides(tmp_path):
    """The whole chain is kept where one of them does not call ours; `super()` may be there for something else."""

    class Over(InFront):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    class Logs(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            super().floating_point_ops(inputs)
            return weighted(self, model, inputs, return_outputs)

    expected = run(Behind, tmp_path)[0]
    for cls in (Over, Logs):
        assert torch.equal(run(cls, tmp_path)[0], expected)


def test_a_compute_loss_set_on_a_trainer_stays_there(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, InFront, eval_dataset=tiny.dataset())
    calls = []
    trainer.compute_loss = lambda *args, **kwargs: calls.append(1) or weighted(trainer, *args, **kwargs)
    trainer.evaluate()
    assert len(calls) == 2 and "compute_loss" in vars(trainer)


def test_running_out_of_memory_before_the_loss_is_no_override(tmp_path):
    class Short(RDropTrainer):
        tries = 0

        def _prepare_inputs(self, inputs):
            self.tries += 1
            if self.tries == 1:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super()._prepare_inputs(inputs)

    trainer = tiny.trainer(
        tiny.bert(), tiny.dataset(), tmp_path, Short, auto_find_batch_size=True, per_device_train_batch_size=8
    )
    assert trainer.train().training_loss > 0 and trainer.tries > 2


def test_a_training_step_of_its_own(tmp_path):
    class Adversarial(RDropTrainer):
        """FGM and its like: a step of their own, whose loss is ours."""

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss)
            return loss.detach()

    class Divides(Adversarial):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

    class DividesBehind(RDropMixin, type("Own", (Trainer,), {"training_step": Divides.training_step})):
        pass

    class Copied(RDropTrainer):
        """Of transformers 5.23, in short: it asks whether the loss is scaled, and does other sums with the steps."""

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
            if not self.loss_is_scaled_for_ga:
                loss = loss / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

    class ByItself(RDropTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = model.train()(**self._prepare_inputs(inputs)).loss
            self.accelerator.backward(loss)
            return loss.detach()

    for cls in (Adversarial, Copied):
        assert torch.equal(run(cls, tmp_path)[0], run(RDropTrainer, tmp_path)[0])
    for cls, name in ((Divides, "Divides"), (DividesBehind, "Own")):
        with pytest.raises(ValueError, match=f"training_step of {name} divides by the accumulation steps"):
            run(cls, tmp_path)
    run(Divides, tmp_path, rows=8, steps=1)  # by 1
    for steps in (1, 4):
        with pytest.raises(ValueError, match="did not come through R-Drop: let the training_step of ByItself call"):
            run(ByItself, tmp_path, rows=2, steps=steps)


def test_batches_that_are_not_counted_are_refused(tmp_path):
    class Own(RDropTrainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            return [next(epoch_iterator) for _ in range(num_batches)], None

    with pytest.raises(ValueError, match=r"get_batch_samples of Own call super\(\).get_batch_samples"):
        run(Own, tmp_path)


def masked(batch):
    """Every second token has no label any more."""
    labels = batch["labels"].clone()
    labels[:, ::2] = -100
    return {**batch, "labels": labels}


def softened(batch):
    return {**batch, "labels": nn.functional.one_hot(batch["labels"], 4) * 0.8 + 0.05}


class ByLoss(RDropTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, self.change(inputs), *args, **kwargs)


class ByStep(RDropTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self.change(inputs), *args, **kwargs)


@pytest.mark.parametrize("head, change", [("token", masked), ("single_label", softened)])
@pytest.mark.parametrize("base", [ByLoss, ByStep])
def test_labels_that_change_after_they_were_counted_are_refused(base, head, change, tmp_path):
    """A mean over the items of the step would be over others than there are."""
    cls = type("Changes", (base,), {"change": staticmethod(change)})
    trainer = tiny.trainer(tiny.bert(head), tiny.dataset(head), tmp_path, cls, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="labels of a batch are not those that R-Drop counted when the step began"):
        trainer.train()


class InParts(RDropTrainer):
    """Takes the rows of a batch one after another, to save memory."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        rows = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(len(inputs["labels"]))]
        return sum(super(InParts, self).compute_loss(model, row, num_items_in_batch=num_items_in_batch) for row in rows)


def test_a_batch_may_be_handed_on_in_parts(tmp_path):
    updates = []
    for cls in (RDropTrainer, InParts):
        model = tiny.bert("token", dropout=0.0)
        trainer = tiny.trainer(
            model, tiny.dataset("token"), tmp_path, cls, rdrop_allow_deterministic=True,
            gradient_accumulation_steps=2, **tiny.PURE_SGD,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


def test_the_mixin_comes_first():
    with pytest.raises(TypeError, match=r"Wrong has RDropMixin after Weighted.*class Wrong\(RDropMixin, Weighted\)"):
        type("Wrong", (Weighted, RDropMixin), {})


class Wrapper(nn.Module):
    """Its `train` reaches its part alone, so its own flag stays as it was set."""

    def __init__(self, flag):
        super().__init__()
        self.inner, self.config = tiny.bert(dropout=0.3), tiny.bert().config
        self.training = flag

    def train(self, mode=True):
        self.inner.train(mode)
        return self

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


@pytest.mark.parametrize("flag", [True, False])
def test_the_trainer_knows_whether_it_trains(flag, tmp_path):
    arguments = {"eval_dataset": tiny.dataset(), "eval_strategy": "epoch", "logging_steps": 1, "learning_rate": 0.0}
    model = Wrapper(flag)
    run = tiny.trainer(model, tiny.dataset(), tmp_path, **arguments)
    run.train()
    logs = run.state.log_history
    assert all(entry["divergence"] > 0 for entry in logs if "loss" in entry)
    [loss] = [entry["eval_loss"] for entry in logs if "eval_loss" in entry]
    expected = tiny.trainer(model.inner, tiny.dataset(), tmp_path, Trainer, eval_dataset=tiny.dataset()).evaluate()
    assert loss == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_noise_that_ends_is_said_once(tmp_path, caplog):
    class Ends(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None)
                model.config.attention_probs_dropout_prob = 0.0
                for module in model.modules():
                    if hasattr(module, "attention_dropout"):
                        module.attention_dropout = 0.0

    logging.getLogger("transformers").propagate = True
    trainer.logger.warning_once.cache_clear()
    run = tiny.trainer(
        tiny.bert(dropout=0.3), tiny.dataset(), tmp_path, callbacks=[Ends()], logging_steps=1, num_train_epochs=3,
        per_device_train_batch_size=4, rdrop_forward_mode="sequential",
    )  # fmt: skip
    run.train()
    divergences = [entry["divergence"] for entry in run.state.log_history if "divergence" in entry]
    assert all(divergences[:2]) and not any(divergences[2:])
    assert sum("divergence is exactly 0" in message for message in caplog.messages) == 1


class StochasticDepth(nn.Module):
    """Leaves out a layer for half of the rows, by chance also for the same ones in all passes."""

    def __init__(self):
        super().__init__()
        self.config = SwinConfig(drop_path_rate=0.5)
        self.embed, self.layer, self.out = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embed(input_ids).mean(1)
        kept = torch.rand(len(hidden), 1, device=hidden.device) < (0.5 if self.training else 1.0)
        logits = self.out(hidden + kept * self.layer(hidden))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_noise_that_pauses_by_chance_is_not_said(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    trainer.logger.warning_once.cache_clear()
    run = tiny.trainer(
        StochasticDepth(), tiny.dataset(), tmp_path, logging_steps=1, per_device_train_batch_size=1,
        rdrop_forward_mode="sequential",
    )  # fmt: skip
    run.train()
    divergences = [entry["divergence"] for entry in run.state.log_history if "divergence" in entry]
    assert any(divergences) and not all(divergences[-6:])
    assert "divergence is exactly 0" not in caplog.text
    run = tiny.trainer(StochasticDepth(), tiny.dataset(), tmp_path, logging_steps=1, per_device_train_batch_size=12)
    run.model.config.drop_path_rate = 0.0  # so that nothing tells of the noise but the divergence
    run.train()
    assert "divergence is exactly 0" not in caplog.text


def test_a_compute_loss_that_returns_probabilities_is_refused(tmp_path):
    class Probabilities(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = weighted(self, model, inputs, return_outputs=True)
            return (loss, {"logits": outputs.logits.softmax(-1)}) if return_outputs else loss

    with pytest.raises(ValueError, match="compute_loss of Probabilities returns probabilities as 'logits'.*softmax"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, Probabilities).train()
