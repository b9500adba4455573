"""What one run does: its command line and its data, with all that was not given filled in."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..errors import InputError
from ..glue.data import load_task
from ..glue.metrics import with_metrics
from ..glue.own_files import load_files
from ..glue.tag_scores import OUTSIDE, are_entities
from ..glue.task import Task
from ..glue.tasks import get_task
from ..report.quantities import lower_is_better
from ..run_folder import contents_of, settings_of
from ..training_args import RDropTrainingArguments
from .adapter import AdapterArguments
from .arguments import DataArguments, ModelArguments
from .command_line import CommandLine
from .model_labels import labels_of_checkpoint, language_model_head


@dataclass(frozen=True)
class RunConfig:
    """One run, decided: nothing in it changes once `resolve` has made it.

    Attributes:
        task: what is learned.
        model, adapter, data, training: the settings. transformers changes the arguments of a trainer, so a trainer gets
            a copy.
        given: names of the settings that the user gave.
    """

    task: Task
    model: ModelArguments
    adapter: AdapterArguments
    data: DataArguments
    training: RDropTrainingArguments
    given: frozenset[str]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.training.output_dir)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings as plain values, and what is in the files that they name; tokens left out."""
        settings = settings_of(self.model, self.adapter, self.data, self.training)
        return settings | contents_of(settings)

    @property
    def columns(self) -> dict[str, list[str]] | None:
        """Which columns of the user's own files are read as "text" (or "source"), "label" (or "target") and "id"; None
        for a named task, and where the form of the file says it.
        """
        if self.task.suite != "custom" or self.task.head == "question":
            return None
        if self.task.is_language_model:
            return {"text": list(self.task.sources("text"))} if self.task.text_sources else None
        ids = [] if self.task.id_column is None else [self.task.id_column]
        texts = [name for column in self.task.text_columns for name in self.task.sources(column)[:1]]
        text, label = ("source", "target") if self.task.head == "seq2seq" else ("text", "label")
        return {text: texts, label: list(self.task.label_sources[:1]), "id": ids}

    @property
    def what_runs(self) -> dict[str, Any]:
        """What must stay the same when an interrupted run goes on: the settings, and how many processes train."""
        return {**self.settings, "processes": self.training.world_size}


def resolve(command: CommandLine) -> tuple[RunConfig, DatasetDict]:
    """The run, and all splits of its data, whole. Refuses what this task or these data cannot do."""
    with command.training.main_process_first(desc="loading the data"):
        task, splits = _load(command)
    given, data = command.given, command.data
    training = with_values(command.training, **_phases(command, splits))
    _check(task, splits, command, training)
    if "output_dir" not in given:
        output_dir = f"runs/{task.name}-alpha{training.rdrop_alpha:g}-seed{training.seed}"
        training = with_values(training, output_dir=output_dir)
    if training.load_best_model_at_end or training.save_strategy == "best" or data.early_stopping_patience is not None:
        if "metric_for_best_model" not in given and task.headline:
            training = with_values(training, metric_for_best_model=task.headline[0])
    if training.metric_for_best_model is not None:
        _check_metric(task, training, splits, data.max_eval_samples)
        if "greater_is_better" not in given:
            training = with_values(training, greater_is_better=not lower_is_better(training.metric_for_best_model))
    if data.null_score_diff_threshold is None and task.unanswerable:
        data = replace(data, null_score_diff_threshold=0.0)
    data = replace(
        data,
        max_seq_length=data.max_seq_length or task.max_length,
        max_target_length=data.max_target_length or task.max_target_length,
    )
    return RunConfig(task, command.model, command.adapter, data, training, frozenset(given)), splits


def with_values(args: RDropTrainingArguments, **values: Any) -> RDropTrainingArguments:
    """A copy of training arguments with other values; `dataclasses.replace` would set up devices once more."""
    changed = copy.copy(args)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def splits_of(splits: Collection[str], kind: str) -> list[str]:
    """The names among `splits` of a kind ("train", "validation", "test"), the main one first."""
    return [split for split in splits if split.split("_")[0] == kind]


def _load(command: CommandLine) -> tuple[Task, DatasetDict]:
    model, data = command.model, command.data
    options: dict[str, Any] = {"text_columns": data.text_columns, "label_column": data.label_column}
    options |= {**data.files, "unlabeled_file": data.unlabeled_file}
    if data.task_name is not None:
        if data.id_column is not None:
            raise InputError(f"--id_column {data.id_column}: is for your own files; {data.task_name} has its own ids")
        task = with_metrics(get_task(data.task_name), data.metric or ())
        return task, load_task(task, data_dir=data.data_dir, cache_dir=model.cache_dir, token=model.token, **options)
    # Without training data, the labels are those of the model that is to be evaluated
    labels = None if data.train_file else labels_of_checkpoint(model, data.head)
    if data.head == "seq2seq":
        options |= {"text_columns": data.source_column and [data.source_column], "label_column": data.target_column}
    options |= {"task_type": data.task_type, "id_column": data.id_column, "labels": labels, "metrics": data.metric}
    if data.task_type == "lm":
        options["head"] = language_model_head(model)
    splits, task = load_files(**options)
    return task, splits


def _phases(command: CommandLine, splits: Collection[str]) -> Mapping[str, bool]:
    """Whether to train, evaluate and predict."""
    args = command.training
    do_train, do_eval, do_predict = args.do_train, args.do_eval, args.do_predict
    # Not by their values: an evaluation strategy sets do_eval
    if not command.given.keys() & {"do_train", "do_eval", "do_predict"}:
        do_train, do_eval = "train" in splits, bool(splits_of(splits, "validation"))
        do_predict = not (do_train or do_eval)
    return {"do_train": do_train, "do_eval": do_eval or args.eval_strategy != "no", "do_predict": do_predict}


def _check(task: Task, splits: Collection[str], command: CommandLine, args: RDropTrainingArguments) -> None:
    """Refuse what the data or the task cannot do."""
    data = command.data
    wanted = {"train": ("do_train", args.do_train), "test": ("do_predict", args.do_predict)}
    by_stopping = "early_stopping_patience" if data.early_stopping_patience is not None else "eval_strategy"
    wanted["validation"] = ("do_eval" if "do_eval" in command.given else by_stopping, args.do_eval)
    for kind, (flag, needed) in wanted.items():
        if needed and not splits_of(splits, kind):
            raise InputError(
                f"{task.name}: --{flag} needs {kind} rows, but the data holds only: {', '.join(splits)}. "
                + (f"Give --{kind}_file." if data.data_dir is None else f"Is the file in {data.data_dir}?")
            )
    if data.measure != "none" and not args.do_eval:
        raise InputError(f"--measure {data.measure} needs rows to predict whose answers are known: add --do_eval")
    if data.measure == "quick" and not args.do_train:
        raise InputError("--measure quick is a share of the training, and this run does not train: use --measure full")
    if "mlm_probability" in command.given and task.head == "causal":
        raise InputError(
            f"--mlm_probability: {command.model.model_name_or_path} is a causal language model, which needs no masks; "
            "leave it out"
        )
    for name in ("early_stopping_patience", "max_seconds"):
        if getattr(data, name) is not None and not args.do_train:
            raise InputError(f"--{name} stops a training, but this run does not train")
    if args.push_to_hub and not args.do_train:
        raise InputError(
            "--push_to_hub: this run trains nothing to push; add --do_train, or push a folder: "
            "python -m rdrop_trainer.hub push FOLDER USER/NAME"
        )
    if data.unlabeled_file is not None and (task.is_regression or not args.do_train):
        why = f"{task.name} is a regression" if task.is_regression else "this run does not train"
        raise InputError(f"{data.unlabeled_file}: unlabeled rows are for training a classifier, but {why}")


def _check_metric(task: Task, args: RDropTrainingArguments, splits: DatasetDict, max_rows: int | None) -> None:
    """Refuse to choose the best model by a score that the task does not have, or that its validation rows lack."""
    name = str(args.metric_for_best_model).removeprefix("eval_")
    known = [*task.metrics, "loss"]
    validation = next(iter(splits_of(splits, "validation")), None)
    labels = task.labels or ()
    if task.head == "tokens" and are_entities(labels):
        rows = splits[validation]["labels"][:max_rows] if validation else [range(len(labels))]
        tags = {labels[tag] for row in rows for tag in row}
        known += sorted({f"f1_{tag[2:]}" for tag in tags if tag != OUTSIDE})
    if name not in known:
        raise InputError(f"--metric_for_best_model {name}: {task.name} has no such score; it has {', '.join(known)}")
