"""What the flags and the disk alone rule out: refused before the imports of a training, which take seconds."""

from __future__ import annotations

import os
from collections.abc import Collection

from ..errors import InputError
from ..glue.tasks import get_task
from .adapter import check_adapter_flags
from .command_line import Flags

# Flags that only some runs read: which, and what else to give
_ONLY_FOR = {
    "arms": "--compare_baseline",
    "seeds": "--compare_baseline",
    "tune_metric": "--tune",
    "parallel": "--compare_baseline or --tune",
    "engine": "--compare_baseline or --tune",
    "max_unlabeled_samples": "--unlabeled_file",
    "rdrop_unlabeled_ratio": "--unlabeled_file",
}


def check_flags(flags: Flags) -> None:
    """Refuse what no data and no model can mend.

    Raises:
        InputError: no model, no data, a file that is not there, or a flag that would have no effect.
    """
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
    several_runs = several.compare_baseline or several.tune is not None
    if several.compare_baseline and several.tune is not None:
        raise InputError("--tune and --compare_baseline are two commands: search first, then compare with its recipe")
    idle = set() if several.compare_baseline else {"arms", "seeds"}
    idle |= {"tune_metric"} if several.tune is None else set()
    idle |= set() if several_runs else {"parallel", "engine"}
    idle |= {"max_unlabeled_samples", "rdrop_unlabeled_ratio"} if data.unlabeled_file is None else set()
    if idle := idle & given.keys():
        name = min(idle)
        raise InputError(f"--{name} has no effect without {_ONLY_FOR[name]}: add that, or leave this out")
    if several.engine == "local":  # elsewhere each run looks for itself
        check_adapter_flags(flags.adapter, given, flags.values["use_cpu"])
    if several.tune_metric is not None and "metric_for_best_model" in given:
        raise InputError(
            "--tune_metric chooses the checkpoints of a trial too: leave out --metric_for_best_model, or give that "
            "alone and search by the first score of --metric"
        )
    head = data.head
    if data.task_type == "seq2seq" and (named := {"text_columns", "label_column"} & given.keys()):
        raise InputError(f"{_listed(named)}: the columns of pairs are --source_column and --target_column")
    idle = set() if head == "question" else {"doc_stride", "max_answer_length", "null_score_diff_threshold"}
    idle |= set() if head == "seq2seq" else {"max_target_length", "num_beams"}
    idle |= {"label_column", "id_column"} if data.task_type in ("qa", "lm") else set()
    idle |= {"text_columns"} if data.task_type == "qa" else set()
    idle |= {"pad_to_max_length"} if data.task_type == "lm" else {"mlm_probability"}
    idle |= set() if data.task_type == "seq2seq" else {"source_column", "target_column"}
    if idle := idle & given.keys():
        what = data.task_name or ("a classification" if head == "sequence" else f"--task_type {data.task_type}")
        raise InputError(f"{_listed(idle)}: {what} does not use it; leave it out")
    if flags.values["load_best_model_at_end"] and flags.values["eval_strategy"] == "no":
        raise InputError(
            "--load_best_model_at_end chooses by the scores during training: add --eval_strategy epoch and "
            "--save_strategy epoch"
        )


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))
