"""Runs that end early, by a signal or a full disk, and what is said of how they go on."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

from ..reliability.resuming import last_whole_checkpoint
from ..run_folder import RESULTS

_GO_ON = (
    "the same command goes on from there (without --overwrite_output_dir and --resume_from_checkpoint, if it had them)"
)
NO_SPACE = "no space is left on the disk, or a quota or `ulimit -f` allows no more; make room"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of safetensors and Arrow: on Windows in the language of the system, but with the number, of the disk or of a quota. Of
# torch, which does not say why it could not write; of SQLite
_SAID = ("(os error 112)", "(os error 1295)") if sys.platform == "win32" else tuple(map(os.strerror, _FULL))
_SAID += ("unexpected pos", "PytorchStreamWriter failed", "database or disk is full")


class StopWhenAsked(TrainerCallback):
    """As a context: Ctrl-C or SIGTERM ends training after the current step, with a checkpoint; Ctrl-C again, at once.

    Several processes would each stop after another step, so there a signal does what it always does.
    """

    def __init__(self, processes: int):
        self.asked = False
        self._listens = processes == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self):
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM) if self._listens else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # as it is in a shell's background
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
        if self.asked:  # the epoch is not complete, so nothing is due at its end
            control.should_evaluate = control.should_save = False


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


def how_to_go_on(output_dir: Path) -> str:
    """A sentence on what a run left in its folder, and how to go on from it."""
    if (output_dir / RESULTS).exists():
        return f"The results are in {output_dir / RESULTS}."
    if last := last_whole_checkpoint(output_dir):
        return f"{last} is saved; {_GO_ON}."
    if last := last_whole_checkpoint(output_dir, needs_optimizer=False):
        return f"The same command starts over. {weights_alone(last)}"
    return f"There is no checkpoint in {output_dir} yet."


def weights_alone(checkpoint: Path) -> str:
    """A sentence on a checkpoint from which a run does not go on by itself, since it would not end in the same way."""
    return (
        f"{checkpoint} has the weights alone (save_only_model); to go on from them, with a fresh optimizer, add "
        f"--resume_from_checkpoint {checkpoint}."
    )


def is_full(error: BaseException | None) -> bool:
    """Whether a write failed because the disk is full, or a quota or `ulimit -f` allows no more; libraries say so in
    many ways.
    """
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _SAID):
            return True
        error = error.__cause__
    return False
