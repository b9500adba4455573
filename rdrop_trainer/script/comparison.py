"""`--compare_baseline`: the same runs with and without R-Drop on several seeds, and the report on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from .._extras import import_optional
from ..errors import InputError
from ..report import FinishedRun, write_report
from ..report.arms import LONGER, PLAIN, RDROP
from ..report.runs import same_seeds
from ..run_folder import ARMS_FILE, RESULTS, read_arms, write_json
from .arms import Arm, arms_of, stretched
from .command_line import CommandLine
from .jobs import Job
from .several import Finished, alone_in, check_command, exit_code, folder_of, is_finished, run_all, settings_of_runs


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
    comparison = Comparison(command, folder_of(command, "comparison"))
    return alone_in(comparison.folder, comparison.run)


class Comparison:
    """The runs of a command line in a folder: ARM-seedSEED each, and `arms.json`, which names the arms."""

    def __init__(self, command: CommandLine, folder: Path):
        self.command, self.folder, self.arms = command, folder, arms_of(command)
        self.shared = settings_of_runs(command) | {"measure_stability": True}
        self.seeds = command.several.seeds

    def run(self) -> int:
        import_optional("scipy.stats", extra="report")  # missed now, not when all is computed
        # Seed by seed, so that an early end leaves pairs; what waits for a measured time comes last
        jobs = [self._job(arm, seed) for seed in self.seeds for arm in self.arms if arm.name != LONGER]
        pending, count = [job for job in jobs if not is_finished(job)], len(self.arms) * len(self.seeds)
        print(f"{count} runs in {self.folder}, {len(jobs) - len(pending)} of them finished before", flush=True)
        self._note_arms(self._known_ratio())
        failed = self._run_all(pending)
        ratio = self._ratio() if len(jobs) < count else None
        if ratio is not None:
            self._note_arms(ratio)
            print(f"{LONGER} trains {ratio:.2f} times as long as {PLAIN}, which is {RDROP}'s time", flush=True)
            longer = next(arm for arm in self.arms if arm.name == LONGER)
            jobs = [self._job(stretched(longer, ratio, self.command.training), seed) for seed in self.seeds]
            failed += self._run_all([job for job in jobs if not is_finished(job)])
        runs = {arm.name: self._finished(arm, {ended.job.folder for ended in failed}) for arm in self.arms}
        if {run.seed for run in runs[PLAIN]} & {run.seed for run in runs[RDROP]}:
            plain, rdrop = runs.pop(PLAIN), runs.pop(RDROP)
            print("\n" + write_report(plain, rdrop, self.folder, others=runs).summary())
        return exit_code(failed, f"of {count} runs")

    def _job(self, arm: Arm, seed: int) -> Job:
        return Job(f"{arm.name}, seed {seed}", {**self.shared, **arm.changes, "seed": seed}, self._folder(arm, seed))

    def _folder(self, arm: Arm, seed: int) -> Path:
        return self.folder / f"{arm.name}-seed{seed}"

    def _run_all(self, jobs: Sequence[Job]) -> list[Finished]:
        several = self.command.several
        # A cluster knows best how many it can take
        at_once = several.parallel if several.engine == "local" or "parallel" in self.command.given else len(jobs)
        return run_all(jobs, several.engine, at_once) if jobs else []

    def _finished(self, arm: Arm, lost: Collection[Path]) -> list[FinishedRun]:
        folders = (self._folder(arm, seed) for seed in self.seeds)
        return [FinishedRun.read(path) for path in folders if path not in lost and (path / RESULTS).exists()]

    def _note_arms(self, ratio: float | None) -> None:
        write_json(self.folder / ARMS_FILE, {"arms": [arm.name for arm in self.arms], "longer": ratio})

    def _known_ratio(self) -> float | None:
        path = self.folder / ARMS_FILE
        return read_arms(path)["longer"] if path.exists() else None

    def _ratio(self) -> float | None:
        """R-Drop's seconds of training for one of plain fine-tuning; once measured, it stays. None without a pair."""
        if (known := self._known_ratio()) is not None:
            return known
        plain, rdrop = same_seeds(*(self._finished(arm, ()) for arm in self.arms[:2]))
        seconds = [(a.train_seconds, b.train_seconds) for a, b in zip(plain, rdrop, strict=True)]
        timed = [pair for pair in seconds if None not in pair]  # those of a resumed run may not be known
        return round(sum(b for _, b in timed) / sum(a for a, _ in timed), 2) if timed else None
