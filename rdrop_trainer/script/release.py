"""`python -m rdrop_trainer.hub release`: a family of checkpoints. Each recipe is trained with and without R-Drop, the
best pair is pushed, and all of them are put into one collection. What is done already is not repeated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._console import print_any_text
from ..errors import HubError, InputError, one_line
from ..hub.client import check_repo_id, offline
from ..hub.collection import keep_collection
from ..hub.push import push_checkpoint
from ..report.tables import markdown_table
from ..run_folder import write_text
from .command_line import CommandLine, parse_arguments
from .comparison import compare_baseline, comparison_of, plan_comparison
from .estimate import size
from .program import INCOMPLETE, INTERRUPTED, NOT_PUSHED, WRONG_INPUT
from .release_pair import Pair

TABLE = "results.md"
_DESCRIPTION = "R-Drop and plain fine-tuning on the same rows and seeds. The notes are the rows of a table of results."


@dataclass(frozen=True)
class Member:
    """A recipe of the release.

    Attributes:
        folder: of its comparison.
        command: what trains the comparison; None where a finished one was given.
        names: of the repositories, R-Drop's first.
    """

    folder: Path
    command: CommandLine | None
    names: tuple[str, str]

    @classmethod
    def of(cls, word: str, options: argparse.Namespace) -> Member:
        """What a word of the command line stands for."""
        path = Path(word)
        name = path.resolve().name if path.is_dir() else path.stem
        rdrop, plain = (check_repo_id(f"{options.namespace}/{name}-{arm}") for arm in ("rdrop", "plain"))
        if path.is_dir():
            Pair.best(path, (rdrop, plain))
            return cls(path, None, (rdrop, plain))
        folder = options.output_dir / name
        flags = ["--compare_baseline", "--seeds", *map(str, options.seeds), *(["--dry_run"] * options.dry_run)]
        try:
            command = parse_arguments([word, *flags, "--output_dir", str(folder)])
            comparison_of(command)
            base = Path(command.model.model_name_or_path or "")
            if command.adapter.use_peft and (base / "config.json").is_file():
                raise InputError(f"--use_peft: others do not have {base}; push that first and give its name on the Hub")
        except InputError as error:
            raise InputError(str(error) if word in str(error) else f"{word}: {error}") from error
        return cls(folder, command, (rdrop, plain))

    def plan(self) -> str:
        """What would be trained and pushed, and what it costs, for the terminal. The Hub is not asked."""
        pushed = f"pushes    {' and '.join(self.names)}, unless they are there"
        if self.command is None:
            pair = Pair.best(self.folder, self.names)
            best = f"best      seed {pair.seed} of {len(pair.runs)}, by {pair.score.name}"
            weights = sum(
                path.stat().st_size for path in (self.folder / f"rdrop-seed{pair.seed}").glob("*.safetensors")
            )
            return f"A finished comparison in {self.folder}\n{best}\n{pushed}: {size(2 * weights)} in all"
        try:
            with offline():
                return f"{plan_comparison(self.command)}\n{pushed}"
        except InputError as error:
            args, seeds = self.command.training, len(self.command.several.seeds)
            length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
            runs = f"{seeds} runs of {length} for each of {' and '.join(self.command.several.arms)}"
            lines = [f"A comparison in {self.folder}", f"runs      {runs}"]
            return "\n".join([*lines, f"time      not known without a network: {error}", pushed])


def release(options: argparse.Namespace) -> int:
    """Train, push and collect what is not there yet; the exit code, 1 when runs failed, whose recipes are left out."""
    members = [Member.of(word, options) for word in options.recipes]
    names = [member.names[0].lower() for member in members]  # as the Hub and some disks tell them apart
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two recipes would be pushed to {twice}; rename one of them")
    if options.dry_run:
        print("\n\n".join(member.plan() for member in members))
        collection = f"collection {options.collection!r} of {options.namespace}: {2 * len(members)} models"
        print(f"\nin all    {collection}, the table in {options.output_dir / TABLE}\nwritten   nothing, nothing pushed")
        return 0
    rows: dict[tuple[str, str], Mapping[str, str]] = {}
    where = _collect(options, {})  # first, so that a token without the right is noticed before hours of training
    incomplete = []
    for member in members:
        code = 0 if member.command is None else compare_baseline(member.command)
        if code == INTERRUPTED:
            return code
        if code:
            incomplete.append(member.folder)
            continue
        pair = Pair.best(member.folder, member.names)
        for folder, name in zip(pair.stage(options.token), pair.names, strict=True):
            commit = push_checkpoint(folder, name, private=options.private or None, token=options.token)
            print(f"{name}: {one_line(commit.commit_url)}", flush=True)
        rows[pair.names] = pair.row()
        _collect(options, {name: _note(pair.row()) for name in pair.names})
    if rows:
        table = _table(rows)
        write_text(options.output_dir / TABLE, table)
        print(f"\n{table}\ntable      {options.output_dir / TABLE}\ncollection {where}")
    if incomplete:
        print(f"Left out, because runs failed: {', '.join(map(str, incomplete))}. The same command tries them again.")
    return INCOMPLETE if incomplete else 0


def _collect(options: argparse.Namespace, notes: Mapping[str, str]) -> str:
    """The collection's address, when these models are in it."""
    own = {"description": _DESCRIPTION, "private": options.private, "token": options.token}
    return one_line(keep_collection(options.collection, options.namespace, notes, **own).url)


def _note(row: Mapping[str, str]) -> str:
    """A row of the table as the text of a note, which has no tables."""
    return "; ".join(f"{column}: {value}" for column, value in row.items())


def _table(rows: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    header = ["checkpoint", "its baseline", *next(iter(rows.values()))]
    return markdown_table(header, [[*names, *row.values()] for names, row in rows.items()]) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options of a release."""
    parser = argparse.ArgumentParser(
        "python -m rdrop_trainer.hub release",
        description="Train recipes with and without R-Drop, push the best model of each and its baseline, with cards "
        "that link both and the report, and put all into one collection. The same command goes on where it ended, and "
        "repeats nothing that is there.",
        allow_abbrev=False,
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe file, or folder of a finished comparison")
    parser.add_argument("--namespace", required=True, help="user or organisation that gets NAME-rdrop and NAME-plain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/release"), help="default: runs/release")
    parser.add_argument("--collection", default="R-Drop checkpoints", help="its title (default: R-Drop checkpoints)")
    parser.add_argument("--private", action="store_true", help="make new repositories and the collection private")
    parser.add_argument("--token", help="of the Hub; by default the stored one (`hf auth login`, or HF_TOKEN)")
    parser.add_argument("--dry_run", action="store_true", help="say what would happen and what it costs; ask no Hub")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    print_any_text()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        return release(parser().parse_args(argv))
    except (InputError, HubError) as error:
        print(f"rdrop_trainer.hub release: error: {error}", file=sys.stderr)
        return WRONG_INPUT if isinstance(error, InputError) else NOT_PUSHED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
