"""The training of a run, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import TrainerCallback

from ..stability import DivergenceProbe
from .cost import peak_memory
from .interrupts import StopWhenAsked, is_full
from .output_dir import take_over
from .prepare import WRONG_SETTING, Prepared, input_error
from .program import logger
from .resolve import RunConfig
from .training_time import TrainingTime

PROBE_ROWS = 100  # training rows whose divergence --measure_stability follows


class Trained(NamedTuple):
    """Steps, loss and operations of a training, and its `peak_memory`; nothing where none was asked for."""

    metrics: Mapping[str, float] = {}
    memory: Mapping[str, Any] | None = None


def train(config: RunConfig, prepared: Prepared, checkpoint: str | None) -> Trained:
    """Train, and save the model; a run that does not train only takes over its folder.

    Args:
        config: the run.
        prepared: its trainer is trained.
        checkpoint: the one to resume from.

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
    if config.data.measure_stability:
        rows = prepared.features["train"]
        probe = DivergenceProbe(trainer, rows.select(range(min(PROBE_ROWS, len(rows)))))
        trainer.add_callback(probe)
    seconds = TrainingTime(probe)
    trainer.add_callback(seconds)
    stop = StopWhenAsked(config.training.world_size)
    trainer.add_callback(stop)
    try:
        with clock("train"), stop:
            trained = trainer.train(resume_from_checkpoint=checkpoint)
    except Exception as error:
        if stop.asked:  # a signal also ends processes that load data, without which the step may fail
            raise KeyboardInterrupt from error
        if not beginning.reached and isinstance(error, WRONG_SETTING) and not is_full(config.output_dir, error):
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
