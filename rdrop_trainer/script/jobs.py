"""Runs of the script: each has a folder with a recipe, and a process of its own on this machine."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from ..errors import InputError
from ..run_folder import LOG, write_text
from .command_line import flags_of
from .program import MODULE

RECIPE = "recipe.yaml"


def _program(module: str) -> tuple[str, str]:
    """What starts a module, after the interpreter. Without the current folder, a user's datasets.py is not taken for
    the library of that name; `python -P` does the same, from 3.11 on.
    """
    code = "import sys; sys.path = [folder for folder in sys.path if folder]; import runpy; "
    return "-c", code + f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


PROGRAM, WORKER = _program(MODULE), _program(f"{MODULE}.worker")
PARENT = "RDROP_TRAINER_PARENT"  # the process with which a run ends
_TIME_TO_SAVE = 30.0  # seconds, for a step and a checkpoint


@dataclass(frozen=True)
class Job:
    """A run of the script.

    Attributes:
        name: for people.
        settings: the values of the script's flags, as a recipe states them; `output_dir` is `folder`.
        folder: the run's; what the run prints goes into `run.log` in it.
        program: what starts the script, after the interpreter.
        arm: the kind of run that it is; those of one arm take about as long.
    """

    name: str
    settings: Mapping[str, Any]
    folder: Path
    program: Sequence[str] = PROGRAM
    arm: str = ""

    @property
    def flags(self) -> list[str]:
        """The whole run as flags."""
        return flags_of({**self.settings, "output_dir": str(self.folder)})

    def write(self) -> list[str]:
        """Write the recipe into the folder, which is made if it is missing.

        Returns the script's arguments: the recipe, and as flags the tokens, which stay off the disk.
        """
        path = self.folder.absolute() / RECIPE
        write_text(path, recipe_text({**self.settings, "output_dir": str(self.folder)}))
        return [str(path), *flags_of({name: value for name, value in self.settings.items() if _is_token(name)})]


def recipe_text(settings: Mapping[str, Any]) -> str:
    """A recipe as YAML, without tokens."""
    kept = {name: value for name, value in settings.items() if value is not None and not _is_token(name)}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _is_token(name: str) -> bool:
    return name.endswith("token")


@dataclass
class _Place:
    """A place for one run at a time: its part of the machine, and the process that forks its runs."""

    env: Mapping[str, str]
    worker: subprocess.Popen | None = None


class Local:
    """Runs jobs on this machine. Those that run at the same time share its cores, and each gets one of its GPUs.

    Where processes can be forked, the runs of a place do not import all that they need each anew. CUDA can be lost in a
    fork, so on a machine with GPUs they do.
    """

    def __init__(self, at_once: int, cwd: str | None = None):
        self.cwd = cwd
        devices = _visible_devices()
        self._forks = sys.platform == "linux" and not devices
        self._places: queue.Queue[_Place] = queue.Queue()
        for i in range(at_once):
            env = {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {}
            if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
                env["OMP_NUM_THREADS"] = str(max(1, _cores() // at_once))
            # The log is read as UTF-8, whatever the encoding of a file is on this system
            env |= {**_where_it_is(), "PYTHONIOENCODING": "utf-8", PARENT: str(os.getpid())}
            self._places.put(_Place(env))
        self._processes: set[subprocess.Popen] = set()
        self._stopped = False
        self._lock = threading.Lock()  # so that no process starts unseen by `stop`

    def __call__(self, job: Job) -> int:
        """Run a job to its end, and return its exit code (negative: killed by that signal)."""
        place = self._places.get()
        try:
            argv, log = job.write(), job.folder / LOG
            with open(log, "ab") as file:
                if self._forks and job.program == PROGRAM:
                    return self._fork(place, argv, file)
                process = self._start([*job.program, *argv], place, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
                return -signal.SIGTERM if process is None else self._ended(process)
        except OSError as error:
            raise InputError(
                f"{job.folder}: the run cannot begin there ({error.strerror or error}). What is finished is kept, "
                "and the same command goes on"
            ) from error
        finally:
            self._places.put(place)

    def _fork(self, place: _Place, argv: Sequence[str], log: IO[bytes]) -> int:
        """Run the script in a fork of the place's worker, which is started where there is none."""
        if place.worker is None:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "encoding": "utf-8"}
            place.worker = self._start(WORKER, place, **pipes)
            if place.worker is None:
                return -signal.SIGTERM
        try:
            print(json.dumps({"argv": argv, "log": os.path.abspath(log.name)}), file=place.worker.stdin, flush=True)
            answer = place.worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return int(answer)
        worker, place.worker = place.worker, None  # it was killed, and its run with it
        return self._ended(worker) or 1

    def _start(self, program: Sequence[str], place: _Place, **streams: Any) -> subprocess.Popen | None:
        """Start a process; None when all have been stopped."""
        with self._lock:
            if self._stopped:
                return None
            env = {**os.environ, **place.env}
            process = subprocess.Popen([sys.executable, *program], cwd=self.cwd, env=env, **streams)
            self._processes.add(process)
            return process

    def _ended(self, process: subprocess.Popen) -> int:
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)

    def stop(self) -> None:
        """End all that run; none starts any more."""
        with self._lock:
            self._stopped = True
            running = list(self._processes)
        for process in running:
            if sys.platform == "win32":  # there this kills, and Ctrl-C has reached the runs already
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_TIME_TO_SAVE)
            process.terminate()


def end_with_parent() -> None:
    """In a process that `Local` started: end when its parent does, so that a run has no two processes."""
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform == "win32":
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
