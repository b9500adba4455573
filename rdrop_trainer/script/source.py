"""The data of a run: read from the Hub, from a folder of official files, or from files of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from ..errors import InputError
from ..glue.data import load_files, load_task
from ..glue.tasks import Task, get_task
from .arguments import CommandLine
from .checkpoint import labels_of_checkpoint
from .cost import Clock


@dataclass(frozen=True)
class Source:
    """What the data hold.

    Attributes:
        task: what they are for.
        splits: all of them, whole.
        seconds: that reading them took.
    """

    task: Task
    splits: DatasetDict
    seconds: Mapping[str, float]


def load_source(command: CommandLine) -> Source:
    """Read all splits, and find the task they are for.

    Raises:
        InputError: the command names no data, or they cannot be read.
    """
    clock = Clock()
    with clock("load"), command.training.main_process_first(desc="loading the data"):
        task, splits = _load(command)
    return Source(task, splits, clock.seconds)


def splits_of(splits: Iterable[str], kind: str) -> list[str]:
    """The names among `splits` of a kind ("train", "validation", "test"), the main one first."""
    return [split for split in splits if split.split("_")[0] == kind]


def _load(command: CommandLine) -> tuple[Task, DatasetDict]:
    model, data = command.model, command.data
    options: dict[str, Any] = {"text_columns": data.text_columns, "label_column": data.label_column}
    options |= {**data.files, "unlabeled_file": data.unlabeled_file}
    if data.task_name is not None:
        task = get_task(data.task_name)
        return task, load_task(task, data_dir=data.data_dir, cache_dir=model.cache_dir, token=model.token, **options)
    if data.data_dir is not None:
        raise InputError(f"{data.data_dir}: a data_dir needs --task_name, to know which files to read")
    if not data.files:
        raise InputError("which data? Give --task_name, or --train_file and --validation_file.")
    # Without training data, the labels are those of the model that is to be evaluated
    labels = None if data.train_file else labels_of_checkpoint(model)
    splits, task = load_files(**options, labels=labels)
    return task, splits
