"""A process that imports what a training needs once, and forks a run for each line that it reads.

`python -m rdrop_trainer.script.worker` reads lines `{"argv": [...], "log": PATH}` and answers each with the run's exit
code. A run is a process of its own, so nothing of it is left for the next.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .jobs import PARENT
from .main import main

_IMPORTS = ("rdrop_trainer.script.run", "rdrop_trainer.trainer")


class Worker:
    """Forks runs, one at a time; ends with the process that started it, and takes a run along."""

    def __init__(self, answers: TextIO):
        # Not the present parent: the starter may have died while this process imported what it needs
        self._answers, self._starter, self._run = answers, int(os.environ.get(PARENT) or os.getppid()), 0
        # Ctrl-C reaches the run itself; SIGTERM is handed on to it
        self._handlers = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._terminate),
        }

    def __call__(self, lines: TextIO) -> Callable[[], int] | None:
        """Fork a run for each line. Returns the run, in the process that is one, and None at the end of the lines."""
        while line := lines.readline():  # not by iteration, which reads ahead
            job = json.loads(line)
            self._run = os.fork()
            if not self._run:
                for number, handler in self._handlers.items():
                    signal.signal(number, handler)
                return lambda: _run(job["argv"], job["log"])
            print(self._wait(), file=self._answers, flush=True)
        return None

    def _wait(self) -> int:
        """The exit code of the run (negative: killed by that signal)."""
        while not (ended := os.waitpid(self._run, os.WNOHANG))[0]:
            if os.getppid() != self._starter:
                os.kill(self._run, signal.SIGKILL)
            time.sleep(0.05)
        self._run = 0
        return os.waitstatus_to_exitcode(ended[1])

    def _terminate(self, *_) -> None:
        if not self._run:
            os._exit(0)
        os.kill(self._run, signal.SIGTERM)


def _run(argv: list[str], log: str) -> int:
    """Run the script in this process, as `python -m rdrop_trainer.script` would."""
    sys.argv = [str(Path(__file__).with_name("__main__.py")), *argv]
    os.environ[PARENT] = str(os.getppid())
    with open(log, "ab") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    return main(argv)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what imports print is no answer
    worker = Worker(answers)
    for name in _IMPORTS:
        importlib.import_module(name)
    run = worker(sys.stdin)
    sys.exit(0 if run is None else run())
