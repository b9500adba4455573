"""`--dry_run`: all of a run that comes before its first step, the loss of one batch, and what would happen then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..dropout import dropout_settings
from .prepare import Prepared, wrong_settings_as_input_errors
from .resolve import RunConfig
from .summary import same_command


def dry_run(config: RunConfig, prepared: Prepared, checkpoint: str | None) -> dict[str, Any]:
    """Start training up to its first step, compute the loss of one batch, and predict a batch of every other split.

    Args:
        config: the run.
        prepared: for a dry run, so that its trainer writes nothing.
        checkpoint: the one that training would go on from.

    Returns:
        `task`, `settings`, `rows` (split -> how many) and `max_length` (of an input, in tokens) of the run. `training`:
        steps, the step it begins at, rows per step, epochs, warm-up steps and the loss of the first batch; None for a
        run that does not train. `held_out`: for each other split the number of rows that were predicted, and their loss
        (None without labels). `dropout`, `processes`, `device`: the model's dropout settings, and where it ran.

    Raises:
        InputError: settings with which a training cannot begin.
    """
    trainer = prepared.trainer
    held_out = {split: prepared.features[split] for split in prepared.splits("validation")}
    held_out |= {split: prepared.features_without_labels(split) for split in prepared.splits("test")}
    with wrong_settings_as_input_errors():
        training = _first_batch(trainer, checkpoint) if config.training.do_train else None
        trainer.compute_metrics = None  # the scores of one batch say nothing
        first: dict[str, dict[str, Any]] = {}
        for split, features in held_out.items():
            batch_size = trainer.args.eval_batch_size * trainer.args.world_size
            rows = features.select(range(min(len(features), batch_size)))
            loss = trainer.predict(rows, metric_key_prefix="first").metrics.get("first_loss")
            first[split] = {"rows": len(rows), "loss": loss}
    return {
        "task": config.task.name,
        "settings": config.settings,
        "rows": {split: len(rows) for split, rows in prepared.data.items()},
        "max_length": prepared.processor.max_length,
        "training": training,
        "held_out": first,
        "dropout": dropout_settings(prepared.model.config),
        "processes": config.training.world_size,
        "device": str(config.training.device),
    }


def _first_batch(trainer: Any, checkpoint: str | None) -> dict[str, Any]:
    beginning = _Beginning(trainer)
    trainer.add_callback(beginning)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except _Enough:
        pass
    trainer.remove_callback(beginning)
    return beginning.found


class _Enough(Exception):
    """Ends the training before its first step."""


class _Beginning(TrainerCallback):
    """Computes the loss of the first batch when data, model, optimizer and schedule are ready, and stops."""

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


def summary(argv: Sequence[str], found: Mapping[str, Any]) -> str:
    """What the run would do, for the terminal.

    Args:
        argv: the words of the command line.
        found: what `dry_run` returned.
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
    folder = Path(settings["output_dir"])
    deleting = settings["overwrite_output_dir"] and folder.exists()
    lines.append(
        f"results   would go to {settings['output_dir']}"
        + (", and what an earlier run left there would be deleted" if deleting else "")
    )
    hub = "nothing would be pushed"
    if settings["push_to_hub"]:
        name = settings["hub_model_id"] or folder.name
        hub = f"would be pushed to {name}" + ("" if "/" in name else ", in your own namespace")
    lines.append(f"hub       {hub}")
    lines.append("written   nothing")
    lines.append(f"next      {same_command(argv, found['processes'], without='dry_run')}")
    return "\n".join(lines)
