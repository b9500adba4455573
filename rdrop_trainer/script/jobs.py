"""Several runs of the script, each in a process of its own: here, some at a time, or on a Ray cluster."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from ..errors import InputError
from ..run_folder import LOG
from .lock import locked

WRONG_INPUT = 2  # exit code of the script
_PARENT = "RDROP_TRAINER_PARENT"


@dataclass(frozen=True)
class Job:
    """A run of the script.

    Attributes:
        name: for people.
        words: the script's flags.
        folder: the run's; what the run prints goes into `run.log` in it.
    """

    name: str
    words: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Finished:
    """How a job ended: its exit code (negative: killed by that signal), its last line, and the seconds it took."""

    job: Job
    code: int
    last_line: str
    seconds: float


class Launch(Protocol):
    """What runs jobs, each to its end, such as `Local`."""

    def __call__(self, job: Job, /) -> int:
        """Run a job, and return its exit code."""

    def stop(self) -> None:
        """End all that run."""


def run_jobs(jobs: Iterable[Job], launch: Launch, at_once: int) -> Iterator[Finished]:
    """Run jobs, and yield each as it ends; the first that is refused as wrong input ends the waiting for the others.

    Args:
        jobs: in the order in which they are to begin; each is asked for when its turn comes.
        launch: runs one and waits for it, such as `Local`.
        at_once: how many run at the same time.
    """
    waiting = iter(jobs)
    with ThreadPoolExecutor(at_once, thread_name_prefix="run") as pool:
        running: set[Future] = set()
        try:
            while True:
                running |= {pool.submit(_timed, launch, job) for job in islice(waiting, at_once - len(running))}
                if not running:
                    return
                done = next(as_completed(running))
                running.remove(done)
                yield done.result()
                if done.result().code == WRONG_INPUT:
                    waiting = iter(())
        except BaseException:
            launch.stop()
            raise


def _timed(launch: Launch, job: Job) -> Finished:
    start = time.perf_counter()
    code = launch(job)
    return Finished(job, code, last_line(job.folder / LOG), time.perf_counter() - start)


def last_line(log: Path) -> str:
    """The last line of a log that says something, without the script's name before it."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "").removeprefix("run_glue_rdrop.py: error: ")


class Local:
    """Runs jobs on this machine; the cores are shared between those that run at a time, each gets one of the GPUs.

    Args:
        script: path of the script.
        at_once: how many run at a time.
        cwd: the folder they run in; default the current one.
    """

    def __init__(self, script: str | Path, at_once: int, cwd: str | None = None):
        self.script, self.cwd = str(script), cwd
        devices = _visible_devices()
        self._places: queue.Queue[dict[str, str]] = queue.Queue()
        for i in range(at_once):
            place = {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {}
            if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
                place["OMP_NUM_THREADS"] = str(max(1, _cores() // at_once))
            self._places.put(place)
        self._processes: set[subprocess.Popen] = set()
        self._stopped = False
        self._lock = threading.Lock()  # so that no process starts unseen by `stop`

    def __call__(self, job: Job) -> int:
        """Run a job to its end, and return its exit code.

        Raises:
            InputError: its folder cannot be written to.
        """
        place = self._places.get()
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            with open(job.folder / LOG, "ab") as log:
                with self._lock:
                    if self._stopped:
                        return -signal.SIGTERM
                    process = subprocess.Popen(
                        [sys.executable, self.script, *job.words],
                        cwd=self.cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **place, _PARENT: str(os.getpid())},
                    )
                    self._processes.add(process)
                try:
                    return process.wait()
                finally:
                    with self._lock:
                        self._processes.discard(process)
        except OSError as error:
            raise InputError(
                f"{job.folder}: the run cannot begin there ({error.strerror or error}). What is finished is kept, "
                "and the same command goes on"
            ) from error
        finally:
            self._places.put(place)

    def stop(self) -> None:
        """End all that run; none starts any more."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def end_with_parent() -> None:
    """In a process that `Local` started: end when its parent does, so that a run has no two processes."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None or os.name != "posix":
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def alone_in(folder: Path, run: Callable[[], int]) -> int:
    """Run what starts the runs of a folder, in one process at a time; its exit code, or 130 when it is interrupted.

    Args:
        folder: made where it is not there yet.
        run: returns its exit code.

    Raises:
        InputError: another process is at work in the folder.
    """
    try:
        with locked(folder), terminated_as_interrupted():
            return run()
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. What is finished stays in {folder}; the same command goes on (without "
            "--overwrite_output_dir, if it had that).",
            flush=True,
        )
        return 130


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that what this process started ends with it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _visible_devices() -> list[str]:
    """Names of the GPUs this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
