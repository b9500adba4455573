"""How far a run is: written into its folder as it goes, and read by the command that started it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..run_folder import PROGRESS, write_json
from .prepare import Prepared
from .resolve import RunConfig
from .summary import score_names

_AT_MOST_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: the part of the run, as in the `seconds` of its results.
        step, max_steps: optimizer steps made, and how many there are to be.
        first_step: the one that this process began from.
        seconds: since training began in this process.
        score: the last scores on the validation rows, by their names; empty before there are any.
    """

    phase: str = "load"
    step: int = 0
    max_steps: int = 0
    first_step: int = 0
    seconds: float = 0.0
    score: Mapping[str, float] = field(default_factory=dict)

    @property
    def training_left(self) -> float | None:
        """Seconds until the last step, by the rate so far; None where that is not known."""
        made = self.step - self.first_step
        if made < 1:
            return None
        return self.seconds / made * (self.max_steps - self.step)


def read_progress(folder: Path) -> Progress | None:
    """How far the run of a folder is; None before it has written anything, and when it ends."""
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget_progress(folder: Path) -> None:
    """Delete what a run left that was killed."""
    with suppress(OSError):
        (folder / PROGRESS).unlink(missing_ok=True)


@contextmanager
def progress_written(config: RunConfig, prepared: Prepared) -> Iterator[None]:
    """Keep `progress.json` in the folder of a run for as long as it goes on."""
    headline = [f"eval_{name}" for name in config.task.headline[:1]]
    writer = _Writer(config.output_dir, score_names(config.training.metric_for_best_model, headline))
    prepared.clock.on_part = writer.begin
    prepared.trainer.add_callback(writer)
    try:
        yield
    finally:
        forget_progress(config.output_dir)


class _Writer(TrainerCallback):
    """Writes at the begin of a phase, and else once a second. A run does not end over a file that cannot be written."""

    def __init__(self, folder: Path, scores: Sequence[str]):
        self._folder, self._scores, self._progress = folder, scores, Progress()
        self._began = self._written = time.monotonic()

    def begin(self, phase: str) -> None:
        self._progress = replace(self._progress, phase=phase)
        self._write()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.monotonic()
        self._progress = replace(
            self._progress, step=state.global_step, first_step=state.global_step, max_steps=state.max_steps
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        if now - self._written >= _AT_MOST_EVERY:
            self._progress = replace(self._progress, step=state.global_step, seconds=round(now - self._began, 3))
            self._write()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **_) -> None:
        found = {name: float(metrics[name]) for name in self._scores if (metrics or {}).get(name) is not None}
        if found:
            self._progress = replace(self._progress, step=state.global_step, score=found)
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(OSError):
            write_json(self._folder / PROGRESS, asdict(self._progress))
