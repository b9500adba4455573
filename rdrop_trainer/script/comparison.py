"""`--compare_baseline`: the same runs with and without R-Drop on several seeds, and the report on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .._extras import import_optional
from ..errors import InputError
from ..report import FinishedRun, write_report
from ..run_folder import FREE_TO_CHANGE, LOG, RESULTS, settings_of
from .arguments import CommandLine, parse_arguments
from .cluster import launcher
from .jobs import WRONG_INPUT, Finished, Job, alone_in, run_jobs
from .next_command import without_flags

INCOMPLETE = 1  # exit code: some runs failed
# Flags of the comparison that a run must not have, or that differ between its runs
_OF_THE_COMPARISON = ("compare_baseline", "seeds", "parallel", "engine", "seed", "output_dir", "measure_stability")
# Scores of other rows would not be comparable
_MAY_DIFFER = FREE_TO_CHANGE - {"max_eval_samples", "max_predict_samples", "measure_stability"}
# A run computes these from its data and model where they are not given
_FILLED_IN = frozenset(
    "max_seq_length max_target_length metric_for_best_model greater_is_better predict_with_generate do_train do_eval "
    "do_predict generation_num_beams generation_max_length".split()
)


def compare_baseline(command: CommandLine, script: str) -> int:
    """Run what is not finished yet of a comparison, and write the report.

    Args:
        command: the command line, with `--compare_baseline`.
        script: path of the script.

    Returns:
        The exit code: 0, or 1 when runs failed; the report is then on the seeds of which both runs are there.

    Raises:
        InputError: settings that a comparison cannot have, runs of other settings in its folder, or runs that refuse
            their input.
    """
    _check(command)
    folder = Path(command.training.output_dir if "output_dir" in command.given else _default_folder(command))
    jobs = _jobs(command, folder)
    return alone_in(folder, lambda: _compare(command, jobs, folder, script))


def _compare(command: CommandLine, jobs: Sequence[Job], folder: Path, script: str) -> int:
    pending = [job for job in jobs if not is_finished(job)]
    several = command.several
    print(f"{len(jobs)} runs in {folder}, {len(jobs) - len(pending)} of them finished before", flush=True)
    import_optional("scipy.stats", extra="report")  # missed now, not when all is computed
    failed, missing = [], {job.name for job in pending}
    # A cluster knows best how many it can take
    at_once = several.parallel if several.engine == "local" or "parallel" in command.given else len(jobs)
    for ended in run_jobs(pending, launcher(several.engine, script, at_once), at_once) if pending else ():
        print(told(ended), flush=True)
        if ended.code == WRONG_INPUT:
            raise InputError(f"{ended.job.name}: {ended.last_line}")
        if ended.code:
            failed.append(ended)
        else:
            missing.remove(ended.job.name)
    arms = jobs[::2], jobs[1::2]
    if any(not {baseline.name, rdrop.name} & missing for baseline, rdrop in zip(*arms, strict=True)):
        # Runs without their other half too: the report says which seeds it leaves out
        baseline, rdrop = ([FinishedRun.read(job.folder) for job in arm if job.name not in missing] for arm in arms)
        print("\n" + write_report(baseline, rdrop, folder).summary())
    if not failed:
        return 0
    names = "; ".join(f"{ended.job.name} ({ended.job.folder / LOG})" for ended in failed)
    print(f"\n{len(failed)} of {len(jobs)} runs failed: {names}. The same command tries them again.", flush=True)
    return INCOMPLETE


def told(ended: Finished) -> str:
    """A line on a run that has ended."""
    if ended.code:
        return f"{ended.job.name}: failed with exit code {ended.code} ({ended.seconds:.0f} s): {ended.last_line}"
    scores = json.loads((ended.job.folder / RESULTS).read_text(encoding="utf-8"))["headline"]
    told = ", ".join(f"{name} {'not defined' if value is None else f'{value:.4f}'}" for name, value in scores.items())
    return f"{ended.job.name}: {told} ({ended.seconds:.0f} s)"


def _jobs(command: CommandLine, folder: Path) -> list[Job]:
    """Baseline and R-Drop for each seed, in turn, so that an early end leaves pairs."""
    words = without_flags(command.words, {*_OF_THE_COMPARISON, "rdrop_alpha"})
    defaults = {"save_total_limit": "1", "disable_tqdm": "True"}  # of several runs: little on the disk and in the logs
    words += [f"--{name}={value}" for name, value in defaults.items() if name not in command.given]
    jobs = []
    for seed in command.several.seeds:
        for arm, alpha in (("baseline", 0.0), ("rdrop", command.training.rdrop_alpha)):
            place = folder / f"{arm}-seed{seed}"
            own = (f"--rdrop_alpha={alpha}", f"--seed={seed}", f"--output_dir={place}", "--measure_stability=True")
            jobs.append(Job(f"{arm}, seed {seed}", (*words, *own), place))
    return jobs


def is_finished(job: Job) -> bool:
    """Whether a run is complete; with the settings of the job, or the comparison would be of two things."""
    path = job.folder / RESULTS
    if not path.exists():
        return False
    command = parse_arguments(job.words)
    if command.data.overwrite_output_dir:
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, given_before = found["settings"], set(found["given"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete {job.folder}, and the run is repeated") from error
    now = settings_of(command.model, command.data, command.training)
    changed = [
        f"{name} was {before.get(name)!r}, now {value!r}"
        for name, value in json.loads(json.dumps(now)).items()
        if name not in _MAY_DIFFER
        and before.get(name) != value
        and not (name in _FILLED_IN and name not in command.given | given_before)
    ]
    if changed:
        raise InputError(
            f"{job.folder}: is a finished run with other settings ({'; '.join(changed[:5])}); choose another "
            "--output_dir, or add --overwrite_output_dir to train all runs anew"
        )
    return True


def _default_folder(command: CommandLine) -> str:
    task = command.data.task_name or "custom"
    return f"runs/{task}-comparison"


def _check(command: CommandLine) -> None:
    """Refuse what a comparison cannot do."""
    args, given = command.training, command.given
    phases = given & {"do_train", "do_eval"}
    if args.world_size > 1:
        raise InputError(
            "--compare_baseline starts its own processes: run it with python, not torchrun, and use several GPUs with "
            "--parallel N. Where one run needs several GPUs, start the runs with torchrun one by one, in folders "
            "beside one another, and then python -m rdrop_trainer.report FOLDER."
        )
    if args.rdrop_alpha == 0:
        raise InputError("--compare_baseline compares R-Drop with alpha 0; give the alpha above 0 that it is to have")
    if args.push_to_hub:
        raise InputError(
            "--compare_baseline trains many models; choose one afterwards: python -m rdrop_trainer.hub push FOLDER "
            "USER/NAME"
        )
    if (phases or "do_predict" in given) and not (args.do_train and args.do_eval):
        raise InputError("--compare_baseline trains and evaluates: give both --do_train and --do_eval, or neither")
    if args.resume_from_checkpoint not in (None, "auto", "none"):
        raise InputError("--resume_from_checkpoint: a comparison resumes each of its runs by itself")
