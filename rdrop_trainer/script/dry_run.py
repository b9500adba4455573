"""`--dry_run`: all of a run that comes before its first step, the loss of one batch, and what would happen then."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..dropout import dropout_settings
from ..hub.client import check_repo_id


def disable_side_effects(args: TrainingArguments) -> None:
    """Change the arguments so that a trainer made from them creates no folder and no repository, and reports nowhere.

    Raises:
        InputError: the run would push, and the repository's name is none.
    """
    if args.push_to_hub:
        check_repo_id(args.hub_model_id or Path(args.output_dir).absolute().name, with_owner=False)
    args.push_to_hub = False
    args.report_to = []
    args.disable_tqdm = True
    args.output_dir = tempfile.gettempdir()  # a trainer creates its folder at once; this one exists, and stays as it is


def rehearse(trainer: Trainer, checkpoint: str | None, held_out: Mapping[str, Dataset]) -> dict[str, Any]:
    """Start training up to its first step, compute the loss of one batch, and predict a batch of every other split.

    Args:
        trainer: made with arguments that `disable_side_effects` changed.
        checkpoint: the one that training would go on from.
        held_out: the features of the splits that would be evaluated or predicted.

    Returns:
        `training`: steps, the step it begins at, rows per step, epochs, warm-up steps and the loss of the first batch;
        None for a run that does not train. `held_out`: for each split the number of rows that were predicted, and their
        loss (None without labels). `dropout`, `processes`, `device`: the model's dropout settings, and where it ran.

    Raises:
        ValueError, TypeError, OSError, ImportError, RuntimeError: what `Trainer` raises for settings that do not work.
    """
    args, training = trainer.args, None
    if args.do_train:
        beginning = _Beginning(trainer)
        trainer.add_callback(beginning)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except _Enough:
            training = beginning.found
        trainer.remove_callback(beginning)
    trainer.compute_metrics = None  # the scores of one batch say nothing
    seen: dict[str, dict[str, Any]] = {}
    for split, features in held_out.items():
        rows = features.select(range(min(len(features), args.eval_batch_size * args.world_size)))
        loss = trainer.predict(rows, metric_key_prefix="first").metrics.get("first_loss")
        seen[split] = {"rows": len(rows), "loss": loss}
    model: Any = trainer.model
    return {
        "training": training,
        "held_out": seen,
        "dropout": dropout_settings(model.config),
        "processes": args.world_size,
        "device": str(args.device),
    }


class _Enough(Exception):
    """Ends the training before its first step."""


class _Beginning(TrainerCallback):
    """Looks at the first batch when data, model, optimizer and schedule stand, and stops."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.found: dict[str, Any] | None = None

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        model = self.trainer.model_wrapped
        model.train()
        batch = self.trainer._prepare_inputs(next(iter(train_dataloader)))
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            loss = self.trainer.compute_loss(model, batch).item()
        per_step = self.trainer.get_total_train_batch_size(args)
        self.found = {
            "steps": state.max_steps,
            "first_step": state.global_step,
            "rows_per_step": per_step,
            "epochs": state.max_steps * per_step / self.trainer.num_examples(train_dataloader),
            "warmup_steps": args.get_warmup_steps(state.max_steps),
            "loss": loss,
        }
        raise _Enough


def report(found: Mapping[str, Any], next_command: str) -> str:
    """What the run would do, for the terminal.

    Args:
        found: what `rehearse` returned; the `task`'s name, all `settings`, the number of `rows` in each split, and
            `max_length`, the longest input in tokens.
        next_command: the run itself.
    """
    settings, training = found["settings"], found["training"]
    alpha = settings["rdrop_alpha"]
    how = f"R-Drop, alpha {alpha:g} ({settings['rdrop_reduction']})" if alpha else "plain fine-tuning (alpha 0)"
    lines = [f"Dry run of {found['task']}: {how}, seed {settings['seed']}, {settings['model_name_or_path']}"]
    lines.append("rows      " + ", ".join(f"{name} {count:,}" for name, count in found["rows"].items()))
    if training:
        batch, accumulated = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
        lines.append(
            f"training  {training['steps']:,} steps ({training['epochs']:.1f} epochs) of {training['rows_per_step']} "
            f"rows (batch {batch} x accumulated {accumulated} x devices {found['processes']}), on {found['device']}"
        )
        if training["first_step"]:
            lines.append(f"resumes   at step {training['first_step']:,}")
        lines.append(
            f"rate      {settings['learning_rate']:g}, {settings['lr_scheduler_type']}, warm-up "
            f"{training['warmup_steps']:,} steps, weight decay {settings['weight_decay']:g}"
        )
    lines.append(f"inputs    at most {found['max_length']} tokens")
    dropout = ", ".join(f"{key} {p:g}" for key, p in found["dropout"].items())
    lines.append(f"dropout   {dropout or 'no setting for it'}")
    if training:
        lines.append(f"loss      {training['loss']:.4f} (train, the first batch)")
    for split, first in found["held_out"].items():
        value = "no labels" if first["loss"] is None else f"{first['loss']:.4f}"
        lines.append(f"loss      {value} ({split}, the first {first['rows']} rows)")
    lines.append(f"results   would go to {settings['output_dir']}" + _deleting(settings))
    lines.append(f"hub       {_destination(settings)}")
    lines.append("written   nothing")
    lines.append(f"next      {next_command}")
    return "\n".join(lines)


def _deleting(settings: Mapping[str, Any]) -> str:
    there = settings["overwrite_output_dir"] and Path(settings["output_dir"]).exists()
    return ", and what an earlier run left there would be deleted" if there else ""


def _destination(settings: Mapping[str, Any]) -> str:
    if not settings["push_to_hub"]:
        return "nothing would be pushed"
    name = settings["hub_model_id"] or Path(settings["output_dir"]).name
    return f"would be pushed to {name}" + ("" if "/" in name else ", in your own namespace")
