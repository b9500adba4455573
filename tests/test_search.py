"""Hyper-parameter search: what a trial sets is what trains, and a search that was interrupted goes on."""

import math
import os
import sys
from types import SimpleNamespace

import optuna
import pytest
from accelerate.state import GradientState
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rdrop_trainer import RDropMixin, RDropTrainer, RDropTrainingArguments, active_dropout, default_hp_space
from support import tiny
from support.device import USE_CPU

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Seen(TrainerCallback):
    """What every training began with, and what it logged."""

    def __init__(self):
        self.runs = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        places = {place.p for place in active_dropout(model)}
        config = model.config.hidden_dropout_prob
        self.runs.append(
            SimpleNamespace(alpha=args.rdrop_alpha, dropout=args.rdrop_dropout, places=places, config=config, logs=[])
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.runs[-1].logs.append(logs)


def searcher(folder, cls=RDropTrainer, **arguments):
    metrics = arguments.pop("compute_metrics", None)
    args = {"max_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": USE_CPU, "disable_tqdm": True}
    args |= {"save_strategy": "no", **arguments}
    seen = Seen()
    trainer = cls(
        args=RDropTrainingArguments(str(folder), **args),
        model_init=lambda: tiny.bert(),
        train_dataset=tiny.dataset(),
        eval_dataset=tiny.dataset(rows=4),
        processing_class=tiny.tokenizer(),
        compute_metrics=metrics,
        callbacks=[seen],
    )
    return trainer, seen


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trials_of(folder):
    return optuna.load_study(study_name="rdrop", storage=f"sqlite:///{folder}/trials.db").trials


def test_the_default_space():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [default_hp_space(study.ask()) for _ in range(50)]
    log = math.log
    for name, low, high, scale in (
        ("rdrop_alpha", 0.5, 64, log),
        ("rdrop_dropout", 0.1, 0.3, float),
        ("learning_rate", 1e-5, 1e-4, log),
    ):
        values = [values.pop(name) for values in drawn]
        assert low <= min(values) and max(values) <= high
        places = sorted((scale(value) - scale(low)) / (scale(high) - scale(low)) for value in values)
        assert places[0] < 0.1 and 0.3 < places[25] < 0.7 and places[-1] > 0.9
    assert not any(drawn)


def test_a_trial_trains_with_what_it_drew(tmp_path):
    trainer, seen = searcher(tmp_path)
    trainer.args.rdrop_alpha = 4  # an int, to which `Trainer` would cast
    best = trainer.hyperparameter_search(n_trials=3)
    trials = trials_of(tmp_path)
    assert len({trial.params["rdrop_dropout"] for trial in trials}) == 3
    for trial, run in zip(trials, seen.runs, strict=True):
        assert run.alpha == trial.params["rdrop_alpha"] != int(run.alpha)
        assert run.places == {run.dropout} == {trial.params["rdrop_dropout"]} and run.config == run.dropout
        first = next(logs for logs in run.logs if "divergence" in logs)
        assert first["divergence"] > 0
        assert math.isclose(first["loss"], first["task_loss"] + run.alpha / 2 * first["divergence"], rel_tol=1e-4)
    assert best.run_id == str(min(trials, key=lambda trial: trial.value).number)  # of the evaluation loss
    assert best.hyperparameters.keys() == {"rdrop_alpha", "rdrop_dropout", "learning_rate"}


def test_alpha_0_may_be_in_the_space(tmp_path):
    """And is then plain training, whatever alpha the trial before it had."""
    alphas = [4.0, 0.0, 4.0]
    trainer, seen = searcher(tmp_path / "search")
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"rdrop_alpha": trial.suggest_categorical("rdrop_alpha", [0.0, 4.0])},
        n_trials=3,
        storage=None,
        sampler=ListSampler(alphas),
    )
    assert [run.alpha for run in seen.runs] == alphas
    first, plain, again = [[logs for logs in run.logs if "loss" in logs] for run in seen.runs]
    assert not any("divergence" in logs for logs in plain) and all("divergence" in logs for logs in first)
    assert [{k: logs[k] for k in ("loss", "divergence")} for logs in first] == [
        {k: logs[k] for k in ("loss", "divergence")} for logs in again
    ]
    stock, log = searcher(tmp_path / "stock", cls=Trainer)
    stock.train()
    assert [logs["loss"] for logs in plain] == [logs["loss"] for logs in log.runs[0].logs if "loss" in logs]
    assert not (tmp_path / "search" / "trials.db").exists()  # storage=None: in memory


class ListSampler(optuna.samplers.RandomSampler):
    """Draws one parameter from a list, trial by trial."""

    def __init__(self, values):
        super().__init__(seed=0)
        self.values = values

    def sample_independent(self, study, trial, name, distribution):
        return self.values[trial.number]


def test_every_trial_is_checked_for_noise(tmp_path):
    trainer, _ = searcher(tmp_path)
    with pytest.raises(ValueError, match="no active dropout"):
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"rdrop_dropout": trial.suggest_categorical("rdrop_dropout", [0.1, 0.0])},
            n_trials=2,
            storage=None,
            sampler=ListSampler([0.1, 0.0]),
        )


def test_the_same_call_goes_on(tmp_path):
    trainer, seen = searcher(tmp_path)
    trainer.hyperparameter_search(n_trials=2)
    trainer, seen = searcher(tmp_path)
    best = trainer.hyperparameter_search(n_trials=3)
    assert len(seen.runs) == 1 and len(trials_of(tmp_path)) == 3
    assert (
        len({trial.params["rdrop_dropout"] for trial in trials_of(tmp_path)}) == 3
    )  # the sampler does not begin again
    trainer, seen = searcher(tmp_path)
    assert trainer.hyperparameter_search(n_trials=3) == best and not seen.runs
    # Optuna would go on without a word
    with pytest.raises(ValueError, match="begun with direction minimize, not maximize: choose another study_name"):
        trainer.hyperparameter_search(n_trials=4, direction="maximize")
    trainer.hyperparameter_search(n_trials=1, direction="maximize", study_name="other")


def test_a_trial_that_was_cut_off_begins_anew(tmp_path):
    study = optuna.create_study(study_name="rdrop", storage=f"sqlite:///{tmp_path}/trials.db")
    values = default_hp_space(study.ask())
    trainer, seen = searcher(tmp_path)
    trainer.hyperparameter_search(n_trials=2)
    cut_off, again, other = trials_of(tmp_path)
    assert [trial.state.name for trial in (cut_off, again, other)] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert again.params == values != other.params and len(seen.runs) == 2
    assert (seen.runs[0].alpha, seen.runs[0].dropout) == (values["rdrop_alpha"], values["rdrop_dropout"])


@pytest.mark.parametrize(
    "arguments, call, direction, warned",
    [
        ({}, {}, "minimize", False),
        ({"compute_metrics": accuracy}, {}, "minimize", True),
        ({"compute_metrics": accuracy}, {"direction": "minimize"}, "minimize", False),
        ({"compute_metrics": accuracy}, {"direction": "maximize"}, "maximize", False),
        ({"compute_metrics": accuracy, "metric_for_best_model": "accuracy"}, {}, "maximize", False),
        ({"metric_for_best_model": "accuracy"}, {"compute_objective": lambda m: m["eval_loss"]}, "minimize", True),
    ],
)
def test_the_direction(tmp_path, monkeypatch, arguments, call, direction, warned):
    said, studies, create = [], [], optuna.create_study
    monkeypatch.setattr("rdrop_trainer.search.logger.warning", said.append)
    monkeypatch.setattr(optuna, "create_study", lambda **kwargs: studies.append(create(**kwargs)) or studies[-1])
    trainer, _ = searcher(tmp_path, max_steps=1, **arguments)
    trainer.hyperparameter_search(n_trials=1, storage=None, **call)
    assert {study.direction.name.lower() for study in studies} == {direction}
    assert any("direction='maximize'" in text for text in said) == warned


def test_a_store_of_ones_own_is_left_alone(tmp_path):
    """Other searches may be at work on it, and whether it is to be gone on with is for the caller to say."""
    store = f"sqlite:///{tmp_path}/own.db"
    study = optuna.create_study(study_name="mine", storage=store)
    running = study.ask()
    trainer, seen = searcher(tmp_path)
    trainer.hyperparameter_search(n_trials=1, storage=store, study_name="mine", load_if_exists=True)
    study = optuna.load_study(study_name="mine", storage=store)
    assert study.trials[running.number].state.name == "RUNNING" and len(seen.runs) == 1
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        trainer.hyperparameter_search(n_trials=1, storage=store, study_name="mine")
    assert not (tmp_path / "trials.db").exists()


def test_without_model_init(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "run")
    with pytest.raises(RuntimeError, match="model_init"):
        trainer.hyperparameter_search(n_trials=1)
    assert not (tmp_path / "run" / "trials.db").exists()


def test_dropout_of_the_arguments(tmp_path):
    for alpha in (0.0, 4.0):
        model = tiny.bert()
        trainer = tiny.trainer(model, tiny.dataset(), tmp_path, rdrop_dropout=0.25, rdrop_alpha=alpha, max_steps=1)
        assert {place.p for place in active_dropout(model)} == {0.25} and model.config.hidden_dropout_prob == 0.25
        trainer.args.rdrop_dropout = 0.5
        trainer.train()
        assert {place.p for place in active_dropout(model)} == {0.5}
    with pytest.raises(ValueError, match="no dropout module"):
        tiny.trainer(nn.Linear(2, 2), tiny.dataset(), tmp_path, rdrop_dropout=0.1)


def test_arguments_of_other_trainers_can_be_searched(tmp_path):
    class Mixed(RDropMixin, Trainer):
        pass

    args = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=USE_CPU, disable_tqdm=True, save_strategy="no"
    )
    seen = Seen()
    trainer = Mixed(
        args=args,
        model_init=lambda: tiny.bert(),
        train_dataset=tiny.dataset(),
        eval_dataset=tiny.dataset(rows=4),
        processing_class=tiny.tokenizer(),
        callbacks=[seen],
    )
    assert {place.p for place in active_dropout(trainer.model)} == {0.1}
    trainer.hyperparameter_search(n_trials=1)
    (trial,) = trials_of(tmp_path)
    assert (seen.runs[0].alpha, seen.runs[0].dropout) == (trial.params["rdrop_alpha"], trial.params["rdrop_dropout"])
    assert seen.runs[0].places == {trial.params["rdrop_dropout"]}


def trained_with(trainer):
    (dropout,) = {place.p for place in active_dropout(trainer.model)}
    divergence = next(logs["divergence"] for logs in trainer.state.log_history if "divergence" in logs)
    return {"alpha": trainer.args.rdrop_alpha, "dropout": dropout, "divergence": divergence}


@pytest.mark.interop
def test_ray_tune(tmp_path, monkeypatch):
    """Two trials in processes of their own: the trainer travels, and each trains with what it drew."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for `tiny` in the processes of the trials
    GradientState._reset_state()  # trainings that stopped in an epoch leave data loaders in it, which Ray cannot pickle
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        trainer, _ = searcher(tmp_path / "run")
        trainer.compute_metrics = lambda prediction: trained_with(trainer)
        best = trainer.hyperparameter_search(
            backend="ray", n_trials=2, direction="maximize", storage_path=str(tmp_path / "ray"), verbose=0
        )
        results = [trial.last_result for trial in best.run_summary.trials]
    finally:
        ray.shutdown()
    assert len(results) == 2
    for result in results:
        assert result["config"].keys() == {"rdrop_alpha", "rdrop_dropout", "learning_rate"}
        assert result["eval_alpha"] == pytest.approx(result["config"]["rdrop_alpha"])
        assert result["eval_dropout"] == pytest.approx(result["config"]["rdrop_dropout"])
        assert result["eval_divergence"] > 0
    assert best.objective == max(result["objective"] for result in results)
