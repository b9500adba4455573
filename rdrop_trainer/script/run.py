"""One run of the script, stage by stage: resolve, prepare, train, evaluate, predict, publish."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import transformers

from ..errors import InputError
from ..training_args import RDropTrainingArguments
from .command_line import CommandLine
from .cost import Clock
from .dry_run import DryRun, dry_run
from .evaluate import evaluate
from .interrupts import NO_SPACE, how_to_go_on, is_full
from .output_dir import check_unlocked, find_checkpoint, locked, warn_of_others
from .predict import predict
from .prepare import Prepared, prepare
from .program import NOT_FINITE, StoppedError, logger
from .progress import progress_written
from .publish import publish
from .resolve import RunConfig, resolve
from .saved_adapter import check_same_adapter
from .train import train


def run(command: CommandLine) -> dict[str, Any]:
    """Load, train, evaluate, predict, save, push: whatever of it the command asks for.

    Returns:
        What `all_results.json` holds.

    Raises:
        InputError: anything that has to be mended before the run can go on.
        StoppedError: the model that was to predict only broke down; its results are kept.
        KeyboardInterrupt: Ctrl-C, or SIGTERM during training; its message says what there is to go on from.
    """
    saves = command.training.should_save
    with _prepared(command) as (config, prepared, checkpoint):
        with locked(config.output_dir) if saves else nullcontext():
            if saves:  # another run may have been there since
                checkpoint = find_checkpoint(config, warn=False)
            with progress_written(config, prepared) if saves else nullcontext():
                trained = train(config, prepared, checkpoint)
                evaluated = evaluate(config, prepared)
                predicted = predict(config, prepared)
                results = publish(config, prepared, trained, evaluated, predicted)
                if predicted.broken and not command.training.do_train:  # predictions are all that it was for
                    raise StoppedError(f"there are no predictions for {', '.join(predicted.broken)}", NOT_FINITE)
                return results


def run_dry(command: CommandLine) -> DryRun:
    """The same as `run` up to the first step, and then `dry_run`; nothing is trained or written."""
    with _prepared(command) as (config, prepared, checkpoint):
        return dry_run(config, prepared, checkpoint)


@contextmanager
def _prepared(command: CommandLine) -> Iterator[tuple[RunConfig, Prepared, str | None]]:
    """A run, what it works with, and the checkpoint it goes on from; an error in the block says how to go on."""
    args, clock = command.training, Clock()
    with _explained(Path(args.output_dir), args.should_save):
        _quiet_logging(args)
        with clock("load"):
            config, whole = resolve(command)
    with _explained(config.output_dir, args.should_save):
        if args.should_save:
            check_unlocked(config.output_dir)
        checkpoint = find_checkpoint(config)
        if args.should_save:
            warn_of_others(config.output_dir, config.settings)
        prepared = prepare(config, whole, clock)
        if checkpoint:
            check_same_adapter(prepared.model, checkpoint)
        yield config, prepared, checkpoint


@contextmanager
def _explained(output_dir: Path, should_save: bool) -> Iterator[None]:
    """Turn what stops a run into an error that says how to go on."""
    try:
        yield
    except InputError:
        raise
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(how_to_go_on(output_dir)) from error
    except FloatingPointError as error:
        raise StoppedError(str(error), NOT_FINITE) from error
    except Exception as error:
        if not is_full(error):
            if should_save and any(output_dir.glob("checkpoint-*")):
                logger.error(f"The run stopped. {how_to_go_on(output_dir)}")
            raise
        raise StoppedError(f"{output_dir}: {NO_SPACE}. {how_to_go_on(output_dir)}") from error


def _quiet_logging(args: RDropTrainingArguments) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    level = args.get_process_log_level()
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)
    datasets.disable_progress_bars() if args.disable_tqdm or not args.should_log else datasets.enable_progress_bars()
