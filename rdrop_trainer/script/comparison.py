"""`--compare_baseline`: the same runs with and without R-Drop on several seeds, and the report on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from .._extras import import_optional
from ..errors import InputError
from ..report import FinishedRun, write_report
from ..report.arms import LONGER, PLAIN, RDROP
from ..report.runs import same_seeds
from ..run_folder import ARMS_FILE, RESULTS, read_arms, read_results, write_json
from .arms import Arm, arms_of, stretched
from .board import Board
from .card import add_baseline
from .command_line import CommandLine
from .jobs import Job
from .output_dir import check_unlocked
from .plan import plan
from .program import logger
from .several import Finished, alone_in, check_command, exit_code, folder_for, is_finished, run_all, settings_of_runs
from .trials import TABLE


def compare_baseline(command: CommandLine) -> int:
    """Run what is not finished yet of a comparison, and write the report; the exit code.

    That is 1 when runs failed: the report is then on the seeds of which both runs are there.
    """
    comparison = comparison_of(command)
    return alone_in(comparison.folder, comparison.run)


def plan_comparison(command: CommandLine) -> str:
    """What `compare_baseline` would do, for the terminal. Nothing is trained or written."""
    comparison = comparison_of(command)
    check_unlocked(comparison.folder)
    return comparison.plan()


def comparison_of(command: CommandLine) -> Comparison:
    """The comparison that a command asks for, when all that can be checked before it begins is checked."""
    if command.training.rdrop_alpha == 0:
        raise InputError(
            "--compare_baseline compares R-Drop with alpha 0; give the alpha above 0 that it is to have. (The recipe "
            f"of a search has alpha 0 where no trial with R-Drop was better; the command at the end of its {TABLE} "
            "compares the best of those.)"
        )
    distributed = (
        ". Where one run needs several GPUs, start the runs with torchrun one by one, in folders beside one another, "
        "and then python -m rdrop_trainer.report FOLDER."
    )
    check_command(command, "--compare_baseline", "a comparison resumes each of its runs", distributed)
    comparison = Comparison(command, folder_for(command, "comparison"))
    import_optional("scipy.stats", extra="report")  # missed now, not when all is computed
    return comparison


class Comparison:
    """The runs of a command line in a folder: ARM-seedSEED each, and `arms.json`, which names the arms."""

    def __init__(self, command: CommandLine, folder: Path):
        self.command, self.folder, self.arms = command, folder, arms_of(command)
        self.shared = settings_of_runs(command, measure="quick")
        self.seeds = command.several.seeds

    def run(self) -> int:
        jobs, longer = self._jobs(), self._longer()
        pending, count = self._pending(jobs), len(jobs) + len(longer)
        to_come = [*pending, *self._pending(longer)]
        board = Board([job.arm for job in to_come], self._at_once(len(pending)))
        for job in jobs + longer:
            if job not in to_come:
                board.learn(job.arm, sum(read_results(job.folder)["seconds"].values()))
        print(f"{count} runs in {self.folder}, {count - len(to_come)} of them finished before", flush=True)
        self._note_arms(self._known_ratio())
        failed = self._run_all(pending, board)
        ratio = self._ratio() if longer else None
        if ratio is not None:
            self._note_arms(ratio)
            print(f"{LONGER} trains {ratio:.2f} times as long as {PLAIN}, which is {RDROP}'s time", flush=True)
            failed += self._run_all(self._pending(self._longer()), board)
        runs = {arm.name: self._finished(arm, {ended.job.folder for ended in failed}) for arm in self.arms}
        with_rdrop = [run.folder for found in runs.values() for run in found if run.alpha and run.folder]
        if {run.seed for run in runs[PLAIN]} & {run.seed for run in runs[RDROP]}:
            plain, rdrop = runs.pop(PLAIN), runs.pop(RDROP)
            print("\n" + write_report(plain, rdrop, self.folder, others=runs).summary())
        for folder in with_rdrop:
            try:
                add_baseline(folder)
            except (OSError, ValueError) as error:  # a finished comparison shall not end over a card
                logger.error(f"{folder}: the model card lacks its baseline: {error}")
        return exit_code(failed, f"of {count} runs")

    def plan(self) -> str:
        """What `run` would do, for the terminal."""
        jobs = self._jobs() + self._longer()
        pending = self._pending(jobs)
        title = f"a comparison in {self.folder}: {len(jobs)} runs, {len(jobs) - len(pending)} of them finished"
        listed = [f"{job.name}: {job.folder}, {'to come' if job in pending else 'finished'}" for job in jobs]
        return plan(title, listed, pending, self._at_once(len(pending)), kept=len(pending))

    def _jobs(self) -> list[Job]:
        """Seed by seed, so that an early end leaves pairs; without those that wait for a measured time."""
        return [self._job(arm, seed) for seed in self.seeds for arm in self.arms if arm.name != LONGER]

    def _longer(self) -> list[Job]:
        """The runs that train for R-Drop's time; until that is measured, R-Drop's settings stand for theirs."""
        arm, ratio = next((arm for arm in self.arms if arm.name == LONGER), None), self._known_ratio()
        if arm is None:
            return []
        arm = replace(self.arms[1], name=LONGER) if ratio is None else stretched(arm, ratio, self.command.training)
        return [self._job(arm, seed) for seed in self.seeds]

    def _pending(self, jobs: Sequence[Job]) -> list[Job]:
        unknown = LONGER if self._known_ratio() is None else None
        return [job for job in jobs if job.arm == unknown or not is_finished(job)]

    def _job(self, arm: Arm, seed: int) -> Job:
        settings = {**self.shared, **arm.changes, "seed": seed}
        return Job(f"{arm.name}, seed {seed}", settings, self._folder(arm, seed), arm=arm.name)

    def _folder(self, arm: Arm, seed: int) -> Path:
        return self.folder / f"{arm.name}-seed{seed}"

    def _run_all(self, jobs: Sequence[Job], board: Board) -> list[Finished]:
        return run_all(jobs, self.command.several.engine, self._at_once(len(jobs)), board) if jobs else []

    def _at_once(self, jobs: int) -> int:
        several = self.command.several
        # A cluster knows best how many it can take
        return several.parallel if several.engine == "local" or "parallel" in self.command.given else max(1, jobs)

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
