"""The training of a run, and how it is stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from ..stability import DivergenceProbe
from .cost import peak_memory
from .extent import even_share, extent_of
from .interrupts import StopWhenAsked, is_full
from .output_dir import take_over
from .prepare import Prepared
from .program import WRONG_SETTING, input_error, logger
from .resolve import RunConfig
from .training_time import TrainingTime


class Trained(NamedTuple):
    """Steps, loss and operations of a training, and its `peak_memory`; nothing where none was asked for."""

    metrics: Mapping[str, float] = {}
    memory: Mapping[str, Any] | None = None


def train(config: RunConfig, prepared: Prepared, checkpoint: str | None) -> Trained:
    """Train, and save the model; a run that does not train only takes over its folder.

    Raises:
        InputError: settings with which a training cannot begin.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    if not config.training.do_train:
        take_over(config)
        return Trained()
    if checkpoint:
        logger.warning(f"Resuming from {checkpoint}")
    trainer, clock, probe = prepared.trainer, prepared.clock, None
    beginning = OnTrainBegin(lambda *_, **__: take_over(config))
    trainer.add_callback(beginning)
    extent = extent_of(config, prepared)
    if extent.probe_rows:
        rows = even_share(prepared.features["train"], extent.probe_rows)
        probe = DivergenceProbe(trainer, rows, num_points=extent.probe_points)
        trainer.add_callback(probe)
    seconds = TrainingTime(probe)
    trainer.add_callback(seconds)
    if config.data.early_stopping_patience is not None:
        trainer.add_callback(StopWithoutProgress(config.data.early_stopping_patience, trainer))
    if config.data.max_seconds is not None:
        trainer.add_callback(StopInTime(config.data.max_seconds, seconds, trainer.accelerator))
    stop = StopWhenAsked(config.training.world_size)
    trainer.add_callback(stop)
    try:
        with clock("train"), stop:
            trained = trainer.train(resume_from_checkpoint=checkpoint)
    except Exception as error:
        if stop.asked:  # a signal also ends processes that load data, without which the step may fail
            raise KeyboardInterrupt from error
        if not beginning.reached and isinstance(error, WRONG_SETTING) and not is_full(error):
            raise input_error(error) from error
        raise
    if stop.asked:
        raise KeyboardInterrupt
    seconds.settle(clock)
    memory = peak_memory(trainer.args.device)
    metrics: dict[str, float] = {"steps": trained.global_step}
    if trained.training_loss != 0:  # as it is where all steps were made before an interruption
        metrics["train_loss"] = trained.training_loss
    metrics["total_flos"] = trainer.state.total_flos
    trainer.save_model(_internal_call=True)  # pushed later, when everything is on disk
    trainer.save_state()
    return Trained(metrics, memory)


class OnTrainBegin(TrainerCallback):
    """Calls a function when data, optimizer and schedule are ready, just before the first step."""

    def __init__(self, function: Callable[..., None]):
        self.function, self.reached = function, False

    def on_train_begin(self, *args, **kwargs):
        self.function(*args, **kwargs)
        self.reached = True


class StopInTime(TrainerCallback):
    """Stops the training, of all processes at the same step, when it took so many seconds."""

    def __init__(self, limit: float, seconds: TrainingTime, accelerator: Accelerator):
        self.limit, self.seconds, self.accelerator = limit, seconds, accelerator

    def on_step_end(self, args, state, control, **kwargs):
        is_over = self.seconds.elapsed() >= self.limit
        if args.world_size > 1:
            votes = torch.tensor(float(is_over), device=self.accelerator.device)
            is_over = self.accelerator.reduce(votes, "sum").item() > 0
        if is_over and state.global_step < state.max_steps:
            logger.warning(f"--max_seconds {self.limit:g}: ended at step {state.global_step} of {state.max_steps}")
            control.should_training_stop = True


class StopWithoutProgress(TrainerCallback):
    """Stops the training after so many evaluations in a row without a better `metric_for_best_model`.

    transformers' own callback counts from 0 again when a run is resumed; this one reads the trainer's history.
    """

    def __init__(self, patience: int, trainer: Any = None):
        self.patience, self.trainer = patience, trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if self._is_over(args, state):  # the run was cut off after its training, while it was scored, say
            control.should_training_stop = True
            self.trainer._run_epoch = lambda **_: None  # which would first make another step

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= self._is_over(args, state)

    def _is_over(self, args, state) -> bool:
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        best, since = -math.inf, 0
        for value in (entry[name] for entry in state.log_history if name in entry):
            value = value if args.greater_is_better else -value
            best, since = (value, 0) if value > best else (best, since + 1)
        return since >= self.patience
