"""A training that meets NaN or Inf stops with the step, the rows and the last good checkpoint, its weights unharmed."""

import re

import pytest
import torch
from transformers import TrainerCallback

from support import tiny

POISON = 39  # a token of one row only: the model answers that row with the value given


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


def stopped(trainer, **train):
    before = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            before[:] = [tiny.weights(model)]

    trainer.add_callback(Look())
    with pytest.raises(FloatingPointError) as error:
        trainer.train(**train)
    assert tiny.identical(tiny.weights(trainer.model), before[0])  # no update was made with it
    return str(error.value)


def rows_named(message):
    return [int(row) for row in re.search(r": rows \[([\d, ]+)\] of train_dataset", message)[1].split(",")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("head, steps", [("single_label", 1), ("token", 2)])
def test_it_stops_before_the_update_and_names_the_rows(value, alpha, head, steps, tmp_path):
    trainer = tiny.trainer(
        poisoned(value, head),
        rows(7, head),
        tmp_path,
        rdrop_alpha=alpha,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=steps,
        save_strategy="steps",
        save_steps=1,
    )
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
    """Spoils a row only when a later epoch begins: until then training is sound."""

    def __init__(self, data, row):
        self.data, self.row = data, row

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.epoch and state.epoch >= 1:
            self.data[self.row]["input_ids"][1] = POISON


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rows_of_a_later_epoch_and_of_a_resumed_run(resume, seed, tmp_path):
    data = rows(None)
    settings = {"per_device_train_batch_size": 2, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 7}
    settings["seed"] = seed
    if resume:
        trainer = tiny.trainer(poisoned(float("nan")), data, tmp_path, **settings)
        trainer.train()
        (tmp_path / "checkpoint-14" / "trainer_state.json").unlink()
        (tmp_path / "checkpoint-18" / "trainer_state.json").unlink()
    trainer = tiny.trainer(poisoned(float("nan")), data, tmp_path, callbacks=[Poison(data, 4)], **settings)
    message = stopped(trainer, resume_from_checkpoint=resume or None)
    assert 4 in rows_named(message)
    assert "of epoch 2" in message or (resume and "of epoch 3" in message)  # its row may lie before the checkpoint


def test_rows_of_a_batch_with_unlabeled_ones(tmp_path):
    unlabeled = rows(3, count=5)
    trainer = tiny.trainer(
        poisoned(float("nan")), rows(None), tmp_path, unlabeled_dataset=unlabeled, per_device_train_batch_size=2
    )
    message = stopped(trainer)
    assert len(rows_named(message)) == 2
    assert "3" in re.search(r"and \[([\d, ]+)\] of unlabeled_dataset", message)[1].split(", ")


def test_rows_that_cannot_be_drawn_again_are_not_named(tmp_path):
    trainer = tiny.trainer(poisoned(float("nan")), rows(3), tmp_path, train_sampling_strategy="group_by_length")
    message = stopped(trainer)
    assert "at step" in message and "rows [" not in message


@pytest.mark.parametrize("what", ["log", "checkpoint", "end"])
def test_a_loss_that_trainer_does_not_read_is_looked_at_later(what, tmp_path):
    settings = {"log": {"logging_steps": 10}, "checkpoint": {"save_strategy": "steps", "save_steps": 10}, "end": {}}
    trainer = tiny.trainer(
        poisoned(float("nan")),
        rows(7),
        tmp_path,
        logging_nan_inf_filter=False,
        per_device_train_batch_size=1,
        **{"logging_steps": 100, **settings[what]},
    )
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert rows_named(str(error.value)) == [7] and "The weights are no longer finite" in str(error.value)
    assert trainer.state.global_step == (12 if what == "end" else 10)
    assert not list(tmp_path.glob("checkpoint-*"))


class Overflow(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            next(model.parameters()).grad.fill_(float("inf"))


@pytest.mark.parametrize("save", [{"save_strategy": "steps", "save_steps": 2}, {"max_steps": 4}])
def test_a_gradient_that_overflows_reaches_no_checkpoint(save, tmp_path):
    trainer = tiny.trainer(
        tiny.bert(),
        rows(None),
        tmp_path,
        callbacks=[Overflow()],
        per_device_train_batch_size=2,
        max_grad_norm=0,
        **save,
    )
    with pytest.raises(FloatingPointError, match="no longer finite after step 4.*a gradient overflowed"):
        trainer.train()
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved == ({"checkpoint-2"} if "save_steps" in save else set())


@pytest.mark.parametrize("by", ["setting", "scaler"])
def test_those_who_handle_overflow_go_on(by, tmp_path):
    trainer = tiny.trainer(poisoned(float("nan")), rows(7), tmp_path, rdrop_allow_nonfinite=by == "setting")
    if by == "scaler":
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        trainer.accelerator.native_amp = True
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    if by == "scaler":
        assert all(value.isfinite().all() for value in tiny.weights(trainer.model).values())
