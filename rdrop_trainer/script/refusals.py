"""What the flags and the disk alone rule out: refused before the imports of a training, which take seconds."""

from __future__ import annotations

import os
from collections.abc import Collection

from ..errors import InputError
from ..glue.tasks import get_task
from .adapter import check_adapter_flags
from .command_line import Flags


def check_flags(flags: Flags) -> None:
    """Refuse what no data and no model can mend."""
    model, data, several, given = flags.model, flags.data, flags.several, flags.given
    if data.demo:
        if others := given.keys() - {"demo", "output_dir", "use_cpu"}:
            raise InputError(f"--demo takes no other flags than --output_dir and --use_cpu, got {_listed(others)}")
        return
    if model.model_name_or_path is None:
        raise InputError("which model? Give --model_name_or_path (or --demo for a run that needs nothing).")
    task = None if data.task_name is None else get_task(data.task_name)
    if task is not None and "task_type" in given:
        raise InputError(f"--task_type {data.task_type}: is for your own files; {task.name} is of its own type")
    if data.data_dir is not None and task is None:
        raise InputError(f"{data.data_dir}: a data_dir needs --task_name, to know which files to read")
    if task is None and not data.files:
        raise InputError("which data? Give --task_name, or --train_file and --validation_file.")
    files = data.files | ({} if data.unlabeled_file is None else {"unlabeled_file": data.unlabeled_file})
    for flag, path in files.items():
        if not os.path.lexists(path):  # a loop of links is there, and cannot be read
            raise InputError(f"--{flag} {path}: no such file")
    if several.compare_baseline and several.tune is not None:
        raise InputError("--tune and --compare_baseline are two commands: search first, then compare with its recipe")
    _check_effect(flags)
    if flags.values["load_best_model_at_end"] and flags.values["eval_strategy"] == "no":
        raise InputError(
            "--load_best_model_at_end chooses by the scores during training: add --eval_strategy epoch and "
            "--save_strategy epoch"
        )


def _check_effect(flags: Flags) -> None:
    """Refuse flags that this command does not read."""
    data, several, given = flags.data, flags.several, flags.given
    several_runs = several.compare_baseline or several.tune is not None
    # Flags that only some runs read: whether this one does, and what else to give
    only_for = {
        "arms": (several.compare_baseline, "--compare_baseline"),
        "seeds": (several.compare_baseline, "--compare_baseline"),
        "tune_metric": (several.tune is not None, "--tune"),
        "parallel": (several_runs, "--compare_baseline or --tune"),
        "engine": (several_runs, "--compare_baseline or --tune"),
        "max_unlabeled_samples": (data.unlabeled_file is not None, "--unlabeled_file"),
        "rdrop_unlabeled_ratio": (data.unlabeled_file is not None, "--unlabeled_file"),
    }
    for name in sorted(only_for.keys() & given.keys()):
        is_read, wanted = only_for[name]
        if not is_read:
            raise InputError(f"--{name} has no effect without {wanted}: add that, or leave this out")
    if several.engine == "local":  # elsewhere each run looks for itself
        check_adapter_flags(flags.adapter, given)
    if several.tune_metric is not None and "metric_for_best_model" in given:
        raise InputError(
            "--tune_metric chooses the checkpoints of a trial too: leave out --metric_for_best_model, or give that "
            "alone and search by the first score of --metric"
        )
    if data.task_type == "seq2seq" and (named := {"text_columns", "label_column"} & given.keys()):
        raise InputError(f"{_listed(named)}: the columns of pairs are --source_column and --target_column")
    is_used = {
        "doc_stride max_answer_length null_score_diff_threshold": data.head == "question",
        "max_target_length num_beams source_lang target_lang source_prefix": data.head == "seq2seq",
        "source_column target_column": data.task_type == "seq2seq",
        "label_column id_column": data.task_type not in ("qa", "lm"),
        "text_columns": data.task_type != "qa",
        "pad_to_max_length": data.task_type != "lm",
        "mlm_probability": data.task_type == "lm",
    }
    idle = {name for names, used in is_used.items() if not used for name in names.split()}
    if idle := idle & given.keys():
        kind = "a classification" if data.head == "sequence" else f"--task_type {data.task_type}"
        raise InputError(f"{_listed(idle)}: {data.task_name or kind} does not use it; leave it out")


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))
