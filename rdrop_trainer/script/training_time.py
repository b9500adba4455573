"""The seconds of a training, added up over its interruptions: every checkpoint holds those that led to it."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerState

from ..stability import DivergenceProbe
from .cost import Clock

SINCE_RESUME = "train since the resume"  # in the place of "train" where the seconds before are not known


class TrainingTime(TrainerCallback):
    """Tells seconds of training from those of the evaluations and of the probe that lie within it.

    Its sums lie among the states of callbacks in `trainer_state.json`. It is no `ExportableState`, which `Trainer`
    cannot save after resuming from a checkpoint that does not know it.
    """

    def __init__(self, probe: DivergenceProbe | None):
        self._probe, self._evaluation, self._started = probe, 0.0, time.perf_counter()
        self._before: dict[str, float] | None = {}  # seconds before the resume; None where they are not known

    def on_train_begin(self, args, state: TrainerState, control, **kwargs):
        self._started = time.perf_counter()
        if state.global_step:
            self._before = _states(state).get(type(self).__name__, {}).get("attributes")

    def on_step_end(self, args, state: TrainerState, control, **kwargs):
        self._note(state)

    def on_evaluate(self, args, state: TrainerState, control, metrics: dict[str, float] | None = None, **kwargs):
        self._evaluation += sum(value for name, value in (metrics or {}).items() if name.endswith("_runtime"))
        self._note(state)

    def _within(self) -> dict[str, float]:
        probe = {} if self._probe is None else {"probe": self._probe.seconds}
        return probe | ({"eval": self._evaluation} if self._evaluation else {})

    def elapsed(self) -> float:
        """Seconds of training so far; only those since the resume where the others are not known."""
        now = time.perf_counter() - self._started - sum(self._within().values())
        return (self._before or {}).get("train", 0.0) + now

    def _note(self, state: TrainerState) -> None:
        if self._before is None:
            return
        within = self._within()
        now = {"train": time.perf_counter() - self._started - sum(within.values())} | within
        sums = {part: round(self._before.get(part, 0.0) + now.get(part, 0.0), 3) for part in self._before | now}
        _states(state)[type(self).__name__] = {"args": {}, "attributes": sums}

    def settle(self, clock: Clock) -> None:
        """Move what lies within the training out of its seconds, and add what was before the resume; call it once."""
        for part, seconds in self._within().items():
            clock.move("train", part, seconds)
        if self._before is None:
            clock.seconds[SINCE_RESUME] = clock.seconds.pop("train")
        for part, seconds in (self._before or {}).items():
            clock.seconds[part] = round(clock.seconds.get(part, 0.0) + seconds, 3)


def _states(state: TrainerState) -> dict[str, Any]:
    states: Any = state.stateful_callbacks  # a list for its constructor, and then a dictionary
    return states
