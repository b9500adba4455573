"""`--tune N`: alpha, dropout and learning rate searched for the user's data, every trial a run of the script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._extras import import_optional
from ..errors import InputError
from ..run_folder import RESULTS, read_results
from ..search import SPACE, STORE, cut_off, open_study, sampler_for, study_in, suggest
from .command_line import CommandLine
from .jobs import Job
from .several import alone_in, check_command, exit_code, folder_of, is_finished, run_all, settings_of_runs
from .trials import Trial, delete_weights, summary, write_recipe, write_trials

if TYPE_CHECKING:
    import optuna


def tune(command: CommandLine) -> int:
    """Run the trials that are not finished yet, and write `trials.md`, `trials.json` and `recipe.yaml`.

    Trial 0 is the given settings with alpha 0, trial 1 the given settings; the others are drawn by Optuna's TPE from
    the ranges of `default_hp_space`, or from ranges around a given value that lies outside them. All have the seed of
    the command, and are judged by the first headline score of the task on the validation rows. The study lies in
    `trials.db`. A trial that was cut off or failed goes on in its folder when the same command is given again; the
    weights of all but the best are deleted.

    Returns:
        The exit code: 0, 1 when trials failed, 130 when interrupted.

    Raises:
        InputError: settings that a search cannot have, trials of other settings in its folder, trials that refuse
            their input, or no Optuna.
    """
    if command.training.rdrop_alpha == 0:
        raise InputError("--tune searches an alpha above 0, beside alpha 0: leave out --rdrop_alpha 0")
    check_command(command, "--tune", "a search resumes each of its trials")
    import_optional("optuna", extra="tune").logging.set_verbosity(30)  # warnings
    folder = folder_of(command, "search")
    return alone_in(folder, lambda: Search(command, folder).run())


class Search:
    """The trials of a command line in a folder."""

    def __init__(self, command: CommandLine, folder: Path):
        self.command, self.folder, self.wanted = command, folder, command.several.tune
        if command.data.overwrite_output_dir:
            (folder / STORE).unlink(missing_ok=True)
        self.study = open_study("maximize", **study_in(folder))
        # Not multivariate, which would learn nothing from trials that did not draw every value
        self.study.sampler = sampler_for(self.study, command.training.seed, multivariate=False)
        self.space = {name: range_around(getattr(command.training, name), *SPACE[name]) for name in SPACE}
        defaults: dict[str, Any] = {"do_train": True, "do_eval": True}
        if not command.training.load_best_model_at_end:
            defaults["save_strategy"] = "no"
        self.shared = settings_of_runs(command, without=["do_predict"], **defaults)

    def run(self) -> int:
        several = self.command.several
        for trial in self.study.trials:
            self._check_or_settle(trial)
        done = len(self._finished())
        print(f"{max(self.wanted, done)} trials in {self.folder}, {done} of them finished before", flush=True)
        failed = run_all(self._to_come(), several.engine, several.parallel, self._settle)
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
            yield self._job(trial.number, trial.params)
        while (number := sum(trial.state.name != "WAITING" for trial in self.study.trials)) < self.wanted:
            names = () if number == 0 else SPACE
            if number == 1:  # by it the sampler learns how good the given settings are
                names = [name for name in SPACE if getattr(self.command.training, name) is not None]
                given = {name: getattr(self.command.training, name) for name in names}
                self.study.enqueue_trial(given, skip_if_exists=True)
            trial = self.study.ask()
            suggest(trial, {name: self.space[name] for name in names})
            yield self._job(trial.number, trial.params)

    def _job(self, number: int, params: Mapping[str, float]) -> Job:
        """The run of a trial. Drawn values are rounded, so that the table states what was run."""
        values = {name: float(f"{value:.3g}") for name, value in params.items()}
        changes = {0: {"rdrop_alpha": 0.0}, 1: {}}.get(number, values)
        return Job(f"trial {number}", self.shared | changes, self.folder / f"trial-{number}")

    def _check_or_settle(self, trial: optuna.trial.FrozenTrial) -> None:
        """Refuse an earlier trial with other settings; record one that ended after its search was cut off."""
        if trial.state.name == "WAITING":
            return
        job = self._job(trial.number, trial.params)
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

        trial = _read(job.folder)
        if trial.score is None:
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial.number, trial.score)
        delete_weights(self._finished())

    def _finished(self) -> list[Trial]:
        """The finished trials, the best first."""
        numbers = [trial.number for trial in self.study.trials if trial.state.is_finished()]
        trials = [_read(self.folder / f"trial-{number}") for number in numbers]
        return sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0), trial.number))


def _read(folder: Path) -> Trial:
    return Trial(int(folder.name.removeprefix("trial-")), folder, read_results(folder))


def range_around(given: float | None, low: float, high: float, log: bool) -> tuple[float, float, bool]:
    """A range that holds a given value: a logarithmic one is moved to have it in its middle, another is widened."""
    if given is None or low <= given <= high or (log and given <= 0):
        return low, high, log
    if log:
        factor = given / math.sqrt(low * high)
        return low * factor, high * factor, log
    return min(low, given), max(high, given), log
