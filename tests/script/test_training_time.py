"""Seconds of training: those of evaluations and of the probe are others, and they add up over interruptions."""

import json

import pytest

from rdrop_trainer.report import FinishedRun
from rdrop_trainer.script import train, training_time
from rdrop_trainer.script.cost import Clock
from rdrop_trainer.script.training_time import SINCE_RESUME, TrainingTime
from support.runs import results, run, write_csv

STEPS = "--max_steps 6 --save_strategy steps --save_steps 2 --output_dir out --train_file a.csv --validation_file a.csv"


class Watch:
    """In the place of `time`: 10 s pass in a step, and nothing between."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def stopped(model, here, monkeypatch):
    """A run that was stopped at step 3, by a signal as it were, after 30 s."""
    write_csv(here / "a.csv")
    watch = Watch()
    monkeypatch.setattr(training_time, "time", watch)

    class Slow(TrainingTime):
        def on_step_end(self, args, state, control, **kwargs):
            watch.now += 10
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == self.until:
                control.should_training_stop = control.should_save = True

        def settle(self, clock):
            clock.seconds["train"] = watch.now - self._started
            super().settle(clock)
            if self.until:
                raise KeyboardInterrupt

    Slow.__name__ = "TrainingTime"
    Slow.until = 3
    monkeypatch.setattr(train, "TrainingTime", Slow)
    assert run(model, STEPS) == 130
    Slow.until = None
    watch.now += 1000  # until the user comes back
    return Slow


def test_seconds_add_up_over_an_interruption(model, here, stopped):
    assert run(model, STEPS) == 0
    assert results("out")["seconds"]["train"] == 60
    assert FinishedRun.read("out").train_seconds == 60
    state = json.loads((here / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["TrainingTime"]["attributes"] == {"train": 60}


def test_seconds_that_are_not_known_are_not_made_up(model, here, stopped):
    path = here / "out" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["TrainingTime"]
    path.write_text(json.dumps(state))
    assert run(model, STEPS) == 0
    assert "train" not in results("out")["seconds"] and results("out")["seconds"][SINCE_RESUME] == 30
    assert FinishedRun.read("out").train_seconds is None
    state = json.loads((here / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert "TrainingTime" not in state["stateful_callbacks"], "nor may a further resume add them up"


def test_evaluations_and_the_probe_are_no_seconds_of_training(monkeypatch):
    watch, clock = Watch(), Clock()
    monkeypatch.setattr(training_time, "time", watch)
    probe = type("Probe", (), {"seconds": 0.0})()
    state = type("State", (), {"global_step": 4, "stateful_callbacks": {}})()
    state.stateful_callbacks["TrainingTime"] = {"attributes": {"train": 50.0, "probe": 7.0, "eval": 1.0}}
    time = TrainingTime(probe)
    time.on_train_begin(None, state, None)
    watch.now += 20
    probe.seconds = 3.0
    time.on_evaluate(None, state, None, metrics={"eval_loss": 0.1, "eval_runtime": 2.0})
    noted = state.stateful_callbacks["TrainingTime"]["attributes"]
    assert noted == {"train": 50.0 + 20 - 3 - 2, "probe": 10.0, "eval": 3.0}
    clock.seconds["train"] = 21.0  # with what comes before the first step
    time.settle(clock)
    assert clock.seconds == {"train": 66.0, "probe": 10.0, "eval": 3.0}
