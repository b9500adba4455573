"""`--tune N`: alpha, dropout and learning rate searched for the user's data, every trial a run of the script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._extras import import_optional
from ..errors import InputError
from ..run_folder import LOG, RESULTS
from ..search import SPACE, STORE, STUDY, suggest
from .arguments import CommandLine
from .cluster import launcher
from .comparison import INCOMPLETE, is_finished, told
from .jobs import WRONG_INPUT, Job, alone_in, run_jobs
from .next_command import without_flags
from .trials import Trial, delete_weights, read_trial, summary, write_recipe, write_trials

if TYPE_CHECKING:
    import optuna

# Flags of the search that a trial must not have, or that differ between trials; a trial predicts nothing
_OF_THE_SEARCH = ("tune", "parallel", "engine", "seeds", "compare_baseline", "output_dir", "do_predict")


def tune(command: CommandLine, script: str) -> int:
    """Run the trials that are not finished yet, and write `trials.md`, `trials.json` and `recipe.yaml`.

    Trial 0 is the given settings with alpha 0, trial 1 the given settings; the others are drawn by Optuna's TPE from
    the ranges of `default_hp_space`, or from ranges around a given value that lies outside them. All have the seed of
    the command, and are judged by the first headline score of the task on the validation rows. The study lies in
    `trials.db`. A trial that was cut off or failed goes on in its folder when the same command is given again; the
    weights of all but the best are deleted.

    Args:
        command: the command line, with `--tune`.
        script: path of the script.

    Returns:
        The exit code: 0, 1 when trials failed, 130 when interrupted.

    Raises:
        InputError: settings that a search cannot have, trials of other settings in its folder, trials that refuse
            their input, or no Optuna.
    """
    _check(command)
    import_optional("optuna", extra="tune").logging.set_verbosity(30)  # warnings
    default = f"runs/{command.data.task_name or 'custom'}-search"
    folder = Path(command.training.output_dir if "output_dir" in command.given else default)
    return alone_in(folder, lambda: Search(command, folder).run(script))


class Search:
    """The trials of a command line in a folder."""

    def __init__(self, command: CommandLine, folder: Path):
        import optuna

        self.command, self.folder, self.wanted = command, folder, command.several.tune
        if command.data.overwrite_output_dir:
            (folder / STORE).unlink(missing_ok=True)
        store = {"study_name": STUDY, "storage": f"sqlite:///{(folder / STORE).absolute()}"}
        self.study = optuna.create_study(**store, direction="maximize", load_if_exists=True)
        # With the seed alone, a search that goes on would draw the values of its first trials again; not multivariate,
        # which would learn nothing from trials that did not draw every value
        seed = command.training.seed + len(self.study.trials)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False)
        self.space = {name: range_around(getattr(command.training, name), *SPACE[name]) for name in SPACE}

    def run(self, script: str) -> int:
        """See `tune`."""
        several = self.command.several
        for trial in self.study.trials:
            self._check_or_settle(trial)
        done = len(self._finished())
        print(f"{max(self.wanted, done)} trials in {self.folder}, {done} of them finished before", flush=True)
        failed = []
        jobs = self._to_come()
        for ended in run_jobs(jobs, launcher(several.engine, script, several.parallel), several.parallel):
            print(told(ended), flush=True)
            if ended.code == WRONG_INPUT:
                raise InputError(f"{ended.job.name}: {ended.last_line}")
            if ended.code:
                failed.append(ended)
            else:
                self._settle(int(ended.job.folder.name.rpartition("-")[2]))
        trials = self._finished()
        if trials:
            write_trials(self.folder, trials, self.command)
            if trials[0].score is not None:
                write_recipe(self.folder, trials, self.command)
        print("\n" + summary(self.folder, trials, self.command))
        if failed:
            names = "; ".join(f"{ended.job.name} ({ended.job.folder / LOG})" for ended in failed)
            print(f"\n{len(failed)} trials failed: {names}. The same command goes on with them.", flush=True)
        return INCOMPLETE if failed else 0

    def _to_come(self) -> Iterator[Job]:
        """The trials that were cut off or failed, and then new ones, drawn when their turn comes."""
        for trial in self.study.trials:
            if trial.state.name == "RUNNING":
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
        """The run of a trial."""
        words = without_flags(self.command.words, _OF_THE_SEARCH)
        defaults = {"do_train": "True", "do_eval": "True", "disable_tqdm": "True", "save_total_limit": "1"}
        if not self.command.training.load_best_model_at_end:
            defaults["save_strategy"] = "no"
        words += [f"--{name}={value}" for name, value in defaults.items() if name not in self.command.given]
        words += [f"--{name}={value}" for name, value in _values(number, params).items()]
        place = self.folder / f"trial-{number}"
        return Job(f"trial {number}", (*words, f"--output_dir={place}"), place)

    def _check_or_settle(self, trial: optuna.trial.FrozenTrial) -> None:
        """A trial of before: its run must be the command's, and what was not told when it ended is told now."""
        if trial.state.name == "WAITING":
            return
        job = self._job(trial.number, trial.params)
        if is_finished(job):
            if trial.state.name == "RUNNING":
                self._settle(trial.number)
        elif trial.state.is_finished():
            raise InputError(
                f"{job.folder / RESULTS}: is missing, though {self.folder / STORE} counts this trial as finished; "
                "choose another --output_dir, or add --overwrite_output_dir to begin the search anew"
            )

    def _settle(self, number: int) -> None:
        """Tell the study how a trial ended, and keep the weights of the best alone."""
        import optuna

        trial = read_trial(number, self.folder / f"trial-{number}")
        if trial.score is None:
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(number, trial.score)
        delete_weights(self._finished())

    def _finished(self) -> list[Trial]:
        """The finished trials, the best first."""
        numbers = [trial.number for trial in self.study.trials if trial.state.is_finished()]
        trials = [read_trial(number, self.folder / f"trial-{number}") for number in numbers]
        return sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0), trial.number))


def _values(number: int, params: Mapping[str, float]) -> dict[str, float]:
    """What a trial changes of the given settings; drawn values rounded, so that what is said is what was run."""
    if number < 2:
        return {"rdrop_alpha": 0.0} if number == 0 else {}
    return {name: float(f"{value:.3g}") for name, value in params.items()}


def range_around(given: float | None, low: float, high: float, log: bool) -> tuple[float, float, bool]:
    """A range that holds a given value: a logarithmic one moved to have it in its middle, another widened."""
    if given is None or low <= given <= high or (log and given <= 0):
        return low, high, log
    if log:
        factor = given / math.sqrt(low * high)
        return low * factor, high * factor, log
    return min(low, given), max(high, given), log


def _check(command: CommandLine) -> None:
    """Refuse what a search cannot do."""
    args, given = command.training, command.given
    if args.world_size > 1:
        raise InputError(
            "--tune starts its own processes: run it with python, not torchrun, and use several GPUs with --parallel N"
        )
    if command.several.compare_baseline:
        raise InputError("--tune and --compare_baseline are two commands: search first, then compare with its recipe")
    if args.rdrop_alpha == 0:
        raise InputError("--tune searches an alpha above 0, beside alpha 0: leave out --rdrop_alpha 0")
    if args.push_to_hub:
        raise InputError(
            "--tune trains many models; choose one afterwards: python -m rdrop_trainer.hub push FOLDER USER/NAME"
        )
    if given & {"do_train", "do_eval", "do_predict"} and not (args.do_train and args.do_eval):
        raise InputError("--tune trains and evaluates: give both --do_train and --do_eval, or neither")
    if args.resume_from_checkpoint not in (None, "auto", "none"):
        raise InputError("--resume_from_checkpoint: a search resumes each of its trials by itself")
