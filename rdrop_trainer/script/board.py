"""The runs of a command as they go: which run, how far they are, and how long all will take."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ..run_folder import LOG
from .estimate import duration
from .jobs import Job
from .progress import Progress, forget_progress, read_progress


@dataclass
class _Running:
    job: Job
    start: float
    last: Progress | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def progress(self) -> Progress:
        found = read_progress(self.job.folder)
        if found is None:  # it has not begun to train, or what it writes is no longer there
            return Progress() if self.last is None else replace(self.last, phase="ends")
        self.last = found
        return found


class Board:
    """What is known of the runs of a command.

    A run takes as long as the finished ones of its arm did; where there are none, as long as the rate of its steps
    says, to which evaluating and measuring come; and where there is neither, as long as the slowest arm that is known.

    Args:
        arms: the arm of each run that has not begun.
        at_once: how many run at the same time.
    """

    def __init__(self, arms: Iterable[str], at_once: int):
        self._waiting, self._at_once = Counter(arms), at_once
        self._running: dict[Path, _Running] = {}
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._ended = 0
        self._lock = threading.RLock()  # the table is drawn by a thread of its own

    def learn(self, arm: str, seconds: float) -> None:
        """Note what a finished run took."""
        with self._lock:
            self._seconds[arm].append(seconds)

    def begin(self, job: Job) -> None:
        """A run begins."""
        forget_progress(job.folder)
        with self._lock:
            self._waiting[job.arm] -= 1
            self._running[job.folder] = _Running(job, time.monotonic())

    def end(self, job: Job, seconds: float | None) -> None:
        """A run has ended, in so many seconds, or None for one that failed."""
        forget_progress(job.folder)
        with self._lock:
            del self._running[job.folder]
            self._ended += 1
            if seconds is not None:
                self.learn(job.arm, seconds)

    def left(self) -> str:
        """The time left for all runs, such as "about 3 min left"; empty where nothing is left or known."""
        with self._lock:
            whole = {arm: mean(seconds) for arm, seconds in self._seconds.items()}
            running, waiting = list(self._running.values()), +self._waiting  # those above 0
        measured = bool(whole)
        for run in running:
            training = run.progress.training_left
            if training is not None and run.job.arm not in whole:
                whole[run.job.arm] = run.seconds + training
        if not whole or not (running or waiting):
            return ""
        slowest = max(whole.values())
        parts = [max(0.0, whole.get(run.job.arm, slowest) - run.seconds) for run in running]
        parts += [whole.get(arm, slowest) for arm in waiting.elements()]
        seconds = max(*parts, sum(parts) / self._at_once)
        return f"{'about' if measured else 'at least'} {duration(seconds)} left"

    def title(self) -> str:
        """One line on all runs."""
        with self._lock:
            left, waiting = self.left(), (+self._waiting).total()
            line = f"{self._ended} ended, {len(self._running)} running, {waiting} to come"
        return f"{line}; {left}" if left else line

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each run that goes on, with the columns of `COLUMNS`."""
        with self._lock:
            return [_row(run) for run in self._running.values()]


COLUMNS = ("run", "phase", "steps", "score so far", "time", "log")


def _row(run: _Running) -> tuple[str, ...]:
    progress = run.progress
    score = ", ".join(f"{name} {value:.4f}" for name, value in progress.score.items())
    steps = f"{progress.step:,} of {progress.max_steps:,}" if progress.max_steps else ""
    return run.job.name, progress.phase, steps, score, duration(run.seconds), str(run.job.folder / LOG)


def display(board: Board, reports: bool) -> Lines | Table:
    """What shows a board: a live table on a terminal, where rich is installed, and lines elsewhere."""
    if reports and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        try:
            return Table(board)
        except ImportError:
            pass
    return Lines()


class Lines(AbstractContextManager):
    """A line as a run begins, and another as it ends."""

    def began(self, job: Job) -> None:
        """Say that a run begins."""
        self.say(f"{job.name}: begins, log {job.folder / LOG}")

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def __exit__(self, *_: Any) -> None:
        pass


class Table(AbstractContextManager):
    """A table of the runs that go on, below the lines on those that have ended.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, board: Board):
        from rich.live import Live

        self._board = board
        self._live = Live(get_renderable=self._table, refresh_per_second=1, transient=True)

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(*COLUMNS, title=self._board.title(), title_justify="left", box=box.SIMPLE)
        table.columns[-1].overflow = "fold"
        for row in self._board.rows():
            table.add_row(*map(Text, row))  # as text: a name may hold brackets, which rich reads as markup
        return table

    def began(self, job: Job) -> None:
        """The table has a row for it."""
        self._live.refresh()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Table:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()
