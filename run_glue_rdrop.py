#!/usr/bin/env python
"""Fine-tune on GLUE, CLUE or your own data with R-Drop: `python run_glue_rdrop.py --help`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import datasets
import transformers
from transformers import TrainerCallback

from rdrop_trainer import HubError, InputError, RDropSeq2SeqTrainer, RDropTrainer, RDropTrainingArguments
from rdrop_trainer.dropout import active_dropout, dropout_settings
from rdrop_trainer.glue.data import load_files, load_task
from rdrop_trainer.glue.features import without_seen_texts
from rdrop_trainer.glue.metrics import load_metric
from rdrop_trainer.glue.submission import write_submission
from rdrop_trainer.glue.tasks import Task, get_task
from rdrop_trainer.report import draw_curves
from rdrop_trainer.script import outcome
from rdrop_trainer.script.arguments import CommandLine, DataArguments, ModelArguments, parse_arguments
from rdrop_trainer.script.card import card_facts, find_baseline, scores_of
from rdrop_trainer.script.checkpoint import labels_of_checkpoint, load_checkpoint
from rdrop_trainer.script.comparison import compare_baseline
from rdrop_trainer.script.demo import run_demo
from rdrop_trainer.script.dry_run import disable_side_effects, rehearse, report
from rdrop_trainer.script.interrupts import INTERRUPTED, StopWhenAsked, how_to_go_on, is_full
from rdrop_trainer.script.jobs import end_with_parent
from rdrop_trainer.script.lock import check_unlocked, locked
from rdrop_trainer.script.processors import PROCESSORS, Processor
from rdrop_trainer.script.stability import measure_stability, stability_for_card
from rdrop_trainer.script.tuning import tune
from rdrop_trainer.stability import DivergenceProbe

logger = logging.getLogger("run_glue_rdrop")
PROBE_ROWS = 100  # training rows whose divergence --measure_stability follows
NOT_PUSHED = 3  # exit code: all is computed and on disk, but the Hub did not take it
TRAINERS = {"seq2seq": RDropSeq2SeqTrainer}
# What transformers raises for settings that do not work, before the first step
_WRONG_SETTING = (ValueError, TypeError, OSError, ImportError, RuntimeError)


class StoppedError(InputError):
    """A run that had begun stopped at what one of its processes alone may have met."""


def main(argv: list[str] | None = None) -> int:
    """The script: 0 when all went well, 1 when some of several runs failed, 2 for what has to be mended first (input, a
    full disk, a loss that is NaN), 3 when only the push failed, 130 when it was interrupted."""
    end_with_parent()
    argv = sys.argv[1:] if argv is None else argv
    main_process = int(os.environ.get("RANK", "0")) == 0
    command = None
    try:
        command = parse_arguments(argv)
        if command.data.demo:
            return run_demo(Path(command.training.output_dir) if "output_dir" in command.given else None)
        if command.data.dry_run:
            found = run(command)
            if main_process:
                print("\n" + report(found, outcome.same_command(argv, found["processes"], without="dry_run")))
        elif command.several.tune is not None:
            return tune(command)
        elif command.several.compare_baseline:
            return compare_baseline(command)
        else:
            results = run(command)
            if main_process:
                print("\n" + outcome.summary(results, outcome.next_command(argv, results)))
            if results["push_error"]:
                return NOT_PUSHED
    except InputError as error:
        # Each machine tells what is wrong there; any process, what may be wrong with it alone
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, StoppedError):
            print(f"run_glue_rdrop.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if main_process:
            what_is_left = how_to_go_on(Path(command.training.output_dir)) if command else ""
            print(f"\nInterrupted. {what_is_left}", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(command: CommandLine) -> dict:
    """One run: load, train, evaluate, predict, save. Returns what `all_results.json` holds.

    A dry run ends before it trains, writes nothing, and returns what `report` takes.

    Raises:
        InputError: anything that has to be mended before the run can go on.
        KeyboardInterrupt: Ctrl-C, or SIGTERM during training.
    """
    with ExitStack() as held:
        try:
            return _run(command, held)
        except InputError:
            raise
        except FloatingPointError as error:
            raise StoppedError(str(error)) from error
        except Exception as error:
            output_dir = Path(command.training.output_dir)
            if not is_full(output_dir, error):
                if command.training.should_save and any(output_dir.glob("checkpoint-*")):
                    logger.error(f"The run stopped. {how_to_go_on(output_dir)}")
                raise
            why = f"{output_dir}: no space is left on the disk; make room. {how_to_go_on(output_dir)}"
            raise StoppedError(why) from error


def _run(command: CommandLine, held: ExitStack) -> dict:
    """`run`, with a stack for what is held to the end."""
    clock = Clock()
    model_args, data_args, training_args, given = command.model, command.data, command.training, command.given
    if model_args.model_name_or_path is None:
        raise InputError("which model? Give --model_name_or_path (or --demo for a run that needs nothing).")
    _quiet_logging(training_args)

    # ---- Load ----
    with clock("load"), training_args.main_process_first(desc="loading the data"):
        task, found = load_data(model_args, data_args)
    choose_defaults(task, found, data_args, training_args, given)
    data = used_splits(found, data_args, training_args)
    output_dir = Path(training_args.output_dir)
    settings = outcome.settings_of(model_args, data_args, training_args)
    what_runs = {**settings, "processes": training_args.world_size}

    def find_checkpoint() -> str | None:
        resume, overwrite = training_args.resume_from_checkpoint, data_args.overwrite_output_dir
        return outcome.check_output_dir(output_dir, what_runs, resume, overwrite, training_args.do_train)

    with clock("load"):
        if training_args.should_save:
            check_unlocked(output_dir)
        checkpoint = find_checkpoint()
        transformers.set_seed(training_args.seed)
        model, tokenizer, labels = load_checkpoint(model_args, task, training_args.do_train)
        if training_args.do_train:
            _check_dropout(model, training_args)
        max_length = _max_length("max_seq_length", data_args, tokenizer, model.config)
        if task.head == "seq2seq":
            data_args.max_target_length = _max_length("max_target_length", data_args, tokenizer, model.config)
            training_args.predict_with_generate = True
            training_args.generation_num_beams = data_args.num_beams
            training_args.generation_max_length = data_args.max_target_length + 1  # with the token it begins from
        multiple_of = 8 if training_args.fp16 or training_args.bf16 else None
        processor = PROCESSORS[task.head](task, tokenizer, labels, data_args, max_length, multiple_of)
        with training_args.main_process_first(desc="tokenising"):
            features = {split: processor.features(rows) for split, rows in data.items()}

    eval_splits = _splits(data, "validation")
    if any(processor.has_answers(data[split]) for split in _splits(data, "test")):
        load_metric(task)  # a package that scoring needs is missed here, not when all is computed

    def metrics_of(split: str) -> Callable | None:
        return processor.compute_metrics(features[split], data[split])

    if data_args.dry_run:
        disable_side_effects(training_args)
    try:
        trainer = TRAINERS.get(task.head, RDropTrainer)(
            model=model,
            args=training_args,
            train_dataset=features.get("train"),
            eval_dataset=features[eval_splits[0]] if eval_splits else None,
            processing_class=tokenizer,
            data_collator=processor.collator(),
            compute_metrics=metrics_of(eval_splits[0]) if eval_splits else None,
            unlabeled_dataset=features.get("unlabeled"),
        )
        trainer.card_facts = card_facts(task, processor.pipeline, data, found)
        if data_args.dry_run:
            held_out = {split: features[split] for split in eval_splits}
            held_out |= {split: _without_labels(features[split], processor) for split in _splits(data, "test")}
            rows = {split: len(part) for split, part in data.items()}
            about = {"task": task.name, "settings": settings, "rows": rows, "max_length": max_length}
            return about | rehearse(trainer, checkpoint, held_out)
        if training_args.should_save:
            held.enter_context(locked(output_dir))
            checkpoint = find_checkpoint()  # another run may have been there since
    except _WRONG_SETTING as error:
        raise InputError(" ".join(str(error).split())) from error
    metrics: dict[str, float] = {}
    memory = stability = None

    def begin() -> None:
        """Claim the folder; called when all that can be checked before the first step was found right."""
        if training_args.should_save and data_args.overwrite_output_dir:
            outcome.clear_output_dir(output_dir)
        if training_args.should_save and training_args.do_train:
            outcome.write_json(output_dir / outcome.SETTINGS, what_runs)

    # ---- Train ----
    if training_args.do_train:
        if checkpoint:
            logger.warning(f"Resuming from {checkpoint}")
        beginning = OnTrainBegin(begin)
        trainer.add_callback(beginning)
        if data_args.measure_stability:
            seen = features["train"].select(range(min(PROBE_ROWS, len(features["train"]))))
            probe = DivergenceProbe(trainer, seen)
            trainer.add_callback(probe)
        stop = StopWhenAsked(training_args.world_size)
        trainer.add_callback(stop)
        try:
            with clock("train"), stop:
                trained = trainer.train(resume_from_checkpoint=checkpoint)
        except Exception as error:
            if stop.asked:  # a signal also ends processes that load data, without which the step may fail
                raise KeyboardInterrupt from error
            if not beginning.reached and isinstance(error, _WRONG_SETTING) and not is_full(output_dir, error):
                raise InputError(" ".join(str(error).split())) from error
            raise
        if stop.asked:
            raise KeyboardInterrupt
        if data_args.measure_stability:
            clock.move("train", "probe", probe.seconds)
        memory = outcome.peak_memory()
        metrics["steps"] = trained.global_step
        if trained.training_loss != 0:  # as it is where all steps were made before an interruption
            metrics["train_loss"] = trained.training_loss
        metrics["total_flos"] = trainer.state.total_flos
        trainer.save_model(_internal_call=True)  # pushed below, when everything is on disk
        trainer.save_state()

    # ---- Evaluate ----
    if not training_args.do_train:
        begin()
    if training_args.do_eval:
        with clock("eval"):
            for split in eval_splits:
                prefix = "eval_mm" if split.endswith("mismatched") else "eval"
                trainer.compute_metrics = metrics_of(split)
                metrics |= trainer.evaluate(features[split], metric_key_prefix=prefix)
        if data_args.measure_stability:
            split = eval_splits[0]
            with clock("stability"):
                found_stability = measure_stability(trainer, processor, features[split], data[split], output_dir)
            stability = {"split": split, **found_stability}

    # ---- Predict ----
    predictions, complete = [], {}
    if training_args.do_predict:
        with clock("predict"):
            for split in _splits(data, "test"):
                written, scores = predict(trainer, processor, features[split], data[split], split, output_dir)
                metrics |= scores
                if written is not None:
                    predictions.append(str(written.path))
                    complete[written.path.name] = written.complete

    # ---- Save ----
    results = {
        "task": task.name,
        "headline": outcome.headline(task, metrics),
        "metrics": {k: v for k, v in metrics.items() if k != "epoch"},
        "rows": {split: len(rows) for split, rows in data.items()},
        "splits_found": list(found),
        "unlabeled_ratio": training_args.rdrop_unlabeled_ratio if "unlabeled" in data else None,
        "predictions": predictions,
        "complete_submissions": complete,
        "settings": settings,
        "given": sorted(given),
        "has_dropout": bool(active_dropout(model)),
        "processes": training_args.world_size,
        "device": str(training_args.device),
        "seconds": clock.seconds,
        "peak_memory": memory,
        "stability": stability,
        "versions": outcome.versions(),
        "pushed": None,
        "push_error": None,
    }
    trainer.card_facts.scores = scores_of(metrics)
    trainer.card_facts.stability = stability_for_card(stability)
    if data_args.measure_stability and training_args.do_train and training_args.should_save:
        history = trainer.state.log_history
        trainer.card_facts.pictures = draw_curves(history, training_args.rdrop_alpha, output_dir, task.is_regression)
    trainer.card_facts.baseline = find_baseline(output_dir, settings, training_args.world_size)
    if training_args.should_save:
        outcome.write_json(output_dir / outcome.RESULTS, results)
        if training_args.do_train:  # of a model that others trained, these settings tell nothing
            trainer.create_model_card()

    # ---- Push ----
    if training_args.push_to_hub:
        try:
            commit = trainer.push_to_hub()
            results["pushed"] = commit and commit.commit_url
        except (HubError, InputError) as error:
            results["push_error"] = str(error)
            logger.error(str(error))
        if training_args.should_save:
            outcome.write_json(output_dir / outcome.RESULTS, results)
    return results


def load_data(model_args: ModelArguments, data_args: DataArguments) -> tuple[Task, datasets.DatasetDict]:
    """The task and all splits that its source holds."""
    options = {"text_columns": data_args.text_columns, "label_column": data_args.label_column}
    options |= {**data_args.files, "unlabeled_file": data_args.unlabeled_file}
    if data_args.task_name is not None:
        task = get_task(data_args.task_name)
        hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
        data = load_task(task, data_dir=data_args.data_dir, **hub, **options)
    elif data_args.data_dir is not None:
        raise InputError(f"{data_args.data_dir}: a data_dir needs --task_name, to know which files to read")
    elif data_args.files:
        # Without training data, the labels are those of the model that is to be evaluated
        labels = None if data_args.train_file else labels_of_checkpoint(model_args)
        data, task = load_files(**options, labels=labels)
    else:
        raise InputError("which data? Give --task_name, or --train_file and --validation_file.")
    return task, data


def used_splits(
    found: datasets.DatasetDict, data_args: DataArguments, args: RDropTrainingArguments
) -> dict[str, datasets.Dataset]:
    """The splits this run reads, cut to the numbers of rows asked for; unlabeled texts seen elsewhere left out."""
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    limits |= {"test": data_args.max_predict_samples, "unlabeled": data_args.max_unlabeled_samples}
    wanted = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    # A folder may hold unlabeled texts; they are used when asked for
    wanted["unlabeled"] = args.do_train and data_args.unlabeled_file is not None
    if wanted["unlabeled"] and args.rdrop_alpha == 0:
        logger.warning("--rdrop_alpha 0: the unlabeled rows have no effect and are left out")
        wanted["unlabeled"] = False
    used = {split: rows for split, rows in found.items() if wanted[split.split("_")[0]]}
    if "unlabeled" in used:
        new = without_seen_texts(used["unlabeled"], [rows for split, rows in found.items() if split != "unlabeled"])
        if len(new) == 0:
            raise InputError(f"{data_args.unlabeled_file}: all texts are also in another split, so none are left")
        logger.info(f"{len(new):,} of {len(used['unlabeled']):,} unlabeled texts are new and used")
        used["unlabeled"] = new
    for split, rows in used.items():
        limit = limits[split.split("_")[0]]
        if limit is not None:
            used[split] = rows.select(range(min(limit, len(rows))))
    return used


def choose_defaults(
    task: Task,
    data: datasets.DatasetDict,
    data_args: DataArguments,
    args: RDropTrainingArguments,
    given: set[str],
) -> None:
    """Fill in what was not given, and refuse what this task or this data cannot do."""
    # Not by their values: an evaluation strategy sets do_eval
    if not given & {"do_train", "do_eval", "do_predict"}:
        args.do_train, args.do_eval = "train" in data, bool(_splits(data, "validation"))
        args.do_predict = not (args.do_train or args.do_eval)
    args.do_eval = args.do_eval or args.eval_strategy != "no"
    wanted = {"train": ("do_train", args.do_train), "test": ("do_predict", args.do_predict)}
    wanted["validation"] = ("do_eval" if "do_eval" in given else "eval_strategy", args.do_eval)
    for split, (flag, needed) in wanted.items():
        if needed and not _splits(data, split):
            raise InputError(
                f"{task.name}: --{flag} needs {split} rows, but the data holds only: {', '.join(data)}. "
                + (f"Give --{split}_file." if data_args.data_dir is None else f"Is the file in {data_args.data_dir}?")
            )
    if data_args.measure_stability and not args.do_eval:
        raise InputError("--measure_stability needs rows to predict whose answers are known: add --do_eval")
    if args.push_to_hub and not args.do_train:
        raise InputError(
            "--push_to_hub: this run trains nothing to push; add --do_train, or push a folder: "
            "python -m rdrop_trainer.hub push FOLDER USER/NAME"
        )
    if data_args.unlabeled_file is not None and (task.is_regression or not args.do_train):
        why = f"{task.name} is a regression" if task.is_regression else "this run does not train"
        raise InputError(f"{data_args.unlabeled_file}: unlabeled rows are for training a classifier, but {why}")
    data_args.max_seq_length = data_args.max_seq_length or task.max_length
    if "output_dir" not in given:
        args.output_dir = f"runs/{task.name}-alpha{args.rdrop_alpha:g}-seed{args.seed}"
    if args.load_best_model_at_end or args.save_strategy == "best":
        if "metric_for_best_model" not in given and task.headline:
            args.metric_for_best_model, args.greater_is_better = task.headline[0], True
        name = str(args.metric_for_best_model).removeprefix("eval_")
        if name not in (*task.metrics, "loss") and not (task.head == "tokens" and name.startswith("f1_")):
            expected = ", ".join((*task.metrics, "loss"))
            raise InputError(f"--metric_for_best_model {name}: {task.name} has no such score; it has {expected}")


def predict(trainer, processor: Processor, features, rows, split: str, output_dir: Path):
    """Predict one split: the leaderboard file written (on the main process), and the scores of a labeled split."""
    task = processor.task
    if split == "test_public":
        trainer.compute_metrics = processor.compute_metrics(features, rows)
        return None, trainer.predict(features, metric_key_prefix="test_public").metrics
    trainer.compute_metrics = None
    predicted = trainer.predict(_without_labels(features, processor), metric_key_prefix=split).predictions
    if not trainer.is_world_process_zero():
        return None, {}
    answers = processor.answers(predicted, features, rows)
    texts = rows["text"] if task.head == "tokens" else None
    written = write_submission(task, split, list(rows["idx"]), answers, output_dir, texts=texts)
    if not written.complete:
        logger.warning(
            f"{written.path} holds {written.rows:,} rows where the leaderboard expects {written.expected_rows:,}: it "
            "is no valid submission."
        )
    scores = processor.scores(answers, rows) if processor.has_answers(rows) else {}
    return written, {f"{split}_{key}": value for key, value in scores.items()}


class OnTrainBegin(TrainerCallback):
    """Calls a function when data, optimizer and schedule stand, just before the first step."""

    def __init__(self, function: Callable[[], None]):
        self.function, self.reached = function, False

    def on_train_begin(self, *args, **kwargs):
        self.function()
        self.reached = True


class Clock:
    """Seconds spent in each part of a run."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - start, 3)

    def move(self, part: str, to: str, seconds: float) -> None:
        """Count seconds that were spent within a part as another's."""
        self.seconds[part], self.seconds[to] = round(self.seconds[part] - seconds, 3), round(seconds, 3)


def _splits(data, kind: str) -> list[str]:
    """The splits of a kind, the main one first."""
    return [split for split in data if split.split("_")[0] == kind]


def _without_labels(features: datasets.Dataset, processor: Processor) -> datasets.Dataset:
    """A test set to predict: its labels are missing, and a loss over nothing is NaN."""
    return features.remove_columns(list(processor.label_columns))


def _max_length(name: str, data_args: DataArguments, tokenizer, config) -> int:
    wanted = getattr(data_args, name)
    positions = getattr(config, "max_position_embeddings", None) or wanted
    if "roberta" in config.model_type:  # counts positions from behind the padding token's
        positions -= config.pad_token_id + 1
    limit = min(tokenizer.model_max_length, positions)
    if wanted > limit:
        logger.warning(f"{name} {wanted} is more than the model takes; using {limit}")
    return min(wanted, limit)


def _check_dropout(model, args: RDropTrainingArguments) -> None:
    noise = active_dropout(model) if args.dropout is None else args.dropout  # the trainer sets it
    if args.rdrop_alpha > 0 and not args.rdrop_allow_deterministic and not noise:
        zeros = ", ".join(key for key, p in dropout_settings(model.config).items() if p == 0 or args.dropout == 0)
        raise InputError(
            f"{type(model).__name__} has no active dropout ({zeros or 'no setting for it'}), so R-Drop has no effect; "
            "add --dropout 0.1, or --rdrop_allow_deterministic to go on without"
        )


def _quiet_logging(args: RDropTrainingArguments) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    level = args.get_process_log_level()
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)
    datasets.disable_progress_bars() if args.disable_tqdm or not args.should_log else datasets.enable_progress_bars()


if __name__ == "__main__":
    sys.exit(main())
