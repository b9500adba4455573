"""Guarding a run's folder: what may be written there, what it goes on from, and what is deleted first."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from ..reliability.resuming import checkpoint_fault, last_whole_checkpoint
from ..run_folder import (
    ARMS_FILE,
    EDITS_FILE,
    FREE_TO_CHANGE,
    LOG,
    LOGITS_FILE,
    PROGRESS,
    RESULTS,
    ROWS_EVALUATED,
    SETTINGS,
    STATE,
    changed_settings,
    read_results,
    write_json,
)
from ..search import STORE
from .interrupts import weights_alone
from .jobs import RECIPE
from .program import logger
from .resolve import RunConfig

_LOCK = ".lock"
# What a folder holds of the script, by the file that says so
_PURPOSES = {
    ARMS_FILE: "a comparison",
    STORE: "a search",
    RESULTS: "a run",
    SETTINGS: "a run",
    "checkpoint-*": "a run",
}
# Settings that name what a run reads
_PATHS = "model_name_or_path tokenizer_name data_dir train_file validation_file test_file unlabeled_file".split()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing. A process that dies releases it."""
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
        raise _not_writable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Refuse early what `locked` would refuse later. Makes no folder and no lock."""
    try:
        has_lock = (folder / _LOCK).exists()
    except OSError as error:
        raise _not_writable(folder, error) from error
    if has_lock:
        with locked(folder):
            pass


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(f"--output_dir {folder}: cannot be written to ({error.strerror}); choose another")


def find_checkpoint(config: RunConfig, warn: bool = True) -> str | None:
    """Make sure that a run may write to its folder, and find the checkpoint it goes on from, if any. Changes nothing.

    Args:
        warn: log a warning on checkpoints that it does not go on from.
    """
    output_dir, will_train = config.output_dir, config.training.do_train
    check_writable(output_dir)
    check_purpose(output_dir, "a run")
    resume = config.training.resume_from_checkpoint
    named = None if resume in (None, "auto", "none") else resume
    if named is not None:
        _check_checkpoint(named, will_train, config.training.save_only_model)
    if config.data.overwrite_output_dir:
        _check_not_deleted(output_dir, [*map(config.settings.get, _PATHS), named])
        return named
    if (output_dir / RESULTS).exists():
        raise InputError(
            f"{output_dir}: holds a finished run ({RESULTS}); choose another --output_dir, or add "
            "--overwrite_output_dir to delete it"
        )
    if will_train:
        _check_not_written_over(output_dir, config.model.model_name_or_path)
    on_purpose = config.training.save_only_model
    last = last_whole_checkpoint(output_dir, needs_optimizer=False)  # weights alone are not to be lost either
    whole = last_whole_checkpoint(output_dir, warn=warn and not (on_purpose and last))
    if last is None or (named is not None and Path(named).resolve().parent == output_dir.resolve()):
        return named
    if resume not in (None, "auto") or not will_train:
        why = f"--resume_from_checkpoint is {resume}" if will_train else "this run does not train"
        raise InputError(
            f"{output_dir}: holds checkpoints of an unfinished run, and {why}; choose another --output_dir, or add "
            "--overwrite_output_dir to delete them"
        )
    _check_same_settings(output_dir, config.what_runs)
    if whole is None and on_purpose and warn:
        logger.warning(f"{output_dir}: the training starts over. {weights_alone(last)}")
    return str(whole) if whole else None


def take_over(config: RunConfig) -> None:
    """When all is checked, delete what an earlier run left, if the user asked for that, and note which run is here."""
    if config.training.should_save and config.data.overwrite_output_dir:
        _clear(config.output_dir)
    if config.training.should_save and config.training.do_train:
        write_json(config.output_dir / SETTINGS, config.what_runs)


def check_writable(folder: Path) -> None:
    """Make sure that a folder can be written to, or made. What is made for that is deleted again."""
    missing: list[Path] = []
    try:
        for nearest in (folder, *folder.absolute().parents):
            if nearest.exists():
                break
            missing.append(nearest)
        else:
            raise InputError(f"--output_dir {folder}: there is no {nearest}; choose another")
        if not nearest.is_dir():
            what = f"is below {nearest}, which is a file" if missing else "is a file"
            raise InputError(f"--output_dir {folder}: {what}; expected a folder")
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
        elif not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _not_writable(folder, error) from error
    finally:
        for path in missing:
            with suppress(OSError):  # as where another process has put something there since
                path.rmdir()


def check_purpose(folder: Path, wanted: str) -> None:
    """Refuse a folder that holds something else of the script than is `wanted`, such as "a run"."""
    held = next(((what, name) for name, what in _PURPOSES.items() if any(folder.glob(name))), (wanted, ""))
    if held[0] != wanted:
        raise InputError(
            f"--output_dir {folder}: holds {held[0]} ({held[1]}), and {wanted} needs a folder of its own; choose "
            "another"
        )


def warn_of_others(folder: Path, settings: Mapping[str, Any]) -> None:
    """Warn of files in a folder that nothing of the script has left there, and that its flags do not name."""
    if not folder.is_dir() or any(any(folder.glob(name)) for name in _PURPOSES):
        return
    ours = {RECIPE, LOG, PROGRESS} | {Path(path).name for name in _PATHS if (path := settings.get(name))}
    names = sorted(path.name for path in folder.iterdir() if path.name not in ours and not path.name.startswith("."))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        logger.warning(f"{folder}: holds other files ({', '.join(names[:3])}{more}); what is written goes beside them")


def _check_checkpoint(named: str, will_train: bool, weights_suffice: bool) -> None:
    """Refuse a path that was given and is none of a whole checkpoint."""
    if not will_train:
        raise InputError(f"--resume_from_checkpoint {named}: this run does not train, so it cannot go on from there")
    # The folder of a finished run has a state as well
    is_one = Path(named).name.startswith("checkpoint-")
    fault = checkpoint_fault(Path(named), not weights_suffice) if is_one else "its name is not checkpoint-..."
    if fault is not None:
        raise InputError(f"{named}: is no whole checkpoint ({fault}); expected auto, none or another checkpoint")


def _check_not_deleted(output_dir: Path, names: Sequence[str | None]) -> None:
    """Refuse to delete, or to replace while it is read, what a run reads."""
    for path in (Path(name).resolve() for name in names if name is not None and Path(name).exists()):
        chain = [path, *path.parents]
        deleted = [folder for folder in output_dir.resolve().glob("checkpoint-*") if folder in chain]
        if path == output_dir.resolve() or deleted:
            raise InputError(f"{path}: lies in {output_dir}, which --overwrite_output_dir deletes")


def _check_not_written_over(output_dir: Path, model: str | None) -> None:
    """Refuse to save where the model is from: its weights are read from that file for as long as it lives."""
    if model and Path(model).is_dir() and Path(model).resolve() == output_dir.resolve():
        raise InputError(f"--output_dir {output_dir}: is the folder of the model that is to be trained; choose another")


def _check_same_settings(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with an unfinished run of other settings."""
    try:
        before = json.loads((output_dir / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{output_dir}: holds checkpoints, but no readable {SETTINGS} to say what run they are of; name one with "
            "--resume_from_checkpoint to go on from it, or choose another --output_dir"
        ) from error
    chosen = settings.get("metric_for_best_model") is not None  # by scores, which must be of the same rows
    changed = changed_settings(before, settings, FREE_TO_CHANGE - ROWS_EVALUATED if chosen else FREE_TO_CHANGE)
    if changed:
        raise InputError(
            f"{output_dir}: holds an unfinished run with other settings ({'; '.join(map(str, changed[:5]))}); put "
            "those back to go on, choose another --output_dir, or add --overwrite_output_dir to delete it"
        )


def _clear(output_dir: Path) -> None:
    """Delete what an earlier run of the script left: checkpoints, results, settings and leaderboard files."""
    try:
        predictions = read_results(output_dir)["predictions"]
    except (InputError, KeyError):
        predictions = []  # there are none, or the file is damaged and names none
    for path in (output_dir / Path(name).name for name in predictions):
        path.unlink(missing_ok=True)
    others = [output_dir / name for name in (SETTINGS, STATE, EDITS_FILE, LOGITS_FILE, RESULTS)]  # the results last
    for path in [*output_dir.glob("checkpoint-*"), *others]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
