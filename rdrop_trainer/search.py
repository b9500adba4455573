"""Hyper-parameter search: the space to search by default, and Optuna studies that outlive an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS, default_hp_search_backend
from transformers.trainer_utils import BestRun, HPSearchBackend
from transformers.utils import logging

from ._mixin_base import MixinBase
from .errors import InputError

if TYPE_CHECKING:
    import optuna

logger = logging.get_logger(__name__)

# Setting -> lowest value, highest value, whether the scale is logarithmic
SPACE: dict[str, tuple[float, float, bool]] = {
    "rdrop_alpha": (0.5, 64.0, True),
    "rdrop_dropout": (0.1, 0.3, False),
    "learning_rate": (1e-5, 1e-4, True),
}
STORE = "trials.db"
STUDY = "rdrop"


def default_hp_space(trial: optuna.Trial | None) -> dict[str, Any]:
    """The three settings that matter most to R-Drop, in the ranges in which good values were found.

    * `rdrop_alpha` in [0.5, 64], logarithmic: the paper took 0.7 (summarisation), 1 (language models) and 5
      (translation), bojone/r-drop 4; the best value of a task is known up to a factor. Codes that sum the divergence
      over the batch weigh it more: 0.5 in the authors' BERT code is 0.5 B in the mean, 8 for a batch of 16.
    * `rdrop_dropout` in [0.1, 0.3]: from what most encoders are pretrained with to what the paper's translation and
      bojone/r-drop used. With less, the passes hardly differ; with more, fine-tuning suffers.
    * `learning_rate` in [1e-5, 1e-4], logarithmic: the grids of BERT (2e-5 to 5e-5) and RoBERTa (1e-5 to 3e-5), and
      higher rates, which suit smaller models. Training from scratch needs still higher ones: give a space of your own.

    Args:
        trial: a trial of Optuna, or None for Ray Tune, which draws the values itself.

    Returns:
        Values by the name of their setting; for Ray Tune, distributions.
    """
    if trial is not None:
        return suggest(trial, SPACE)
    from ray import tune

    return {name: (tune.loguniform if log else tune.uniform)(low, high) for name, (low, high, log) in SPACE.items()}


def suggest(trial: optuna.Trial, space: Mapping[str, tuple[float, float, bool]]) -> dict[str, float]:
    """Draw the values of a trial from a space that is written like `SPACE`."""
    return {name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in space.items()}


def study_in(folder: Path) -> dict[str, Any]:
    """The arguments of `optuna.create_study` for the study of a folder, which is made if it is missing."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return {"storage": f"sqlite:///{folder / STORE}", "study_name": STUDY, "load_if_exists": True}


def open_study(direction: str | list[str], **arguments: Any) -> optuna.Study:
    """Begin a study, or go on with one.

    Args:
        direction: "minimize" or "maximize", or a list of them for several objectives.
        **arguments: those of `optuna.create_study`, such as `study_in` gives.
    """
    import optuna

    wanted = [direction] if isinstance(direction, str) else list(direction)
    study = optuna.create_study(directions=wanted, **arguments)
    before = [found.name.lower() for found in study.directions]
    if before != wanted:
        raise InputError(
            f"The search {study.study_name!r} that is to go on was begun with direction {', '.join(before)}, not "
            f"{', '.join(wanted)}: choose another study_name or output_dir."
        )
    return study


def sampler_for(study: optuna.Study, seed: int, **options: Any) -> optuna.samplers.TPESampler:
    """A seeded TPE sampler. The seed alone would draw the values of the study's first trials again."""
    import optuna

    return optuna.samplers.TPESampler(seed=seed + len(study.get_trials(deepcopy=False)), **options)


def cut_off(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that an interrupted search left unfinished. No other search may be running on the study.

    Optuna's own heartbeat would tell them from trials that run, but only after a grace period without one: the same
    command, given again at once, would not find them.
    """
    import optuna

    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))


def begin_anew(study: optuna.Study) -> None:
    """Count the trials that were cut off as failed, and queue their values, to be tried before new ones are drawn."""
    import optuna

    for trial in cut_off(study):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
        logger.warning(f"Trial {trial.number} was cut off: it begins anew with the same values.")


class SearchMixin(MixinBase):
    """The part of `RDropMixin` that searches hyper-parameters."""

    def hyperparameter_search(
        self,
        hp_space: Callable[[optuna.Trial], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[optuna.Trial], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun] | None:
        """`Trainer.hyperparameter_search`, by default over alpha, dropout and learning rate.

        With Optuna the trials are kept in `<output_dir>/trials.db`, and the same call goes on where an earlier one was
        interrupted: `n_trials` counts its finished trials too, so a search that is complete only returns its best. A
        trial that was cut off, as by a kill or a power failure, begins anew under a new number, with the same values;
        one that failed, or that Ctrl-C stopped, is not counted and not repeated. That store is for one search at a
        time; for several at once, or another sampler, give Optuna's own `storage`, `study_name`, `load_if_exists` and
        `sampler` (`storage=None`: in memory, as `Trainer` does it). The default sampler is TPE, seeded with
        `args.seed`. The space must stay the same between the calls; for another, use another `output_dir` or
        `study_name`.

        The trainer needs a `model_init`. Afterwards `args` have the values of the last trial, as with `Trainer`.

        Args:
            hp_space: values of a trial by the name of an argument. Default: `default_hp_space` with Optuna and Ray
                Tune; with W&B, `Trainer`'s, which knows no R-Drop.
            compute_objective: what to optimise, from the metrics of an evaluation. Default: the evaluation loss
                without `compute_metrics`, the sum of the metrics with it.
            n_trials: how many trials the search has in the end.
            direction: "minimize" or "maximize", or a list of them for several objectives. Default: "maximize" for the
                metrics of a trainer whose `args.greater_is_better` is true, as `metric_for_best_model="accuracy"` sets
                it; else "minimize", as with `Trainer`, with a warning where the objective is not the evaluation loss.
            backend: "optuna", "ray" or "wandb". Default: the first that is installed.
            hp_name: the name of a trial's folder in `output_dir`.
            **kwargs: those of `optuna.create_study`, of `optuna.Study.optimize`, or of `ray.tune.run`.

        Returns:
            The best trial; a list of the best for several objectives; None on processes other than the first.

        Raises:
            ValueError: the store holds a search in another direction.
            RuntimeError: `Trainer`'s, for a backend that is not installed, or no `model_init`.
        """
        backend = HPSearchBackend(backend or default_hp_search_backend())
        ALL_HYPERPARAMETER_SEARCH_BACKENDS[backend]().ensure_available()
        if hp_space is None and backend in (HPSearchBackend.OPTUNA, HPSearchBackend.RAY):
            hp_space = default_hp_space
        if direction is None:
            direction = self._default_direction(compute_objective)
        if backend == HPSearchBackend.OPTUNA and self.model_init is not None:
            kwargs.setdefault("catch", (FloatingPointError,))  # too high a learning rate is a finding
            n_trials, kwargs = self._go_on(n_trials, direction, kwargs)
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
        )

    def _default_direction(self, compute_objective: Callable | None) -> str:
        if compute_objective is None and self.compute_metrics is None:
            return "minimize"
        if compute_objective is None and self.args.greater_is_better:
            return "maximize"
        what = "the sum of the metrics" if compute_objective is None else "what compute_objective returns"
        logger.warning(
            f"hyperparameter_search minimizes {what}, as Trainer does by default: for accuracies and other "
            "scores that should be large, pass direction='maximize'."
        )
        return "minimize"

    def _go_on(
        self, n_trials: int, direction: str | list[str], kwargs: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """How many trials are still to do, and the arguments with those of the study filled in; on every process."""
        own_store = "storage" not in kwargs
        kwargs = {**(study_in(Path(self.args.output_dir)) if own_store else {}), **kwargs}
        if self.args.process_index == 0:  # the only one that has the study
            import optuna
            from optuna.trial import TrialState

            # `Trainer` opens it again, so also a study in memory must be one that can be found
            storage = kwargs["storage"] or optuna.storages.InMemoryStorage()
            named = {name: kwargs[name] for name in ("study_name", "load_if_exists") if name in kwargs}
            study = open_study(direction, storage=storage, **named)
            kwargs |= {"storage": storage, "study_name": study.study_name, "load_if_exists": True}
            kwargs.setdefault("sampler", sampler_for(study, self.args.seed))
            n_trials -= len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
            n_trials = max(0, n_trials)
            if own_store:
                begin_anew(study)
        if self.args.world_size > 1:
            shared = [n_trials]
            torch.distributed.broadcast_object_list(shared, src=0)
            (n_trials,) = shared
        return n_trials, kwargs
