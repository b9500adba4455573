"""The command line of `run_glue_rdrop.py`: dataclasses, one parser, and recipes in files."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..errors import InputError
from ..glue.strict import parse_json, parse_yaml
from ..glue.tasks import TASKS, get_task
from ..training_args import RDropArguments, RDropSeq2SeqTrainingArguments, RDropTrainingArguments
from . import program

# Help for flags of TrainingArguments that mean something of their own here
_HELP = {
    "resume_from_checkpoint": "auto: go on from the last whole checkpoint in output_dir, if there is one (the "
    "default). none: start afresh. Or the path of a checkpoint.",
    "output_dir": "Folder of the run: model, checkpoints, results, leaderboard files. Default: "
    "runs/<task>-alpha<rdrop_alpha>-seed<seed>.",
    "push_to_hub": "When everything is on disk, push model, tokenizer and card to the Hub in one commit, to "
    "hub_model_id. A wrong token is said before training. If the push fails, nothing else does: the run finishes, says "
    "the command that goes on, and exits with 3.",
    "hub_model_id": "Where to push: USER/NAME, or a NAME of your own. Default: the name of output_dir.",
    "hub_strategy": "end: once, when all is on disk. every_save: also at every checkpoint; checkpoint and "
    "all_checkpoints do the same here, since optimizer states are never pushed.",
    "hub_token": "Token to push with. It shows in the list of processes: `hf auth login` or HF_TOKEN does not.",
    "do_train": "Train. Without do_train, do_eval and do_predict: train and evaluate as far as the data allows.",
}


@dataclass(frozen=True)
class ModelArguments:
    """Which model."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model on the Hub, or a folder that holds one (needed unless --demo)."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer, where it is not the model's own: a name on the Hub or a folder."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads from the Hub are kept."})
    token: str | None = field(
        default=None, metadata={"help": "Token for the Hub; by default the one stored by `hf auth login`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that the Hub repository brings along. Read it first."}
    )


@dataclass(frozen=True)
class DataArguments:
    """Which task, and where its data comes from: the Hub, a folder of the official files, or your own files."""

    _argument_group_name = "data"

    task_name: str | None = field(
        default=None,
        metadata={
            "help": "One of " + ", ".join(TASKS) + ". Without it: your own files, their labels taken from train_file."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the task's official files: glue_data (.tsv) or CLUE's layout (.json), the task's own "
            "folder or the one above it. Without it and without files, the task comes from the Hub."
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Training data: .csv, .tsv, .json, .jsonl or .parquet."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Evaluation data, in one of these formats."})
    test_file: str | None = field(default=None, metadata={"help": "Data to predict, in one of these formats."})
    unlabeled_file: str | None = field(
        default=None,
        metadata={
            "help": "Texts without labels (also .txt, one a line), mixed into every batch, --rdrop_unlabeled_ratio of "
            "them for each labeled row: they add the divergence and no task loss. Texts that are also in another "
            "split are left out."
        },
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "Names of the one or two text columns in your files."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Name of the label column. Default: label."})
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer inputs are cut, in tokens; the passages of cmrc2018 and drcd into windows of this length. "
            "Default: 128, for csl_title 256, for c3, cmrc2018 and drcd 512."
        },
    )
    doc_stride: int = field(
        default=128,
        metadata={
            "help": "cmrc2018 and drcd: how many tokens two windows of a long passage have in common, at most a third "
            "of max_seq_length."
        },
    )
    max_answer_length: int = field(default=50, metadata={"help": "cmrc2018 and drcd: longest answer, in tokens."})
    max_target_length: int = field(
        default=64, metadata={"help": "csl_title: longer titles are cut, and none longer is written, in tokens."}
    )
    num_beams: int = field(
        default=4, metadata={"help": "csl_title: beams of the search for the best title; 1 takes the best next token."}
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every row to max_seq_length instead of to the longest of its batch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first rows to train."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first rows to evaluate."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use only the first rows to predict."})
    max_unlabeled_samples: int | None = field(default=None, metadata={"help": "Use only the first unlabeled rows."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Delete the checkpoints, results and leaderboard files that an earlier run left in output_dir, as "
            "soon as training begins; its model is replaced at the end. Without it, a finished run is refused."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Do all that comes before training: read the settings, load and tokenise the data, load the model, "
            "make optimizer and schedule; then compute the loss of one batch, predict one of every other split, and "
            "say what the run would do. Nothing is trained, written to output_dir or pushed."
        },
    )
    measure_stability: bool = field(
        default=False,
        metadata={
            "help": "Measure beside the scores how often the model's own dropout and small edits of the text flip "
            "its predictions, and how well its confidence is calibrated (some twenty predictions of every evaluation "
            "row), and, as it trains, the divergence of two passes of 100 training rows. The edits go into edits.csv."
        },
    )
    demo: bool = field(
        default=False,
        metadata={
            "help": "Compare baseline and R-Drop on a small bilingual data set and a tiny model that are made on the "
            "spot: no network, no other flag, a minute or two."
        },
    )

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "max_unlabeled_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name, low in (("doc_stride", 0), ("max_answer_length", 1), ("max_target_length", 2), ("num_beams", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        if self.max_seq_length is not None and self.max_seq_length < 4:
            raise ValueError(f"max_seq_length must be at least 4 tokens, got {self.max_seq_length}.")

    @property
    def files(self) -> dict[str, str]:
        """The files given, by argument name."""
        names = ("train_file", "validation_file", "test_file")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class SeveralRunsArguments:
    """Several runs by one command: which, and how many at a time."""

    _argument_group_name = "several runs"

    compare_baseline: bool = field(
        default=False,
        metadata={
            "help": "Does R-Drop help? Train the baseline (alpha 0) and R-Drop on every seed, each run in a process "
            "and a folder of its own, on the same rows in the same order, measure their stability too, and write "
            "report.md, report.json and pictures into output_dir. Runs that are finished are not repeated."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "With compare_baseline: the seeds."}
    )
    tune: int | None = field(
        default=None,
        metadata={
            "help": "Which alpha, dropout and learning rate suit this data? Train so many trials, the first of them "
            "the baseline (alpha 0) and the second the given settings, the others drawn by Optuna, and write trials.md "
            "and the winning recipe.yaml into output_dir. Trials that are finished are not repeated; with a larger "
            "number the search goes on. Needs: pip install optuna."
        },
    )
    parallel: int = field(
        default=1,
        metadata={
            "help": "How many runs at a time. Processor cores are shared between them; with several GPUs each run gets "
            "one."
        },
    )
    engine: str = field(
        default="local",
        metadata={
            "help": "Where the runs run. local: here. ray: on the machines of a Ray cluster (pip install ray; "
            "RAY_ADDRESS names it), which need the same paths.",
            "choices": ["local", "ray"],
        },
    )

    def __post_init__(self):
        for name in ("parallel", "tune"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise ValueError(f"seeds must be different whole numbers from 0 to 2**32 - 1, got {self.seeds}.")


class CommandLine(NamedTuple):
    """A command line that was read.

    Attributes:
        given: names of the arguments that were given, in the recipe or as flags.
        words: the words of the command line, with those of the recipe in its place.
    """

    model: ModelArguments
    data: DataArguments
    training: RDropTrainingArguments
    several: SeveralRunsArguments
    given: set[str]
    words: list[str]


@dataclass
class _RDropGroup(RDropArguments):
    _argument_group_name = "R-Drop"

    # Here nobody has a dropout of his own, so the flag may be short
    rdrop_dropout: float | None = field(
        default=None,
        metadata={**RDropArguments.__dataclass_fields__["rdrop_dropout"].metadata, "aliases": ["--dropout"]},
    )


class _TrainingGroup(TrainingArguments):
    _argument_group_name = "training (transformers.TrainingArguments)"


_DESCRIPTIONS = {
    "R-Drop": """  loss = task loss + alpha / 2 * divergence

  The divergence is the mean symmetric KL between two passes of the same example with different dropout;
  alpha is the paper's. --rdrop_alpha 0 is the baseline: plain fine-tuning with the same exact
  normalisation, one forward per step.""",
}
_EXAMPLES = """examples:
  {program} --demo
  {program} --model_name_or_path bert-base-cased --task_name mrpc --num_train_epochs 3
  {program} --model_name_or_path bert-base-chinese --task_name tnews --data_dir CLUE --dropout 0.3
  {program} --model_name_or_path bert-base-cased --train_file a.csv --validation_file b.csv
  {program} recipes/bert-base-mrpc.yaml --dry_run
  {program} recipes/bert-base-mrpc.yaml --rdrop_alpha 0
  {program} recipes/bert-base-mrpc.yaml --compare_baseline --seeds 1 2 3 4 5
  {program} --model_name_or_path bert-base-cased --task_name mrpc --tune 20
"""


class _Parser(HfArgumentParser):
    def add_argument_group(self, title=None, *args, **kwargs):
        return super().add_argument_group(title, *args, **{"description": _DESCRIPTIONS.get(title), **kwargs})

    def error(self, message: str) -> NoReturn:
        # Without the usage of two hundred flags that argparse would print first
        raise InputError(f"{message} (--help lists all flags)")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def make_parser() -> HfArgumentParser:
    """The parser of the command line; its flags are the fields of the dataclasses, grouped."""
    groups: list[Any] = [ModelArguments, DataArguments, SeveralRunsArguments, _RDropGroup, _TrainingGroup]
    parser = _Parser(
        groups,
        prog=program.name(),
        description="Fine-tune on GLUE, CLUE or your own data with R-Drop.",
        epilog=_EXAMPLES.format(program=program.in_short()),
        formatter_class=_Formatter,
        allow_abbrev=False,
        usage=f"{program.name()} [RECIPE.yaml|RECIPE.json] [--flag value ...]",
    )
    parser.add_argument("recipe", nargs="?", help="A .yaml or .json file of flags; flags given beside it win.")
    parser.set_defaults(hub_strategy="end")
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)
    return parser


def parse_arguments(argv: Sequence[str]) -> CommandLine:
    """Read a command line.

    Args:
        argv: the words after the program's name; the first may be a recipe file.

    Raises:
        InputError: an unknown flag, a value out of range, or a recipe that cannot be read.
    """
    parser = make_parser()
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        recipe = _recipe_flags(Path(argv[0]), parser)
        try:
            _parse(parser, recipe)
        except InputError as error:
            raise InputError(f"{argv[0]}: {error}") from error
        argv = recipe + argv[1:]
    values = vars(_parse(parser, argv))

    def build(cls):
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.init and f.name in values})

    try:
        model, data, several = build(ModelArguments), build(DataArguments), build(SeveralRunsArguments)
        generates = data.task_name is not None and get_task(data.task_name).head == "seq2seq"
        training = build(RDropSeq2SeqTrainingArguments if generates else RDropTrainingArguments)
        _check_ranges(training)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    return CommandLine(model, data, training, several, given, argv)


def given_values(command: CommandLine) -> dict[str, Any]:
    """What a command line gave, by the names of the arguments, as a recipe says it."""
    parser = make_parser()
    values = vars(_parse(parser, command.words))
    flags = (word.split("=")[0] for word in command.words if word.startswith("--"))
    names = dict.fromkeys(parser._option_string_actions[flag].dest for flag in flags)
    return {name: _plain(values[name]) for name in names}


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list) else getattr(value, "value", value)


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    for word in argv:
        if re.search(r"[\0\ud800-\udfff]", word):  # the latter stand for bytes that are not UTF-8
            raise InputError(f"{word!r} holds what is no text in UTF-8; rename the file, if it is one")
    namespace, unknown = parser.parse_known_args(argv)
    if unknown or namespace.recipe:
        raise InputError(_unknown_flag(unknown[0] if unknown else namespace.recipe, parser))
    return namespace


def _check_ranges(args: TrainingArguments) -> None:
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
        value = getattr(args, name)
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"{name} must be a number of at least {low}, got {value}.")
    if args.seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {args.seed}.")
    if args.label_smoothing_factor >= 1:
        raise ValueError(f"label_smoothing_factor must be below 1, got {args.label_smoothing_factor}.")
    if args.output_dir == "":
        raise ValueError("output_dir is empty, expected the name of a folder.")


def _recipe_flags(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The entries of a recipe file as command-line flags, so that one parser checks both."""
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise InputError(f"{path}: expected a .yaml or .json recipe first, or flags that begin with --")
    try:
        text = path.read_text(encoding="utf-8-sig")
        recipe = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        line = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path}{line}: not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected a mapping of flags to values, got {type(recipe).__name__}")
    choices = {action.dest: action.choices or () for action in parser._actions}
    no = {key: "no" for key, value in recipe.items() if value is False and "no" in choices.get(key, ())}
    return flags_of(recipe | no)  # YAML reads a bare no as false


def flags_of(recipe: Mapping[str, Any]) -> list[str]:
    """The entries of a recipe as command-line flags; those that are None are left out."""
    flags = []
    for key, value in recipe.items():
        if isinstance(value, list):  # of one, in one word, which may then begin with "-"
            flags += [f"--{key}={value[0]}"] if len(value) == 1 else [f"--{key}", *map(str, value)]
        elif key == "fsdp" and value is True:
            flags.append("--fsdp")  # "True" is none of the options that it may name
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _unknown_flag(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("--"):
        return f"{word!r} belongs to no flag; flags begin with --, and a recipe file comes first."
    name = word.split("=")[0]
    flags = [flag for flag in parser._option_string_actions if "-" not in flag[2:]]
    close = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), flags, n=2, cutoff=0.6)
    return f"unknown flag {name}" + (f"; did you mean {' or '.join(close)}?" if close else " (--help lists all flags)")
