"""Several runs by one command: what a comparison and a search share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..run_folder import (
    FREE_TO_CHANGE,
    LOG,
    RESULTS,
    ROWS_SCORED,
    changed_settings,
    contents_of,
    read_results,
    settings_of,
)
from .arguments import SeveralRunsArguments
from .board import Board, display
from .cluster import OnRay
from .command_line import CommandLine, parse_arguments
from .interrupts import NO_SPACE, is_full, terminated_as_interrupted
from .jobs import Job, Local
from .output_dir import check_purpose, check_writable, locked, warn_of_others
from .program import FILE, INCOMPLETE, INTERRUPTED, WRONG_INPUT, StoppedError
from .summary import scores_to_show

# Flags of the command, which none of its runs has
OF_THE_COMMAND = {"output_dir", *(field.name for field in fields(SeveralRunsArguments))}
# Of each run, so that disk and logs stay small
_DEFAULTS = {"disable_tqdm": True, "save_total_limit": 1}
# Scores of other rows would not be comparable
_MAY_DIFFER = FREE_TO_CHANGE - ROWS_SCORED - {"measure"}
# A run computes these from its data and model where they are not given
_FILLED_IN = frozenset(
    "max_seq_length max_target_length null_score_diff_threshold metric_for_best_model greater_is_better "
    "predict_with_generate do_train do_eval do_predict generation_num_beams generation_max_length".split()
)


def check_command(command: CommandLine, flag: str, resumes: str, distributed: str = "") -> None:
    """Refuse what several runs by one command cannot do.

    Args:
        flag: the one that asks for several runs.
        resumes: what resumes by itself, as in "a search resumes each of its trials".
        distributed: what else to say where it was started with torchrun.
    """
    args = command.training
    if args.world_size > 1:
        raise InputError(
            f"{flag} starts its own processes: run it with python, not torchrun, and use several GPUs with "
            f"--parallel N{distributed}"
        )
    if args.push_to_hub:
        raise InputError(
            f"{flag} trains many models; choose one afterwards: python -m rdrop_trainer.hub push FOLDER USER/NAME"
        )
    if command.given.keys() & {"do_train", "do_eval", "do_predict"} and not (args.do_train and args.do_eval):
        raise InputError(f"{flag} trains and evaluates: give both --do_train and --do_eval, or neither")
    if args.resume_from_checkpoint not in (None, "auto", "none"):
        raise InputError(f"--resume_from_checkpoint: {resumes} by itself")


def folder_for(command: CommandLine, what: str) -> Path:
    """The folder of a "comparison" or a "search", in which its runs have theirs."""
    given = "output_dir" in command.given
    folder = Path(command.training.output_dir if given else f"runs/{command.data.task_name or 'custom'}-{what}")
    check_writable(folder)
    check_purpose(folder, f"a {what}")
    warn_of_others(folder, settings_of(command.model, command.data))
    return folder


def settings_of_runs(command: CommandLine, without: Collection[str] = (), **defaults: Any) -> dict[str, Any]:
    """The settings that all runs of a command share.

    Args:
        without: further settings that its runs do not share.
        **defaults: further settings, where the command gives none.
    """
    left_out = {*OF_THE_COMMAND, *without}
    return _DEFAULTS | defaults | {name: value for name, value in command.given.items() if name not in left_out}


def alone_in(folder: Path, run: Callable[[], int]) -> int:
    """Call what runs the jobs of a folder, in one process at a time; its exit code, or 130 when it is interrupted."""
    try:
        with locked(folder), terminated_as_interrupted():
            return run()
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. What is finished stays in {folder}; the same command goes on (without "
            "--overwrite_output_dir, if it had that).",
            flush=True,
        )
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, InputError) or not is_full(error):
            raise
        raise StoppedError(f"{folder}: {NO_SPACE}. What is finished is kept, and the same command goes on") from error


@dataclass(frozen=True)
class Finished:
    """How a job ended: its exit code, its last line, and the seconds it took."""

    job: Job
    code: int
    last_line: str
    seconds: float


def run_all(
    jobs: Iterable[Job], engine: str, at_once: int, board: Board, on_success: Callable[[Job], None] = lambda job: None
) -> list[Finished]:
    """Run jobs, show how far they are, and print a line as each ends.

    Args:
        jobs: in the order in which they are to begin; each is asked for when its turn comes.
        board: knows which are to come, and is told of each.
        on_success: called with each that went well, when it has ended.

    Returns:
        Those that failed. A run that refuses its input ends all, as the others would refuse it too.
    """
    failed = []
    # Machines of a cluster need not share a disk with this one
    with display(board, reports=engine == "local") as shown:

        def begin(job: Job) -> None:
            board.begin(job)
            shown.began(job)

        for ended in run_jobs(jobs, launcher(engine, at_once), at_once, begin):
            board.end(ended.job, None if ended.code else ended.seconds)
            shown.say("; ".join(filter(None, [progress_line(ended), board.left()])))
            if ended.code == WRONG_INPUT:
                raise InputError(f"{ended.job.name}: {ended.last_line}")
            if ended.code:
                failed.append(ended)
            else:
                on_success(ended.job)
    return failed


def launcher(engine: str, at_once: int) -> Local | OnRay:
    """What runs jobs."""
    return OnRay() if engine == "ray" else Local(at_once)


def run_jobs(
    jobs: Iterable[Job], launch: Local | OnRay, at_once: int, on_begin: Callable[[Job], None] = lambda job: None
) -> Iterator[Finished]:
    """Run jobs, and yield each as it ends. After a job that is refused as wrong input no other begins."""
    waiting = iter(jobs)
    with ThreadPoolExecutor(at_once, thread_name_prefix="run") as pool:
        running: set[Future] = set()
        try:
            while True:
                for job in islice(waiting, at_once - len(running)):
                    on_begin(job)
                    running.add(pool.submit(_run, job, launch))
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


def _run(job: Job, launch: Local | OnRay) -> Finished:
    start = time.perf_counter()
    code = launch(job)
    log = job.folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return Finished(job, code, last_line.removeprefix(f"{FILE}: error: "), time.perf_counter() - start)


def progress_line(ended: Finished) -> str:
    """A line on a run that has ended."""
    if ended.code:
        return f"{ended.job.name}: failed with exit code {ended.code} ({ended.seconds:.0f} s): {ended.last_line}"
    results = read_results(ended.job.folder)
    scores = scores_to_show(results, results["settings"]["metric_for_best_model"])
    parts = ", ".join(f"{name} {score_text(value)}" for name, value in scores.items())
    return f"{ended.job.name}: {parts} ({ended.seconds:.0f} s)"


def score_text(value: float | None) -> str:
    """A score in a line or a table."""
    return "not defined" if value is None else f"{value:.4f}"


def exit_code(failed: Sequence[Finished], what: str) -> int:
    """The exit code of the command, and a line on the runs that failed, which are `what`, such as "trials"."""
    if not failed:
        return 0
    names = "; ".join(f"{ended.job.name} ({ended.job.folder / LOG})" for ended in failed)
    print(f"\n{len(failed)} {what} failed: {names}. The same command tries them again.", flush=True)
    return INCOMPLETE


def is_finished(job: Job) -> bool:
    """Whether a job's run is complete."""
    path = job.folder / RESULTS
    if not path.exists():
        return False
    command = parse_arguments(job.flags)
    if command.data.overwrite_output_dir:
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, given_before = found["settings"], set(found["given"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete {job.folder}, and the run is repeated") from error
    filled_in = _FILLED_IN - command.given.keys() - given_before
    now = settings_of(command.model, command.data, command.training)
    now |= contents_of(now)
    changed = [str(change) for change in changed_settings(before, now, _MAY_DIFFER | filled_in)]
    if changed:
        raise InputError(
            f"{job.folder}: is a finished run with other settings ({'; '.join(changed[:5])}); choose another "
            "--output_dir, or add --overwrite_output_dir to train all runs anew"
        )
    return True
