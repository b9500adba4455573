"""`--compare_baseline`: the same runs with and without R-Drop on several seeds, and the report on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._extras import import_optional
from ..errors import InputError
from ..report import FinishedRun, write_report
from .command_line import CommandLine
from .jobs import Job
from .several import alone_in, check_command, exit_code, folder_of, is_finished, run_all, settings_of_runs


def compare_baseline(command: CommandLine) -> int:
    """Run what is not finished yet of a comparison, and write the report.

    Returns:
        The exit code: 0; 1 when runs failed, and the report is then on the seeds of which both runs are there; 130 when
        interrupted.

    Raises:
        InputError: settings that a comparison cannot have, runs of other settings in its folder, or runs that refuse
            their input.
    """
    if command.training.rdrop_alpha == 0:
        raise InputError("--compare_baseline compares R-Drop with alpha 0; give the alpha above 0 that it is to have")
    distributed = (
        ". Where one run needs several GPUs, start the runs with torchrun one by one, in folders beside one another, "
        "and then python -m rdrop_trainer.report FOLDER."
    )
    check_command(command, "--compare_baseline", "a comparison resumes each of its runs", distributed)
    folder = folder_of(command, "comparison")
    shared = settings_of_runs(command, measure="quick")
    jobs = [  # baseline and R-Drop in turn, so that an early end leaves pairs
        Job(f"{arm}, seed {seed}", shared | {"rdrop_alpha": alpha, "seed": seed}, folder / f"{arm}-seed{seed}")
        for seed in command.several.seeds
        for arm, alpha in (("baseline", 0.0), ("rdrop", command.training.rdrop_alpha))
    ]
    return alone_in(folder, lambda: _compare(command, jobs, folder))


def _compare(command: CommandLine, jobs: Sequence[Job], folder: Path) -> int:
    pending = [job for job in jobs if not is_finished(job)]
    print(f"{len(jobs)} runs in {folder}, {len(jobs) - len(pending)} of them finished before", flush=True)
    import_optional("scipy.stats", extra="report")  # missed now, not when all is computed
    several = command.several
    # A cluster knows best how many it can take
    at_once = several.parallel if several.engine == "local" or "parallel" in command.given else len(jobs)
    failed = run_all(pending, several.engine, at_once) if pending else []
    missing = {ended.job.name for ended in failed}
    arms = jobs[::2], jobs[1::2]
    if any(not {baseline.name, rdrop.name} & missing for baseline, rdrop in zip(*arms, strict=True)):
        # Runs without their other half too: the report says which seeds it leaves out
        baseline, rdrop = ([FinishedRun.read(job.folder) for job in arm if job.name not in missing] for arm in arms)
        print("\n" + write_report(baseline, rdrop, folder).summary())
    return exit_code(failed, f"of {len(jobs)} runs")
