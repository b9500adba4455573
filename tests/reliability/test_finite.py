"""A training that meets NaN or Inf stops and names step, rows and last good checkpoint; its weights stay unharmed."""

import re

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from rdrop_trainer import RDropTrainer, RDropTrainingArguments
from rdrop_trainer.reliability.finite import FiniteLossGuard
from support import tiny

NAN = float("nan")

POISON = 39  # a token of one row only, whose logits get the value given


def poisoned(value, head="single_label"):
    model = tiny.bert(head)

    def spoil(module, args, kwargs, outputs):
        hit = (kwargs["input_ids"] == POISON).any(-1)
        if module.training and hit.any():
            outputs.logits = outputs.logits + torch.where(hit, value, 0.0).view(-1, *[1] * (outputs.logits.dim() - 1))
            outputs.loss = outputs.logits.sum()  # of logits that are not finite
        return outputs

    model.register_forward_hook(spoil, with_kwargs=True)
    return model


def rows(poisoned_row, head="single_label", count=12):
    data = tiny.dataset(head, rows=count)
    for i, row in enumerate(data):
        row["input_ids"] = [5 if token == POISON else token for token in row["input_ids"]]
        if i == poisoned_row:
            row["input_ids"][1] = POISON
    return data


class KeepWeights(TrainerCallback):
    """Keeps the weights before the current optimizer step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights = tiny.weights(model)


def stopped(trainer, **train):
    """The message of a training that stops at a loss, before the update with it."""
    before = KeepWeights()
    trainer.add_callback(before)
    with pytest.raises(FloatingPointError) as error:
        trainer.train(**train)
    assert tiny.identical(tiny.weights(trainer.model), before.weights)
    return str(error.value)


def rows_named(message):
    return [int(row) for row in re.search(r": rows \[([\d, ]+)\] of train_dataset", message)[1].split(",")]


@pytest.mark.parametrize(
    "value, alpha, head, steps",
    [
        (NAN, 0.0, "single_label", 1),
        (NAN, 4.0, "single_label", 1),
        (NAN, 0.0, "token", 2),
        (NAN, 4.0, "token", 2),
        (float("inf"), 0.0, "single_label", 1),
        (float("inf"), 4.0, "token", 2),
        (float("-inf"), 4.0, "single_label", 1),
    ],
)
def test_it_stops_before_the_update_and_names_the_rows(value, alpha, head, steps, tmp_path):
    settings = {"rdrop_alpha": alpha, "gradient_accumulation_steps": steps, "per_device_train_batch_size": 2}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    trainer = tiny.trainer(poisoned(value, head), rows(7, head), tmp_path, **settings)
    message = stopped(trainer)
    named = rows_named(message)
    assert 7 in named and len(named) == 2
    step = trainer.state.global_step + 1
    assert f"at step {step}, batch " in message and "The weights are finite" in message
    batch = int(re.search(r"batch (\d+) of epoch 1", message)[1])
    assert (batch - 1) // steps == trainer.state.global_step
    last = tmp_path / f"checkpoint-{step - 1}"
    assert (f"The last good checkpoint is {last}" if step > 1 else "no checkpoint before it") in message


class Poison(TrainerCallback):
    """Spoils a row when the second epoch begins. Until then the training is sound."""

    def __init__(self, data, row):
        self.data, self.row = data, row

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.epoch and state.epoch >= 1:
            self.data[self.row]["input_ids"][1] = POISON


@pytest.mark.parametrize("seed, resume", [(1, False), (2, True), (3, True)])
def test_rows_of_a_later_epoch_and_of_a_resumed_run(resume, seed, tmp_path):
    data = rows(None)
    settings = {"per_device_train_batch_size": 2, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 7}
    settings["seed"] = seed
    if resume:
        trainer = tiny.trainer(poisoned(NAN), data, tmp_path, **settings)
        trainer.train()
        (tmp_path / "checkpoint-14" / "trainer_state.json").unlink()
        (tmp_path / "checkpoint-18" / "trainer_state.json").unlink()
    trainer = tiny.trainer(poisoned(NAN), data, tmp_path, callbacks=[Poison(data, 4)], **settings)
    message = stopped(trainer, resume_from_checkpoint=resume or None)
    assert 4 in rows_named(message)
    assert "of epoch 2" in message or (resume and "of epoch 3" in message)  # its row may lie before the checkpoint


def test_rows_of_a_batch_with_unlabeled_ones(tmp_path):
    settings = {"unlabeled_dataset": rows(3, count=5), "per_device_train_batch_size": 2}
    message = stopped(tiny.trainer(poisoned(NAN), rows(None), tmp_path, **settings))
    assert len(rows_named(message)) == 2
    assert "3" in re.search(r"and \[([\d, ]+)\] of unlabeled_dataset", message)[1].split(", ")


def test_rows_in_the_order_of_the_data(tmp_path):
    settings = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 3}
    assert rows_named(stopped(tiny.trainer(poisoned(NAN), rows(7), tmp_path, **settings))) == [6, 7, 8]


def test_rows_that_cannot_be_drawn_again_are_not_named(tmp_path):
    trainer = tiny.trainer(poisoned(NAN), rows(3), tmp_path, train_sampling_strategy="group_by_length")
    message = stopped(trainer)
    assert "at step" in message and "rows [" not in message


LATER = {
    "log": ({"logging_steps": 10}, 10),
    "checkpoint": ({"save_strategy": "steps", "save_steps": 10}, 10),
    "end": ({}, 12),
}


@pytest.mark.parametrize("when", LATER)
def test_a_loss_that_trainer_does_not_read_is_read_later(when, tmp_path):
    changes, step = LATER[when]
    settings = {"logging_nan_inf_filter": False, "per_device_train_batch_size": 1, "logging_steps": 100, **changes}
    trainer = tiny.trainer(poisoned(NAN), rows(7), tmp_path, **settings)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert rows_named(str(error.value)) == [7] and "The weights are no longer finite" in str(error.value)
    assert trainer.state.global_step == step
    assert not any("loss" in logs for logs in trainer.state.log_history)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("what", ["log", "save"])
def test_a_callback_after_the_guard_asks_for_a_log_or_a_checkpoint(what, tmp_path):
    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            setattr(control, f"should_{what}", state.global_step == 10)

    settings = {"logging_nan_inf_filter": False, "per_device_train_batch_size": 1, "logging_steps": 100}
    trainer = tiny.trainer(poisoned(NAN), rows(7), tmp_path, **settings)
    trainer.add_callback(Ask())
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert rows_named(str(error.value)) == [7] and trainer.state.global_step == 10
    assert not list(tmp_path.glob("checkpoint-*"))


class Overflow(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            next(model.parameters()).grad.fill_(float("inf"))


@pytest.mark.parametrize("save", [{"save_strategy": "steps", "save_steps": 2}, {"max_steps": 4}])
def test_a_gradient_that_overflows_reaches_no_checkpoint(save, tmp_path):
    settings = {"callbacks": [Overflow()], "per_device_train_batch_size": 2, "max_grad_norm": 0, **save}
    trainer = tiny.trainer(tiny.bert(), rows(None), tmp_path, **settings)
    with pytest.raises(FloatingPointError, match="no longer finite after step 4.*a gradient overflowed"):
        trainer.train()
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == ({"checkpoint-2"} if "save_steps" in save else set())


@pytest.mark.parametrize("by", ["setting", "scaler"])
def test_those_who_handle_overflow_go_on(by, tmp_path):
    trainer = tiny.trainer(poisoned(NAN), rows(7), tmp_path, rdrop_allow_nonfinite=by == "setting")
    if by == "scaler":
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        trainer.accelerator.native_amp = True
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    if by == "scaler":
        assert all(value.isfinite().all() for value in tiny.weights(trainer.model).values())


def guards(trainer):
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, FiniteLossGuard)]


def test_the_same_trainer_trains_again(tmp_path):
    data = rows(7)
    trainer = tiny.trainer(poisoned(NAN), data, tmp_path, per_device_train_batch_size=2)
    for poison in (POISON, 5, POISON):
        data[7]["input_ids"][1] = poison
        if poison == POISON:
            assert 7 in rows_named(stopped(trainer))
        else:
            trainer.train()
    assert len(guards(trainer)) == 1


def test_a_trainer_whose_guard_was_taken_out_goes_on(tmp_path):
    trainer = tiny.trainer(poisoned(NAN), rows(7), tmp_path)
    trainer.pop_callback(FiniteLossGuard)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps


def test_rows_are_named_where_a_micro_batch_has_several_losses(tmp_path):
    class Twice(RDropTrainer):
        def training_step(self, *args, **kwargs):
            super().training_step(*args, **kwargs)
            return super().training_step(*args, **kwargs)

    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    plain, twice = (
        rows_named(stopped(tiny.trainer(poisoned(NAN), rows(7), tmp_path, cls, **arguments)))
        for cls in (RDropTrainer, Twice)
    )
    assert 7 in plain and twice == plain


# ---- The guard alone ----


class Loop:
    """A training of one micro-batch a step, as `Trainer` shows it to a callback."""

    def __init__(self, folder, guard=None, optimizer=None, **settings):
        self.guard = guard or FiniteLossGuard()
        self.model = torch.nn.Linear(2, 2)
        self.args = RDropTrainingArguments(str(folder), use_cpu=True, report_to="none", **settings)
        self.events = self.args, TrainerState(epoch=0.0), TrainerControl()
        self.guard.on_train_begin(*self.events, model=self.model, optimizer=optimizer)

    def steps(self, *losses):
        loss = torch.zeros((), requires_grad=True)  # in the same memory each time, as with CUDA graphs
        for value in losses:
            torch.nn.init.constant_(loss, value)
            self.guard.on_step_begin(*self.events)
            self.guard.watch(loss)
            self.events[1].global_step += 1
            self.guard.on_step_end(*self.events)


@pytest.mark.parametrize("reads", [True, False])
def test_a_loss_is_read_at_once_or_with_255_others(reads, tmp_path):
    loop = Loop(tmp_path, logging_nan_inf_filter=reads)
    loop.steps(*[1.0] * 100)
    if not reads:
        loop.steps(NAN, *[1.0] * 154)
    with pytest.raises(FloatingPointError, match="nan at step 101, batch 1 of epoch 1. The weights are finite"):
        loop.steps(1.0 if not reads else NAN)


def test_losses_of_an_attempt_that_ran_out_of_memory_are_forgotten(tmp_path):
    loop = Loop(tmp_path, logging_nan_inf_filter=False)
    loop.steps(NAN)
    again = Loop(tmp_path, loop.guard, logging_nan_inf_filter=False)
    again.steps(1.0)
    again.guard.on_train_end(*again.events)


def test_outside_a_training_nothing_is_checked(tmp_path):
    guard = FiniteLossGuard()
    guard.watch(torch.tensor(NAN))
    guard.check()
    loop = Loop(tmp_path, guard)
    loop.steps(1.0)
    guard.on_train_end(*loop.events)
    loop.steps(NAN)


class Scaled:
    scaler = torch.amp.GradScaler("cpu")


@pytest.mark.parametrize("settings", [{"rdrop_allow_nonfinite": True}, {"optimizer": Scaled}])
def test_where_somebody_else_handles_overflow_nothing_is_checked(settings, tmp_path):
    loop = Loop(tmp_path, **settings)
    loop.steps(NAN)
    torch.nn.init.constant_(loop.model.weight, NAN)
    loop.guard.check()


def test_weights_are_checked_on_their_own(tmp_path):
    loop = Loop(tmp_path)
    loop.steps(1.0)
    loop.guard.check()
    torch.nn.init.constant_(loop.model.weight, NAN)
    with pytest.raises(FloatingPointError, match="no longer finite after step 1, though every loss was"):
        loop.guard.check()


def test_a_training_that_catches_the_error_stays_guarded(tmp_path):
    class Catches(RDropTrainer):
        caught = 0

        def training_step(self, *args, **kwargs):
            try:
                return super().training_step(*args, **kwargs)
            except FloatingPointError:
                self.caught += 1
                self.model.zero_grad()
                return torch.tensor(0.0, device=self.args.device)

    model = poisoned(NAN)
    data = [{**row, "input_ids": [POISON, *row["input_ids"][1:]]} for row in rows(None)]
    trainer = tiny.trainer(model, data, tmp_path, Catches, per_device_train_batch_size=4)
    trainer.train()
    assert trainer.caught == 3 and all(p.isfinite().all() for p in model.parameters())
