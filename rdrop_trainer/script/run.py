"""One run of the script, stage by stage: resolve, prepare, train, evaluate, predict, publish."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import transformers

from ..errors import InputError
from ..training_args import RDropTrainingArguments
from .arguments import CommandLine
from .config import RunConfig, resolve
from .dry_run import dry_run
from .evaluate import evaluate
from .interrupts import how_to_go_on, is_full
from .output_dir import check_folder, own_folder
from .predict import predict
from .prepare import prepare
from .program import logger
from .publish import publish
from .source import Source, load_source
from .train import train


class StoppedError(InputError):
    """A run that had begun stopped at what one of its processes alone may have met."""


def run(command: CommandLine) -> dict[str, Any]:
    """Load, train, evaluate, predict, save, push: whatever of it the command asks for.

    Returns:
        What `all_results.json` holds. A dry run ends before it trains, writes nothing, and returns what `dry_run`
        returns.

    Raises:
        InputError: anything that has to be mended before the run can go on.
        KeyboardInterrupt: Ctrl-C, or SIGTERM during training; its message says what there is to go on from.
    """
    args = command.training
    with _explained(Path(args.output_dir), args.should_save):
        if command.model.model_name_or_path is None:
            raise InputError("which model? Give --model_name_or_path (or --demo for a run that needs nothing).")
        _quiet_logging(args)
        source = load_source(command)
        config = resolve(command, source)
    with _explained(config.output_dir, args.should_save):
        return _stages(config, source)


def _stages(config: RunConfig, source: Source) -> dict[str, Any]:
    checkpoint = check_folder(config)
    prepared = prepare(config, source)
    if config.data.dry_run:
        return dry_run(config, prepared, checkpoint)
    with own_folder(config, checkpoint) as checkpoint:
        trained = train(config, prepared, checkpoint)
        evaluated = evaluate(config, prepared)
        predicted = predict(config, prepared)
        return publish(config, prepared, trained, evaluated, predicted)


@contextmanager
def _explained(output_dir: Path, should_save: bool) -> Iterator[None]:
    """Say of a run that stops how to go on."""
    try:
        yield
    except InputError:
        raise
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(how_to_go_on(output_dir)) from error
    except FloatingPointError as error:
        raise StoppedError(str(error)) from error
    except Exception as error:
        if not is_full(output_dir, error):
            if should_save and any(output_dir.glob("checkpoint-*")):
                logger.error(f"The run stopped. {how_to_go_on(output_dir)}")
            raise
        why = f"{output_dir}: no space is left on the disk; make room. {how_to_go_on(output_dir)}"
        raise StoppedError(why) from error


def _quiet_logging(args: RDropTrainingArguments) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    level = args.get_process_log_level()
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)
    datasets.disable_progress_bars() if args.disable_tqdm or not args.should_log else datasets.enable_progress_bars()
