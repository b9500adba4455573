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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ..errors import InputError
from ..run_folder import LOG, write_text
from .command_line import flags_of
from .program import MODULE

RECIPE = "recipe.yaml"
# After the interpreter; without the current folder, a user's datasets.py is not taken for the library of that name
# (python -P does the same, from 3.11 on)
_START = f"""import sys
sys.path = [folder for folder in sys.path if folder]
import runpy
runpy.run_module({MODULE!r}, run_name="__main__", alter_sys=True)"""
PROGRAM = ("-c", _START)
_PARENT = "RDROP_TRAINER_PARENT"


@dataclass(frozen=True)
class Job:
    """A run of the script.

    Attributes:
        name: for people.
        settings: the values of the script's flags, as a recipe states them; `output_dir` is `folder`.
        folder: the run's; what the run prints goes into `run.log` in it.
        program: what starts the script, after the interpreter.
    """

    name: str
    settings: Mapping[str, Any]
    folder: Path
    program: Sequence[str] = PROGRAM

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
        return [str(path), *flags_of({name: value for name, value in self.settings.items() if _is_token(name)})]


def recipe_text(settings: Mapping[str, Any]) -> str:
    """A recipe as YAML, without tokens."""
    kept = {name: value for name, value in settings.items() if value is not None and not _is_token(name)}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _is_token(name: str) -> bool:
    return name.endswith("token")


class Local:
    """Runs jobs on this machine. Those that run at the same time share its cores, and each gets one of its GPUs.

    Args:
        at_once: how many run at the same time.
        cwd: the folder they run in; default the current one.
    """

    def __init__(self, at_once: int, cwd: str | None = None):
        self.cwd = cwd
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
        """Run a job to its end, and return its exit code (negative: killed by that signal).

        Raises:
            InputError: its folder cannot be written to.
        """
        place = self._places.get()
        try:
            command = [sys.executable, *job.program, *job.write()]
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
