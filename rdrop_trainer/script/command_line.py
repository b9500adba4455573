"""Reading the command line of `run_glue_rdrop.py`: one parser for all flags, and recipes in files."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..errors import InputError
from ..glue.strict import parse_json, parse_yaml
from ..training_args import RDropArguments, RDropSeq2SeqTrainingArguments, RDropTrainingArguments
from . import program
from .adapter import AdapterArguments
from .arguments import DataArguments, ModelArguments, SeveralRunsArguments, check_ranges, defaults_of_early_stopping

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
class Flags:
    """The flags of a command line, before the training arguments are made of them.

    Attributes:
        model, adapter, data, several: their groups.
        values: the values of all flags, by name.
        given: the values of those that were given, in the recipe or as flags, as a recipe states them.
    """

    model: ModelArguments
    adapter: AdapterArguments
    data: DataArguments
    several: SeveralRunsArguments
    values: Mapping[str, Any]
    given: Mapping[str, Any]

    def command(self) -> CommandLine:
        """The whole command line."""
        generates = self.data.head == "seq2seq"
        with program.wrong_settings_as_input_errors():
            training = _build(RDropSeq2SeqTrainingArguments if generates else RDropTrainingArguments, self.values)
        return CommandLine(**vars(self), training=training)


@dataclass(frozen=True)
class CommandLine(Flags):
    """A command line that was read, with its training arguments."""

    training: RDropTrainingArguments


@dataclass
class _RDropGroup(RDropArguments):
    _argument_group_name = "R-Drop"

    # Nobody has a dropout of his own here, so the flag may be short
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
  {program} recipes/bert-base-mrpc.yaml --output_dir runs/mrpc --compare_baseline --seeds 1 2 3 4 5
  {program} --model_name_or_path bert-base-cased --task_name mrpc --tune 20
"""


_RECIPES = (".yaml", ".yml", ".json")


class _Parser(HfArgumentParser):
    def add_argument_group(self, title=None, *args, **kwargs):
        return super().add_argument_group(title, *args, **{"description": _DESCRIPTIONS.get(title), **kwargs})

    def error(self, message: str) -> NoReturn:
        # Without the usage of two hundred flags that argparse would print first
        raise InputError(f"{message} (--help lists all flags)")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _make_parser() -> HfArgumentParser:
    """One flag for each field of the dataclasses, grouped."""
    groups: list[Any] = [ModelArguments, DataArguments, SeveralRunsArguments, _RDropGroup, AdapterArguments]
    groups.append(_TrainingGroup)
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


def read_flags(argv: Sequence[str]) -> Flags:
    """Read a command line, without the imports of a training: seconds pass before those are done.

    Args:
        argv: the words after the program's name; the first may be a recipe file.
    """
    parser, words = _make_parser(), list(argv)
    if words and not words[0].startswith("-"):
        recipe = _recipe_flags(Path(words[0]), parser)
        try:
            _parse(parser, recipe)
        except InputError as error:
            raise InputError(f"{words[0]}: {error}") from error
        words[:1] = recipe
    values = vars(_parse(parser, words))
    actions = parser._option_string_actions
    names = [actions[flag].dest for flag in (word.split("=")[0] for word in words) if flag in actions]
    given = {name: _plain(values[name]) for name in names}
    with program.wrong_settings_as_input_errors():
        values |= defaults_of_early_stopping(values, given)
        kinds = (ModelArguments, AdapterArguments, DataArguments, SeveralRunsArguments)
        model, adapter, data, several = (_build(cls, values) for cls in kinds)
        _build(RDropArguments, values)
        check_ranges(values)
    return Flags(model, adapter, data, several, values, given)


def parse_arguments(argv: Sequence[str]) -> CommandLine:
    """Read a command line as `read_flags` does, and make the training arguments."""
    return read_flags(argv).command()


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    return cls(**{f.name: values[f.name] for f in fields(cls) if f.init and f.name in values})


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


def _recipe_flags(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The entries of a recipe file as command-line flags, so that one parser checks both."""
    if path.suffix not in _RECIPES:
        raise InputError(f"{path}: expected a .yaml or .json recipe first, or flags that begin with --{_near(path)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        recipe = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such recipe{_near(path)}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a .yaml or .json file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{_of_a_path(error.msg)}") from error
    except yaml.YAMLError as error:
        line = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path}{line}: not valid YAML: {problem}{_of_a_path(problem)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected a mapping of flags to values, got {type(recipe).__name__}")
    choices = {action.dest: action.choices or () for action in parser._actions}
    no = {key: "no" for key, value in recipe.items() if value is False and "no" in choices.get(key, ())}
    return flags_of(recipe | no)  # YAML reads a bare no as false


def _of_a_path(problem: str) -> str:
    """What to say of a backslash in quotes, which is most often in a path of Windows."""
    return "; write paths with / in the place of \\" if "escape" in problem else ""


def _near(path: Path) -> str:
    """What to say of recipes whose names are near to that of one that is not there."""
    folders = dict.fromkeys([path.parent, Path("recipes")])
    there = {one.stem: one for folder in folders for one in sorted(folder.glob("*")) if one.suffix in _RECIPES}
    name = path.stem if path.suffix in _RECIPES else path.name
    close = difflib.get_close_matches(name, there, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(str(there[name]) for name in close)}?" if close else ""


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
