"""What a run leaves at its end: its results, the model card, and the push to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..glue.task import Task
from ..hub.client import reason
from ..hub.model_kinds import PIPELINES
from ..objective.noise_of import noise_of
from ..report import draw_curves
from ..run_folder import RESULTS, best_checkpoint, name_of_data, versions, write_json
from .adapter import adapter_facts
from .card import find_baseline, scores_of
from .evaluate import Evaluated
from .predict import Predicted
from .prepare import Prepared
from .program import logger
from .resolve import RunConfig
from .stability import stability_for_card
from .summary import weights_in_words
from .train import Trained


def publish(
    config: RunConfig, prepared: Prepared, trained: Trained, evaluated: Evaluated, predicted: Predicted
) -> dict[str, Any]:
    """Write the results and the model card, and push the model if the run is to; what `all_results.json` holds."""
    args, trainer = config.training, prepared.trainer
    metrics = {**trained.metrics, **evaluated.metrics, **predicted.metrics}
    adapter, pipeline = adapter_facts(prepared.model), prepared.processor.pipeline
    best = best_checkpoint(vars(trainer.state), config.settings) if args.do_train else None
    results = {
        "task": config.task.name,
        "headline": _headline(config.task, metrics),
        "metrics": {name: value for name, value in metrics.items() if name != "epoch"},
        "by_class": {**evaluated.by_class, **predicted.by_class},
        "columns": config.columns,
        "rows": {split: len(rows) for split, rows in prepared.data.items()},
        "splits_found": prepared.found,
        "unlabeled_ratio": args.rdrop_unlabeled_ratio if "unlabeled" in prepared.data else None,
        "predictions": [str(file.path) for file in predicted.files],
        "complete_submissions": {file.path.name: file.complete for file in predicted.files},
        "settings": config.settings,
        "given": sorted(config.given),
        "noise": [str(source) for source in noise_of(prepared.model, args.neftune_noise_alpha)],
        "processes": args.world_size,
        "device": str(args.device),
        "seconds": prepared.clock.seconds,
        "peak_memory": trained.memory,
        "stability": evaluated.stability,
        "versions": versions(),
        # The pipeline of an adapter would have the labels of the base model
        "pipeline": pipeline if pipeline in PIPELINES and adapter is None else None,
        "adapter": adapter,
        "best_checkpoint": best and best._asdict(),
        "pushed": None,
        "push_error": None,
    }
    try:
        _complete_card(config, prepared, results)
    except Exception as error:  # a finished training shall not end over a card
        logger.error(f"the model card lacks baseline and stability: {type(error).__name__}: {error}")
    if args.should_save:
        write_json(config.output_dir / RESULTS, results)
        if args.do_train:  # of a model that others trained, these settings say nothing
            trainer.create_model_card()
    if args.push_to_hub:
        results |= _push(trainer)
        if args.should_save:
            write_json(config.output_dir / RESULTS, results)
    return results


def _headline(task: Task, metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores to read first, with their prefix: of the matched set, the mismatched, and a test set."""
    prefixes = ("eval_", "eval_mm_", "test_public_", "test_")
    return {p + key: metrics[p + key] for p in prefixes for key in task.headline if p + key in metrics}


def _complete_card(config: RunConfig, prepared: Prepared, results: Mapping[str, Any]) -> None:
    """Add what is known after the training to the trainer's card."""
    args, trainer, pictures = config.training, prepared.trainer, {}
    if config.data.measure != "none" and args.do_train and args.should_save:
        best = results["best_checkpoint"]
        pictures = draw_curves(
            trainer.state.log_history,
            args.rdrop_alpha,
            config.output_dir,
            config.task.is_regression,
            title=f"{name_of_data(results)}: alpha {args.rdrop_alpha:g}, seed {args.seed}",
            scored_step=best["step"] if best and best["is_loaded"] else None,
        )
    trainer.card_facts = replace(
        trainer.card_facts,
        scores=scores_of(results["metrics"]),
        stability=stability_for_card(results["stability"]),
        pictures=pictures,
        weights=weights_in_words(results),
        baseline=find_baseline(config.output_dir, config.settings, args.world_size),
    )


def _push(trainer: Any) -> dict[str, str | None]:
    """Push the model: the `pushed` address, or the `push_error`."""
    try:
        commit = trainer.push_to_hub()
    except Exception as error:  # and not over a push either
        logger.error(reason(error))
        return {"pushed": None, "push_error": reason(error)}
    return {"pushed": commit and commit.commit_url, "push_error": None}
