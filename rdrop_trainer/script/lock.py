"""One process at a time in an output folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError

logger = logging.getLogger(__name__)

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; a missing folder is made. The lock ends with the process that holds it.

    Args:
        folder: the folder.

    Raises:
        InputError: another process is at work in the folder, or it cannot be written to.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another process is at work there; wait for its end, or choose another --output_dir"
        ) from error
    except NotImplementedError:  # a file system without locks
        logger.warning(f"{folder}: its file system has no locks, so make sure that no other process writes there")
    except OSError as error:
        raise _not_ours(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Refuse early what `locked` would refuse later; no file or folder is made.

    Raises:
        InputError: another process is at work in the folder, or it cannot be read.
    """
    try:
        has_lock = (folder / _LOCK).exists()
    except OSError as error:
        raise _not_ours(folder, error) from error
    if has_lock:
        with locked(folder):
            pass


def _not_ours(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be written to ({error.strerror}); choose another --output_dir")
