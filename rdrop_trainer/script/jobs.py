"""Runs of the script: each has a folder with a recipe, and a process of its own on this machine."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from ..errors import InputError
from ..run_folder import LOG, write_text
from .arguments import flags_of

RECIPE = "recipe.yaml"
WRONG_INPUT = 2  # exit code of the script
# What starts the script, after the interpreter; with -P, a user's datasets.py is not taken for the library of that name
PROGRAM = (*(("-P",) if sys.version_info >= (3, 11) else ()), "-m", "rdrop_trainer.script")
_PARENT = "RDROP_TRAINER_PARENT"


@dataclass(frozen=True)
class Job:
    """A run of the script.

    Attributes:
        name: for people.
        settings: the values of the script's flags, as a recipe states them; `output_dir` is `folder`.
        folder: the run's; what the run prints goes into `run.log` in it.
    """

    name: str
    settings: Mapping[str, Any]
    folder: Path

    @property
    def flags(self) -> list[str]:
        """The whole run as flags."""
        return flags_of({**self.settings, "output_dir": str(self.folder)})

    def write(self) -> list[str]:
        """Write the recipe into the folder, which is made if it is missing; tokens stay off the disk.

        Returns:
            The script's arguments: the recipe, and the tokens as flags.
        """
        path = self.folder.absolute() / RECIPE
        write_text(path, recipe_text({**self.settings, "output_dir": str(self.folder)}))
        tokens = {name: value for name, value in self.settings.items() if _is_token(name)}
        return [str(path), *flags_of(tokens)]


def recipe_text(settings: Mapping[str, Any]) -> str:
    """A recipe as YAML, without tokens."""
    kept = {name: value for name, value in settings.items() if value is not None and not _is_token(name)}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _is_token(name: str) -> bool:
    return name.endswith("token")


def command_of(job: Job, program: Sequence[str] = PROGRAM) -> list[str]:
    """Write a job's recipe, and return the command that runs it.

    Args:
        job: the job.
        program: what starts the script, after the interpreter.
    """
    return [sys.executable, *program, *job.write()]


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
    """Run jobs, and yield each as it ends. After a job that is refused as wrong input no other begins.

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
    """Runs jobs on this machine. Those that run at the same time share its cores, and each gets one of its GPUs.

    Args:
        at_once: how many run at the same time.
        program: what starts the script, after the interpreter.
        cwd: the folder they run in; default the current one.
    """

    def __init__(self, at_once: int, program: Sequence[str] = PROGRAM, cwd: str | None = None):
        self.program, self.cwd = program, cwd
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
            command = command_of(job, self.program)
            with open(job.folder / LOG, "ab") as log:
                with self._lock:
                    if self._stopped:
                        return -signal.SIGTERM
                    process = subprocess.Popen(
                        command,
                        cwd=self.cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **place, **_where_it_is(), _PARENT: str(os.getpid())},
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


def _where_it_is() -> dict[str, str]:
    """PYTHONPATH with this package, where it runs from a clone that is not installed."""
    root = str(Path(__file__).parents[2])
    if root == sysconfig.get_path("purelib"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))}


def _visible_devices() -> list[str]:
    """Names of the GPUs this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
