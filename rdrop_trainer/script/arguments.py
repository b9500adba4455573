"""The flags of `run_glue_rdrop.py` beside those of the trainer: dataclasses, and the values they may have."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..glue.task import HEADS
from ..glue.tasks import TASKS, get_task


def flag(default: Any, help: str) -> Any:
    """A field that is a flag of the command line; a list is the default of one that takes several values."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**start, metadata={"help": help})


@dataclass(frozen=True)
class ModelArguments:
    """Which model."""

    _argument_group_name = "model"

    model_name_or_path: str | None = flag(
        None, "A model on the Hub, or a folder that holds one (needed unless --demo)."
    )
    tokenizer_name: str | None = flag(
        None, "Tokenizer, where it is not the model's own: a name on the Hub or a folder."
    )
    model_revision: str = flag("main", "Branch, tag or commit of the model on the Hub.")
    cache_dir: str | None = flag(None, "Where downloads from the Hub are kept.")
    token: str | None = flag(None, "Token for the Hub; by default the one stored by `hf auth login`.")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = flag(
        "float32",
        "Type of the weights. Checkpoints in half precision are trained in float32 too (with --bf16 or --fp16 in mixed "
        "precision): small updates of bfloat16 weights round away. auto: as the checkpoint is stored.",
    )
    trust_remote_code: bool = flag(False, "Run model code that the Hub repository brings along. Read it first.")

    def __post_init__(self):
        for name in ("model_name_or_path", "tokenizer_name"):
            if (getattr(self, name) or "").startswith("~"):  # as output_dir, which transformers expands
                object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))


@dataclass(frozen=True)
class DataArguments:
    """Which task, and where its data comes from: the Hub, a folder of the official files, or your own files."""

    _argument_group_name = "data"

    task_name: str | None = flag(
        None, "One of " + ", ".join(TASKS) + ". Without it: your own files, their labels taken from train_file."
    )
    task_type: Literal["classification", "tokens", "seq2seq", "qa", "lm"] = flag(
        "classification",
        "What your own files are for. classification: a label for each row, or a number (.csv, .tsv, .json, .jsonl, "
        ".parquet). tokens: a tag for each token, from CoNLL columns or from lists in .json, .jsonl or .parquet. "
        "seq2seq: a text for each text, such as its summary or translation, from two columns. qa: an answer out of a "
        "passage to each question about it, from JSON in the form of SQuAD 1.1 or 2.0. lm: a language model, from "
        "plain text (.txt) or a column of texts; the model says whether causal or masked.",
    )
    data_dir: str | None = flag(
        None,
        "Folder with the task's official files: glue_data (.tsv) or CLUE's layout (.json), the task's own folder "
        "or the one above it. Without it and without files, the task comes from the Hub.",
    )
    train_file: str | None = flag(None, "Training data: .csv, .tsv, .json, .jsonl or .parquet, or as task_type says.")
    validation_file: str | None = flag(None, "Evaluation data, in one of these formats.")
    test_file: str | None = flag(None, "Data to predict, in one of these formats.")
    unlabeled_file: str | None = flag(
        None,
        "Texts without labels (also .txt, one a line), mixed into every batch, --rdrop_unlabeled_ratio of them for "
        "each labeled row: they add the divergence and no task loss. Texts that are also in another split are "
        "left out.",
    )
    text_columns: list[str] | None = flag(
        None,
        "Names of the one or two text columns in your files. Default: a usual name, or the only column of text. Of "
        "tokens: the column of the tokens, in CoNLL its number, counted from 1. Default: a usual name, or the first. "
        "Of a language model: that of the texts, where they are not in a .txt. Default: text.",
    )
    label_column: str | None = flag(
        None, "Name of the label column. Default: label. Of tokens: that of the tags; a usual name, or the last column."
    )
    source_column: str | None = flag(
        None, "Of seq2seq: the column of the texts to read. Default: a usual name, where the target has one too."
    )
    target_column: str | None = flag(None, "Of seq2seq: the column of the texts to write. Default: as source_column.")
    source_lang: str | None = flag(
        None,
        "seq2seq and csl_title, with a model of many languages (mBART, NLLB, M2M100): the language of the texts to "
        "read, as its tokenizer writes it, such as de_DE or deu_Latn. Default: as the tokenizer was saved.",
    )
    target_lang: str | None = flag(None, "The language of the texts to write, as source_lang.")
    source_prefix: str | None = flag(
        None,
        "seq2seq and csl_title: put before each text to read, such as 'summarize: ' for T5; the model's configuration "
        "keeps it. Default: as it says.",
    )
    id_column: str | None = flag(
        None,
        "Name of the column of ids, which the predictions of test_file keep. That file must have it; where there is "
        "none, another may. Default: rows are numbered.",
    )
    metric: list[str] | None = flag(
        None,
        "Scores to report first, the first of them to choose the best model by. Labels: accuracy, macro_f1, "
        "matthews_correlation, and of two labels f1 (that of the second by name). Numbers: pearson, spearmanr; with "
        "these, labels that are whole numbers are a regression too. Tokens: f1, macro_f1, precision and recall of "
        "entities; of other tags accuracy, macro_f1. seq2seq: rouge1, rouge2, rougeL, bleu, chrf. qa: "
        "exact_match, f1. lm: perplexity. Default: the task's, or the first of these.",
    )
    early_stopping_patience: int | None = flag(
        None,
        "Stop the training after so many evaluations without a better score. Where eval_strategy, save_strategy and "
        "load_best_model_at_end are not given, it evaluates and saves every epoch, and ends with the best model.",
    )
    max_seconds: float | None = flag(
        None,
        "End the training after so many seconds, those of interrupted runs counted and evaluations left out, however "
        "far it came; the model is then evaluated and saved as at its end. The schedule stays that of all steps.",
    )
    max_seq_length: int | None = flag(
        None,
        "Longer inputs are cut, in tokens; the passages of questions into windows of this length. Default: "
        "128, for csl_title 256, for c3, cmrc2018, drcd, seq2seq, qa and lm 512.",
    )
    doc_stride: int = flag(
        128,
        "qa, cmrc2018 and drcd: how many tokens two windows of a long passage have in common, at most a third of "
        "max_seq_length.",
    )
    max_answer_length: int = flag(50, "qa, cmrc2018 and drcd: longest answer, in tokens.")
    null_score_diff_threshold: float | None = flag(
        None,
        "qa: a question gets no answer where that has a score higher by more than this than the best answer. Default: "
        "0 where the training file has questions without an answer (SQuAD 2.0), else every question gets one.",
    )
    max_target_length: int | None = flag(
        None,
        "seq2seq and csl_title: longer targets are cut, and none longer is written, in tokens. Default: 128, for "
        "csl_title 64.",
    )
    num_beams: int = flag(
        4, "seq2seq and csl_title: beams of the search for the best text; 1 takes the best next token."
    )
    mlm_probability: float = flag(
        0.15, "lm: share of the tokens that a masked language model predicts. Each epoch masks others."
    )
    pad_to_max_length: bool = flag(False, "Pad every row to max_seq_length instead of to the longest of its batch.")
    max_train_samples: int | None = flag(None, "Use only the first rows to train.")
    max_eval_samples: int | None = flag(None, "Use only the first rows to evaluate.")
    max_predict_samples: int | None = flag(None, "Use only the first rows to predict.")
    max_unlabeled_samples: int | None = flag(None, "Use only the first unlabeled rows.")
    overwrite_output_dir: bool = flag(
        False,
        "Delete the checkpoints, results and leaderboard files that an earlier run left in output_dir, as soon as "
        "training begins; its model is replaced at the end. Without it, a finished run is refused.",
    )
    dry_run: bool = flag(
        False,
        "Do all that comes before training: read the settings, load and tokenise the data, load the model, make "
        "optimizer and schedule; then compute the loss of one batch, predict one of every other split, and say "
        "what the run would do. Of a comparison or a search: which runs, in which folders, and about how much time and "
        "disk they take. Nothing is trained, written to output_dir or pushed.",
    )
    measure: Literal["none", "quick", "full"] = flag(
        "none",
        "Measure beside the scores how often the model's own dropout and small edits of the text flip its "
        "predictions, how well its confidence is calibrated, and, as it trains, the divergence of two passes of some "
        "training rows. quick: as many rows as a fifth of the training's time pays for, counted in predictions, so "
        "that it is the same rows everywhere; the default of a comparison. full: all evaluation rows, with 8 "
        "predictions under dropout and every edit. The edits go into edits.csv.",
    )
    demo: bool = flag(
        False,
        "Compare baseline and R-Drop on a small bilingual data set and a tiny model that are made on the spot: no "
        "network, a minute or two. It trains on the CPU; --use_cpu False lets it use the GPU.",
    )

    def __post_init__(self):
        _check_at_least(self, max_train_samples=1, max_eval_samples=1, max_predict_samples=1, max_unlabeled_samples=1)
        _check_at_least(self, early_stopping_patience=1, max_seconds=0)
        _check_at_least(self, max_seq_length=4, doc_stride=0, max_answer_length=1, max_target_length=2, num_beams=1)
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must be above 0 and below 1, got {self.mlm_probability}.")

    @property
    def head(self) -> str:
        """The head that a model needs, as of `Task.head`."""
        return HEADS[self.task_type] if self.task_name is None else get_task(self.task_name).head

    @property
    def files(self) -> dict[str, str]:
        """The files given, by argument name."""
        names = ("train_file", "validation_file", "test_file")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class SeveralRunsArguments:
    """Several runs by one command: which, and how many at a time."""

    _argument_group_name = "several runs"

    compare_baseline: bool = flag(
        False,
        "Does R-Drop help? Train the baseline (alpha 0) and R-Drop on every seed, each run in a process and a "
        "folder of its own, on the same rows in the same order, measure them (--measure), and write report.md, "
        "report.json and pictures into output_dir. Runs that are finished are not repeated.",
    )
    arms: list[str] = flag(
        ["plain", "rdrop"],
        "With compare_baseline: what to train on every seed. plain, the baseline: alpha 0, and dropout as the model "
        "has it. rdrop: as given. plain_longer: plain for as many steps as R-Drop's time buys, as measured in the runs "
        "of the two, the schedule stretched. dropout: alpha 0 at R-Drop's dropout. NAME:FLAG=VALUE[,FLAG=VALUE]: rdrop "
        "with other values, such as strong:rdrop_alpha=16.",
    )
    seeds: list[int] = flag([1, 2, 3, 4, 5], "With compare_baseline: the seeds.")
    tune: int | None = flag(
        None,
        "Which alpha, dropout and learning rate suit this data? Train so many trials, the first of them the "
        "baseline (alpha 0) and the second the given settings, the others drawn by Optuna, and write trials.md and "
        "the winning recipe.yaml into output_dir. Trials that are finished are not repeated; with a larger number "
        "the search goes on. Needs: pip install optuna.",
    )
    tune_metric: str | None = flag(
        None,
        "With tune: the score of the validation rows to search by, and to choose the checkpoints of a trial by; a loss "
        "(eval_loss; with label_smoothing_factor, that of the smoothed labels) is minimized, another score maximized. "
        "Default: the first score of --metric or of the task.",
    )
    parallel: int = flag(
        1, "How many runs at a time. Processor cores are shared between them; with several GPUs each run gets one."
    )
    engine: Literal["local", "ray"] = flag(
        "local",
        "Where the runs run. local: here. ray: on the machines of a Ray cluster (pip install ray; RAY_ADDRESS "
        "names it), which need the same paths.",
    )

    def __post_init__(self):
        _check_at_least(self, parallel=1, tune=1)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise ValueError(f"seeds must be different whole numbers from 0 to 2**32 - 1, got {self.seeds}.")


def _check_at_least(arguments: Any, **lowest: int) -> None:
    for name, low in lowest.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}.")


def defaults_of_early_stopping(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """What early stopping needs of the trainer's arguments, as far as it is not given.

    Raises:
        ValueError: what is given does not go with it.
    """
    if values["early_stopping_patience"] is None:
        return {}
    when, saved = (str(getattr(values[name], "value", values[name])) for name in ("eval_strategy", "save_strategy"))
    when = when if "eval_strategy" in given else "epoch"
    if when == "no":
        raise ValueError("early_stopping_patience stops by the scores of evaluations, but eval_strategy is no.")
    if saved not in (when, "best") and "save_strategy" in given and "load_best_model_at_end" not in given:
        raise ValueError(
            f"early_stopping_patience ends with the best model, so save_strategy must be {when} or best, as "
            f"eval_strategy is {when}, got {saved}; with --load_best_model_at_end false the last model is kept."
        )
    defaults = {"eval_strategy": when, "save_strategy": when, "load_best_model_at_end": True}
    defaults["save_steps"] = values["eval_steps"] or values["logging_steps"]
    return {name: value for name, value in defaults.items() if name not in given}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuse values that `TrainingArguments` takes and that fail, or are ignored, only later."""
    at_least = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
        "seed": 0,
        "learning_rate": 0,
        "weight_decay": 0,
        "label_smoothing_factor": 0,
    }
    for name, low in at_least.items():
        if not (math.isfinite(values[name]) and values[name] >= low):
            raise ValueError(f"{name} must be a number of at least {low}, got {values[name]}.")
    # transformers would train nothing, or for max_steps 0 a single step
    if values["max_steps"] == 0:
        raise ValueError("max_steps must be at least 1, or -1 for as many as num_train_epochs makes, got 0.")
    if values["max_steps"] < 0 and not 0 < values["num_train_epochs"] < math.inf:
        raise ValueError(f"num_train_epochs must be a number above 0, got {values['num_train_epochs']}.")
    if values["seed"] >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {values['seed']}.")
    if values["label_smoothing_factor"] >= 1:
        raise ValueError(f"label_smoothing_factor must be below 1, got {values['label_smoothing_factor']}.")
    if values["output_dir"] == "":
        raise ValueError("output_dir is empty, expected the name of a folder.")
