"""What ends a run early, a signal or a full disk, and how to go on afterwards."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
import threading
from pathlib import Path

from transformers import TrainerCallback

from ..reliability.resuming import last_whole_checkpoint
from ..run_folder import RESULTS

INTERRUPTED = 130  # exit code
_GO_ON = (
    "the same command goes on from there (without --overwrite_output_dir and --resume_from_checkpoint, if it had them)"
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEFT = 2**20  # bytes; torch does not say why a write failed


class StopWhenAsked(TrainerCallback):
    """A context in which Ctrl-C or SIGTERM ends training after the current step, with a checkpoint; Ctrl-C again ends
    it at once.

    Several processes would stop after different steps, so with them a signal does what it always does.

    Args:
        processes: how many train together.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self, processes: int):
        self.asked = False
        self._listens = processes == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self):
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM) if self._listens else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell starts its background jobs so
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            print("\nStopping after this step, with a checkpoint. Ctrl-C again: now, without.", file=sys.stderr)
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.asked:
            control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.asked:  # an epoch cut short is not evaluated
            control.should_evaluate = control.should_save = False


def how_to_go_on(output_dir: Path) -> str:
    """One sentence: what the run can go on from."""
    if (output_dir / RESULTS).exists():
        return f"The results are in {output_dir / RESULTS}."
    last = last_whole_checkpoint(output_dir)
    return f"{last} is saved; {_GO_ON}." if last else f"There is no checkpoint in {output_dir} yet."


def is_full(output_dir: Path, error: BaseException) -> bool:
    """Whether a write failed because the disk is full; libraries report that in many ways."""
    if getattr(error, "errno", None) in _FULL or "No space left on device" in str(error):
        return True
    try:
        return isinstance(error, RuntimeError) and shutil.disk_usage(output_dir).free < _LEFT
    except OSError:
        return False
