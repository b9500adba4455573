"""The program: one run, a dry run, several runs or the demo, and its exit code."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from .._console import print_any_text
from ..errors import InputError
from . import program
from .command_line import CommandLine, read_flags
from .jobs import end_with_parent
from .program import INTERRUPTED, NOT_PUSHED, WRONG_INPUT, StoppedError
from .refusals import check_flags
from .summary import command_without_dry_run, summary

_FIRST_SAYS_IT = 5.0  # seconds


def main(argv: list[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: its flags; by default those of the command line.

    Returns:
        The exit code: 0 when all went well, 1 when some of several runs failed, 2 for what has to be mended first
        (input, a full disk), 3 when only the push failed, 4 for a loss, weights or predictions that are NaN or
        infinite, 130 when it was interrupted.
    """
    print_any_text()
    end_with_parent()
    argv = sys.argv[1:] if argv is None else argv
    main_process = int(os.environ.get("RANK", "0")) == 0
    try:
        return _dispatch(argv, main_process)
    except InputError as error:
        # The first process of a machine says it for all. Where it stops as well, its launcher ends the others meanwhile
        if os.environ.get("LOCAL_RANK", "0") != "0" and not isinstance(error, StoppedError):
            time.sleep(_FIRST_SAYS_IT)
        print(f"{program.name()}: error: {error}", file=sys.stderr, flush=True)
        return error.code if isinstance(error, StoppedError) else WRONG_INPUT
    except KeyboardInterrupt as error:
        if main_process:
            print(f"\nInterrupted. {error}", file=sys.stderr)
        return INTERRUPTED


def _dispatch(argv: list[str], main_process: bool) -> int:
    """Do what the command line asks for; the exit code. What a training needs is imported when it is clear that one
    can begin.
    """
    flags = read_flags(argv)
    check_flags(flags)
    command = flags.command()
    if command.data.demo:
        from .demo import run_demo

        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError("--demo starts its own processes: run it with python, not torchrun")
        folder = Path(command.training.output_dir) if "output_dir" in command.given else None
        return run_demo(folder, command.training.use_cpu or "use_cpu" not in command.given)
    if command.data.dry_run:
        found = _dry(command)
        if main_process:
            print(f"\n{found}\nnext      {command_without_dry_run(argv, command.training.world_size)}")
        return 0
    if command.several.tune is not None:
        from .tuning import tune

        return tune(command)
    if command.several.compare_baseline:
        from .comparison import compare_baseline

        return compare_baseline(command)
    from .run import run

    results = run(command)
    if main_process:
        print("\n" + summary(argv, results))
    return NOT_PUSHED if results["push_error"] else 0


def _dry(command: CommandLine) -> str:
    """What the command would do."""
    if command.several.tune is not None:
        from .tuning import plan_tuning

        return plan_tuning(command)
    if command.several.compare_baseline:
        from .comparison import plan_comparison

        return plan_comparison(command)
    from .run import run_dry

    return run_dry(command).text()
