"""`--dry_run`: all of a run that comes before its first step, the loss of one batch, and what would happen then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..objective.noise_of import noise_of
from ..run_folder import name_of_data
from .estimate import Cost, Workload, seconds_of, workload_of
from .prepare import Prepared
from .program import wrong_settings_as_input_errors
from .resolve import RunConfig
from .summary import columns_line
from .train import OnTrainBegin


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Attributes:
        title: which run it is.
        about: lines on its data, its training and its first losses.
        ends: lines on where its results would go.
        cost: of the run, about; None where it does not train.
        device: on which it would train.
    """

    title: str
    about: Sequence[str]
    ends: Sequence[str]
    cost: Cost | None
    device: str

    def text(self) -> str:
        """All of it, for the terminal."""
        cost = [] if self.cost is None else [f"takes     about {self.cost} on the disk"]
        return "\n".join([f"Dry run of {self.title}", *self.about, *cost, *self.ends, "written   nothing"])


def dry_run(config: RunConfig, prepared: Prepared, checkpoint: str | None) -> DryRun:
    """Start training up to its first step, compute the loss of one batch, and predict a batch of every other split."""
    args, alpha = config.training, config.training.rdrop_alpha
    with wrong_settings_as_input_errors():
        first = _first_batch(prepared.trainer, checkpoint) if args.do_train else None
        held_out, row_seconds = _held_out_batches(prepared)
    how = f"R-Drop, alpha {alpha:g} ({args.rdrop_reduction})" if alpha else "plain fine-tuning (alpha 0)"
    name = name_of_data({"task": config.task.name, "settings": config.settings})
    title = f"{name}: {how}, seed {args.seed}, {config.model.model_name_or_path}"
    lines = ["rows      " + ", ".join(f"{split} {len(rows):,}" for split, rows in prepared.data.items())]
    lines += [f"columns   {columns_line(config.columns)}"] if config.columns else []
    if first:
        batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
        lines.append(
            f"training  {first['steps']:,} steps ({first['epochs']:.1f} epochs) of {first['rows_per_step']} rows "
            f"(batch {batch} x accumulated {accumulated} x devices {args.world_size}), on {args.device}"
        )
        if first["first_step"]:
            lines.append(f"resumes   at step {first['first_step']:,}")
        lines.append(
            f"rate      {args.learning_rate:g}, {config.settings['lr_scheduler_type']}, warm-up "
            f"{first['warmup_steps']:,} steps, weight decay {args.weight_decay:g}"
        )
    lines.append(f"inputs    at most {prepared.processor.max_length} tokens")
    noise = noise_of(prepared.model, args.neftune_noise_alpha)
    lines.append(f"noise     {'; '.join(map(str, noise)) or 'none'}")
    if first:
        lines.append(f"loss      {first['loss']:.4f} (train, the first batch)")
    lines += held_out
    training: Workload | None = first["training"] if first else None
    cost = None
    if training is not None:
        evaluation = row_seconds * sum(len(prepared.features[split]) for split in prepared.splits("validation"))
        cost = training.cost(prepared.clock.seconds["load"], evaluation, config.data.measure)
    return DryRun(title, lines, _ends(config), cost, str(args.device))


def _ends(config: RunConfig) -> list[str]:
    """Lines on where the results would go."""
    args = config.training
    deleting = config.data.overwrite_output_dir and config.output_dir.exists()
    what_else = ", and what an earlier run left there would be deleted" if deleting else ""
    hub = "nothing would be pushed"
    if args.push_to_hub:
        name = args.hub_model_id or config.output_dir.name
        hub = f"would be pushed to {name}" + ("" if "/" in name else ", in your own namespace")
    return [f"results   would go to {args.output_dir}{what_else}", f"hub       {hub}"]


def _held_out_batches(prepared: Prepared) -> tuple[list[str], float]:
    """A line on the loss of the first batch of each split that is evaluated or predicted; and about how many seconds
    one row takes.
    """
    trainer, lines, seconds = prepared.trainer, [], 0.0
    trainer.compute_metrics = None  # the scores of one batch say nothing
    held_out = {split: prepared.features[split] for split in prepared.splits("validation")}
    held_out |= {split: prepared.features_without_labels(split) for split in prepared.splits("test")}
    for split, features in held_out.items():
        rows = features.select(range(min(len(features), trainer.args.eval_batch_size * trainer.args.world_size)))
        found: dict[str, float] = {}

        def predict(rows: Any = rows, found: dict[str, float] = found) -> None:
            found.update(trainer.predict(rows, metric_key_prefix="first").metrics)

        took = seconds_of(predict, trainer.args.device)
        seconds = seconds or took / len(rows)
        loss = found.get("first_loss")
        value = "no labels" if loss is None else f"{loss:.4f}"
        lines.append(f"loss      {value} ({split}, the first {len(rows)} rows)")
    return lines, seconds


class _Enough(Exception):
    """Ends the training before its first step."""


def _first_batch(trainer: Any, checkpoint: str | None) -> dict[str, Any]:
    """Steps, rows and warm-up of a training, the loss of its first batch, and what the training is made of."""
    found: dict[str, Any] = {"training": None}

    def begin(args, state, control, train_dataloader=None, **_):
        model = trainer.model_wrapped
        model.train()
        batch = trainer._prepare_inputs(next(iter(train_dataloader)))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            found["loss"] = trainer.compute_loss(model, batch).item()
        per_step = trainer.get_total_train_batch_size(args)
        found["steps"], found["first_step"], found["rows_per_step"] = state.max_steps, state.global_step, per_step
        found["epochs"] = state.max_steps / max(1, math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))
        found["warmup_steps"] = args.get_warmup_steps(state.max_steps)
        if args.world_size == 1 and not trainer.is_deepspeed_enabled:  # whose backward would also make a step
            found["training"] = workload_of(trainer, state, batch)
        raise _Enough

    beginning = OnTrainBegin(begin)
    trainer.add_callback(beginning)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except _Enough:
        trainer.remove_callback(beginning)
    return found
