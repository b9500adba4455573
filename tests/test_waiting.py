"""Behind the checks of the first steps a training never waits for its device: shown without one, by its operations."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import rdrop_trainer
from rdrop_trainer.losses import devices
from rdrop_trainer.objective.loss_comparison import LossComparison
from rdrop_trainer.objective.rows import refuse_packed, repeat_rows
from support import zoo
from support.operations import Operations

PACKAGE = Path(rdrop_trainer.__file__).parent
CHECKED = 2  # steps


class Watch(TrainerCallback):
    """Notes the operations of all steps but the first ones; a log may wait, and there is none in between."""

    def __init__(self):
        self.operations = Operations(of=PACKAGE)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == CHECKED:
            self.operations.__enter__()
        elif state.global_step == state.max_steps:
            self.operations.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch):
    """As much of one as a CPU can show."""
    monkeypatch.setattr(devices, "can_read", lambda tensor: False)
    monkeypatch.setattr(LossComparison, "ENOUGH", 1)


MODES = {
    "concat": {},
    "sequential": {"rdrop_forward_mode": "sequential"},
    "recompute": {"rdrop_forward_mode": "recompute"},
    "fused": {"rdrop_fused_head": True, "rdrop_forward_mode": "recompute"},
    "plain": {"rdrop_alpha": 0.0},
    "every other step": {"rdrop_every_n_steps": 2},
    "half of the rows": {"rdrop_row_share": 0.5},
    "half of the rows, one pass after another": {"rdrop_row_share": 0.5, "rdrop_forward_mode": "sequential"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", zoo.CASES)
def test_no_step_waits(name, mode, tmp_path):
    if mode == "fused" and zoo.CASES[name].kind not in ("masked_lm", "causal_lm", "seq2seq"):
        pytest.skip("no language model")
    if "rdrop_row_share" in MODES[mode] and name not in ("t5", "ctc"):
        pytest.skip("no other entries or masks than these have")
    steps = CHECKED + 2
    # Otherwise `Trainer` reads every loss itself
    settings = {"max_steps": steps, "logging_strategy": "no", "logging_nan_inf_filter": False, "rdrop_alpha": 1.0}
    watch = Watch()
    run = zoo.trainer(
        name, zoo.build(name), zoo.dataset(name), tmp_path, per_device_train_batch_size=2, callbacks=[watch],
        **{**settings, **MODES[mode]},
    )  # fmt: skip
    run.train()
    assert watch.operations.names and not watch.operations.that_wait


def test_a_marked_label_of_a_regression_stops_the_device(tmp_path):
    """In a later window; in the first one it is read."""
    data = zoo.dataset("regression")
    for row, label in zip(data, (*range(8), -100, 1, 2), strict=True):
        row["labels"] = label
    settings = {"rdrop_alpha": 1.0, "per_device_train_batch_size": 2, "train_sampling_strategy": "sequential"}
    settings["use_cpu"] = True  # a GPU could do nothing more for the tests behind this one
    run = zoo.trainer("regression", zoo.build("regression"), data, tmp_path, **settings)
    with pytest.raises(RuntimeError, match="A label is -100"):
        run.train()
    assert run.state.global_step == 4


def test_packed_sequences_stop_the_device():
    inputs = {"input_ids": torch.ones(1, 4), "position_ids": torch.tensor([[0, 1, 0, 1]])}
    with pytest.raises(RuntimeError, match=r"start again within its row.*sequential"):
        repeat_rows(inputs, 2, 1)
    with pytest.raises(ValueError, match="start again within its row"):
        refuse_packed(inputs, 1, wait=True)
    assert repeat_rows({**inputs, "position_ids": torch.arange(4)[None]}, 2, 1)["position_ids"].shape == (2, 4)
