"""All of a run that comes before its first step: the rows it uses, the model, the features and the trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..dropout import dropout_settings
from ..errors import InputError
from ..glue.features import LabelMap, without_seen_texts
from ..glue.metrics import load_metric
from ..hub.client import check_repo_id, repo_name
from ..objective.head_of import base_model
from ..objective.noise_of import noise_of
from ..trainer import RDropSeq2SeqTrainer, RDropTrainer
from ..training_args import RDropTrainingArguments
from .adapter import check_pushable
from .arguments import DataArguments
from .card import card_facts
from .checkpoint import load_checkpoint, max_positions
from .cost import Clock
from .languages import set_languages
from .processors import PROCESSORS, Processor
from .program import logger, wrong_settings_as_input_errors
from .resolve import RunConfig, splits_of, with_values


@dataclass(frozen=True)
class Prepared:
    """What a run works with.

    Attributes:
        found: names of all splits of the data.
        data: the splits that the run uses, as rows.
        features: the same splits, as the model takes them.
        processor: makes features of rows, and answers of what the model predicts.
        model: as it was loaded; a trainer may wrap it.
        trainer: ready to train.
        clock: of the run.
    """

    found: list[str]
    data: Mapping[str, Dataset]
    features: Mapping[str, Dataset]
    processor: Processor
    model: PreTrainedModel
    trainer: RDropTrainer | RDropSeq2SeqTrainer
    clock: Clock

    def splits(self, kind: str) -> list[str]:
        """Names of the used splits of a kind, the main one first."""
        return splits_of(self.data, kind)

    def compute_metrics(self, split: str) -> Callable | None:
        """The `compute_metrics` of a trainer that evaluates a split."""
        return self.processor.compute_metrics(self.features[split], self.data[split])

    def features_without_labels(self, split: str) -> Dataset:
        """The features of a test set to predict: its labels are missing, and a loss over nothing is NaN."""
        return self.features[split].remove_columns(list(self.processor.label_columns))


def prepare(config: RunConfig, whole: DatasetDict, clock: Clock) -> Prepared:
    """Load the model, make the features and the trainer."""
    task, args = config.task, config.training
    with clock("load"):
        data = _used_splits(config, whole)
        transformers.set_seed(args.seed)
        model, tokenizer, labels = load_checkpoint(
            config.model, task, args.do_train, config.adapter, args.device, config.given
        )
        if args.do_train:
            _check_noise(model, args)
            if args.push_to_hub:
                check_pushable(model)
        processor, args = _processor_of(config, model, tokenizer, labels)
        with args.main_process_first(desc="tokenising"):
            features = {split: processor.features(rows, split == "train") for split, rows in data.items()}
    if args.do_train:
        _check_full_batch(len(features["train"]), args)
    if any(processor.has_answers(data[split]) for split in splits_of(data, "test")):
        load_metric(task)  # a package that scoring needs is missed here, not when all is computed
    if config.data.dry_run:
        args = _without_side_effects(args)
    collator = processor.collator()
    # Of all splits: what cannot be scored is refused now, not when all is computed
    scorers = {s: processor.compute_metrics(features[s], data[s]) for s in splits_of(data, "validation")}
    eval_split = next(iter(scorers), None)
    with wrong_settings_as_input_errors():
        trainer = (RDropSeq2SeqTrainer if task.head == "seq2seq" else RDropTrainer)(
            model=model,
            args=args,
            train_dataset=features.get("train"),
            eval_dataset=features.get(eval_split),
            processing_class=tokenizer,
            data_collator=collator,
            callbacks=[collator] if isinstance(collator, transformers.TrainerCallback) else None,
            compute_metrics=scorers.get(eval_split),
            unlabeled_dataset=features.get("unlabeled"),
            preprocess_logits_for_metrics=processor.keep_logits,
        )
        # Answers are scored and written by their place, and transformers groups rows by length in evaluation too
        trainer._get_eval_sampler = lambda eval_dataset: None  # type: ignore[method-assign]
        trainer.card_facts = card_facts(task, processor.pipeline, data, whole)
    return Prepared(list(whole), data, features, processor, model, trainer, clock)


def _processor_of(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: LabelMap | None
) -> tuple[Processor, RDropTrainingArguments]:
    """The processor for a model, and the trainer's own copy of the arguments."""
    task, data, args = config.task, config.data, with_values(config.training)
    reader = model.get_encoder() if task.head == "seq2seq" else model
    max_length = _limited("max_seq_length", data.max_seq_length, tokenizer, reader)
    if task.head == "seq2seq":
        set_languages(model, tokenizer, data.source_lang, data.target_lang)
        longest = _limited("max_target_length", data.max_target_length, tokenizer, model.get_decoder())
        data = replace(data, max_target_length=longest, source_prefix=_prefix(data, model))
        args = with_values(
            args,
            predict_with_generate=True,
            generation_num_beams=data.num_beams,
            generation_max_length=longest + 1,  # with the token it begins from
        )
    multiple_of = 8 if args.fp16 or args.bf16 else None
    return PROCESSORS[task.head](task, tokenizer, labels, data, max_length, multiple_of), args


def _used_splits(config: RunConfig, whole: DatasetDict) -> dict[str, Dataset]:
    """The splits that a run reads, cut to the numbers of rows asked for; unlabeled texts seen elsewhere left out."""
    data, args = config.data, config.training
    limits = {
        "train": data.max_train_samples,
        "validation": data.max_eval_samples,
        "test": data.max_predict_samples,
        "unlabeled": data.max_unlabeled_samples,
    }
    wanted = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    wanted["unlabeled"] = data.unlabeled_file is not None  # a folder may hold some that are not asked for
    if wanted["unlabeled"] and args.rdrop_alpha == 0:
        logger.warning("--rdrop_alpha 0: the unlabeled rows have no effect and are left out")
        wanted["unlabeled"] = False
    used: dict[str, Dataset] = {}
    for split, rows in whole.items():
        kind = split.split("_")[0]
        if not wanted[kind]:
            continue
        if kind == "unlabeled":
            # Training rows that this run leaves out may come back without their labels, rows to evaluate may not
            seen = {**whole, "train": used["train"]}
            del seen[split]
            new = without_seen_texts(rows, list(seen.values()))
            if len(new) == 0:
                raise InputError(f"{data.unlabeled_file}: all texts are also in another split, so none are left")
            logger.info(f"{len(new):,} of {len(rows):,} unlabeled texts are new and used")
            rows = new
        used[split] = rows if limits[kind] is None else rows.select(range(min(limits[kind], len(rows))))
    return used


def _without_side_effects(args: RDropTrainingArguments) -> RDropTrainingArguments:
    """Arguments with which a trainer creates no folder and no repository, and reports nowhere."""
    if args.push_to_hub:
        check_repo_id(repo_name(args.hub_model_id, args.output_dir))
    # A trainer creates its folder at once; the temporary folder exists, and stays as it is
    return with_values(args, push_to_hub=False, report_to=[], disable_tqdm=True, output_dir=tempfile.gettempdir())


def _limited(name: str, wanted: int, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """A length in tokens, or the most that the model takes."""
    limit = min(tokenizer.model_max_length, max_positions(model) or wanted)
    if wanted > limit:
        logger.warning(f"{name} {wanted} is more than the model takes; using {limit}")
    return min(wanted, limit)


def _prefix(data: DataArguments, model: PreTrainedModel) -> str:
    """What is put before each text to read: as given, or as the model's configuration has it, which keeps it."""
    stored = getattr(model.config, "prefix", None) or ""
    prefix = stored if data.source_prefix is None else data.source_prefix
    if prefix and data.source_prefix is None:
        logger.info(f"The model reads texts behind {prefix!r}, as its configuration says")
    if prefix != stored:
        model.config.prefix = prefix
    return prefix


def _check_full_batch(rows: int, args: RDropTrainingArguments) -> None:
    """Refuse to drop the only batch there is."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise InputError(
            f"--dataloader_drop_last leaves out batches of fewer than {batch:,} rows, and there are {rows:,} to train "
            "on, so none is left; give a smaller --per_device_train_batch_size"
        )


def _check_noise(model: Any, args: RDropTrainingArguments) -> None:
    """Refuse R-Drop with a model that has no noise."""
    noise = [source.kind for source in noise_of(model, args.neftune_noise_alpha)]
    if args.rdrop_dropout is not None:  # the trainer sets it everywhere
        noise = [kind for kind in noise if "dropout" not in kind] + ["dropout"] * (args.rdrop_dropout > 0)
    if args.rdrop_alpha > 0 and not args.rdrop_allow_deterministic and not noise:
        zeros = ", ".join(key for key, p in dropout_settings(model.config).items() if p == 0 or args.rdrop_dropout == 0)
        name = type(base_model(model)).__name__
        own = "--lora_dropout 0.05 or " if base_model(model) is not model and args.rdrop_dropout is None else ""
        raise InputError(
            f"{name} has no active dropout ({zeros or 'no setting for it'}), so R-Drop has no effect; "
            f"add {own}--dropout 0.1, or --rdrop_allow_deterministic to go on without"
        )
