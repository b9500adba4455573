"""`--tune N`: alpha, dropout and learning rate searched for the user's data, every trial a run of the script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._extras import import_optional
from ..errors import InputError
from ..run_folder import RESULTS, read_results
from ..search import SPACE, STORE, STUDY, cut_off, open_study, sampler_for, study_in, suggest
from .board import Board
from .command_line import CommandLine
from .jobs import Job
from .output_dir import check_unlocked
from .plan import plan
from .several import alone_in, check_command, exit_code, folder_for, is_finished, run_all, settings_of_runs
from .trials import Trial, delete_weights, is_lower_better, metric_of, summary, write_recipe, write_trials

if TYPE_CHECKING:
    import optuna


def tune(command: CommandLine) -> int:
    """Run the trials that are not finished yet, and write `trials.md`, `trials.json` and `recipe.yaml`.

    Trial 0 is the given settings with alpha 0, trial 1 the given settings; the others are drawn by Optuna's TPE from
    the ranges of `default_hp_space`, or from ranges around a given value that lies outside them. All have the seed of
    the command, and they and their checkpoints are judged by `--tune_metric`, or the first headline score of the task.
    The same command goes on with a trial that was cut off or failed. The weights of all but the best are deleted.
    Returns the exit code, 1 when trials failed.
    """
    folder = _checked_folder(command)
    return alone_in(folder, lambda: Search(command, folder).run())


def plan_tuning(command: CommandLine) -> str:
    """What `tune` would do, for the terminal. Nothing is trained or written, so no study is opened."""
    folder, wanted, at_once = _checked_folder(command), command.several.tune, command.several.parallel
    check_unlocked(folder)
    jobs = [_job(command, folder, number, {}) for number in range(min(wanted, 2))]
    pending = [job for job in jobs if not is_finished(job)]
    listed = [
        f"{job.name} ({what}): {job.folder}, {'to come' if job in pending else 'finished'}"
        for job, what in zip(jobs, ("alpha 0", "the given settings"), strict=False)
    ]
    drawn = [folder / f"trial-{number}" for number in range(2, wanted)]
    anew = command.data.overwrite_output_dir
    finished = [path for path in drawn if (path / RESULTS).exists() and not anew]
    if drawn:
        listed.append(
            f"trials 2 to {wanted - 1} (drawn by Optuna): {drawn[0]} to {drawn[-1].name}, {len(finished)} of them "
            "finished"
        )
    # What will be drawn is not known: the given settings stand for it, in a folder that holds nothing
    pending += [replace(_job(command, folder, 1, {}), folder=folder / "trial")] * (len(drawn) - len(finished))
    title = (
        f"a search in {folder}: {wanted} trials, {wanted - len(pending)} of them finished, seed {command.training.seed}"
    )
    # The weights of the best stay, beside what the trials that run leave
    return plan(title, listed, pending, at_once, kept=min(len(pending), at_once + 1))


def _checked_folder(command: CommandLine) -> Path:
    if command.training.rdrop_alpha == 0:
        raise InputError("--tune searches an alpha above 0, beside alpha 0: leave out --rdrop_alpha 0")
    check_command(command, "--tune", "a search resumes each of its trials")
    import_optional("optuna", extra="tune").logging.set_verbosity(30)  # warnings
    return folder_for(command, "search")


def _job(command: CommandLine, folder: Path, number: int, params: Mapping[str, float]) -> Job:
    """The run of a trial. Drawn values are rounded, so that the table states what was run."""
    defaults: dict[str, Any] = {"do_train": True, "do_eval": True}
    if not command.training.load_best_model_at_end:
        defaults["save_strategy"] = "no"
    if (metric := metric_of(command)) is not None:
        defaults["metric_for_best_model"] = metric
    shared = settings_of_runs(command, without=["do_predict"], **defaults)
    values = {name: float(f"{value:.3g}") for name, value in params.items()}
    changes = {0: {"rdrop_alpha": 0.0}, 1: {}}.get(number, values)
    return Job(f"trial {number}", shared | changes, folder / f"trial-{number}", arm=_arm(number))


def _forget(folder: Path) -> None:
    """Delete the study of a folder; Windows deletes no file that is open, so there the file may stay, without it."""
    try:
        (folder / STORE).unlink(missing_ok=True)
    except PermissionError:
        import optuna

        with suppress(KeyError):  # it has none
            optuna.delete_study(study_name=STUDY, storage=study_in(folder)["storage"])


def _arm(number: int) -> str:
    return "alpha 0" if number == 0 else "R-Drop"


class Search:
    """The search of a command line in a folder: its trials, and the study that draws them."""

    def __init__(self, command: CommandLine, folder: Path):
        self.command, self.folder, self.wanted = command, folder, command.several.tune
        if command.data.overwrite_output_dir:
            _forget(folder)
        self.metric = metric_of(command)
        self.study = open_study("minimize" if is_lower_better(self.metric) else "maximize", **study_in(folder))
        # Not multivariate, which would learn nothing from trials that did not draw every value
        self.study.sampler = sampler_for(self.study, command.training.seed, multivariate=False)
        self.space = {name: range_around(getattr(command.training, name), *SPACE[name]) for name in SPACE}

    def run(self) -> int:
        several = self.command.several
        for trial in self.study.trials:
            self._check_or_settle(trial)
        finished = self._finished()
        done, numbers = len(finished), {trial.number for trial in finished}
        board = Board([_arm(number) for number in range(self.wanted) if number not in numbers], several.parallel)
        for trial in finished:
            board.learn(_arm(trial.number), trial.seconds)
        print(f"{max(self.wanted, done)} trials in {self.folder}, {done} of them finished before", flush=True)
        try:
            failed = run_all(self._to_come(), several.engine, several.parallel, board, self._settle)
        except InputError:
            if not self._finished():  # nothing to go on with; the mended command may search by another score
                _forget(self.folder)
            raise
        trials = self._finished()
        if trials:
            write_trials(self.folder, trials, self.command)
            if trials[0].score is not None:
                write_recipe(self.folder, trials, self.command)
        print("\n" + summary(self.folder, trials, self.command))
        return exit_code(failed, "trials")

    def _to_come(self) -> Iterator[Job]:
        """The trials that were cut off or failed, and then new ones, drawn when their turn comes."""
        for trial in cut_off(self.study):
            yield self._job(trial)
        while (number := sum(trial.state.name != "WAITING" for trial in self.study.trials)) < self.wanted:
            names = () if number == 0 else SPACE
            if number == 1:  # by it the sampler learns how good the given settings are
                names = [name for name in SPACE if getattr(self.command.training, name) is not None]
                given = {name: getattr(self.command.training, name) for name in names}
                self.study.enqueue_trial(given, skip_if_exists=True)
            trial = self.study.ask()
            suggest(trial, {name: self.space[name] for name in names})
            yield self._job(trial)

    def _job(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> Job:
        return _job(self.command, self.folder, trial.number, trial.params)

    def _check_or_settle(self, trial: optuna.trial.FrozenTrial) -> None:
        """Refuse an earlier trial with other settings; record one that ended after its search was cut off."""
        if trial.state.name == "WAITING":
            return
        job = self._job(trial)
        if is_finished(job):
            if trial.state.name == "RUNNING":
                self._settle(job)
        elif trial.state.is_finished():
            raise InputError(
                f"{job.folder / RESULTS}: is missing, though {self.folder / STORE} counts this trial as finished; "
                "choose another --output_dir, or add --overwrite_output_dir to begin the search anew"
            )

    def _settle(self, job: Job) -> None:
        """Record in the study how a trial ended, and keep the weights of the best alone."""
        import optuna

        trial = self._read(job.folder)
        if trial.score is None:
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial.number, trial.score)
        delete_weights(self._finished())

    def _finished(self) -> list[Trial]:
        """The finished trials, the best first."""
        numbers = [trial.number for trial in self.study.trials if trial.state.is_finished()]
        trials = [self._read(self.folder / f"trial-{number}") for number in numbers]
        sign = 1 if is_lower_better(self.metric) else -1
        return sorted(trials, key=lambda trial: (trial.score is None, sign * (trial.score or 0), trial.number))

    def _read(self, folder: Path) -> Trial:
        return Trial(int(folder.name.removeprefix("trial-")), folder, read_results(folder), self.metric)


def range_around(given: float | None, low: float, high: float, log: bool) -> tuple[float, float, bool]:
    """A range that holds a given value: a logarithmic one is moved to have it in its middle, another is widened."""
    if given is None or low <= given <= high or (log and given <= 0):
        return low, high, log
    if log:
        factor = given / math.sqrt(low * high)
        return low * factor, high * factor, log
    return min(low, given), max(high, given), log
