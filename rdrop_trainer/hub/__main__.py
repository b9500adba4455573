"""The command line: `python -m rdrop_trainer.hub push|list|download|release`."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._console import print_any_text
from ..errors import HubError, InputError, one_line

# Each command imports what it needs: --help and wrong options shall not wait for torch and transformers
if TYPE_CHECKING:
    from .find import CheckpointRecord

_RELEASE = "rdrop_trainer.script.release"  # a program of its own: it trains, so it stands above the hub


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 for success, 2 for wrong input, 3 for a failure of the Hub, 130 for an interruption.
    """
    print_any_text()
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["release"]:
        return _release(argv[1:])
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    try:
        run(**arguments)
    except (InputError, HubError) as error:
        print(f"rdrop_trainer.hub: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    except KeyboardInterrupt:
        return 130
    return 0


def _release(argv: Sequence[str]) -> int:
    """What `python -m` with that program does, in this process."""
    sys.argv[1:] = argv
    try:
        runpy.run_module(_RELEASE, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _push(path: str, repo_id: str, dry_run: bool, **options) -> None:
    from .push import check_branch, push_checkpoint

    check_branch(options["revision"], options["create_pr"])
    if dry_run:
        return _describe(path, repo_id, options["token"])
    commit = push_checkpoint(path, repo_id, **options)
    print(one_line(commit.pr_url or commit.commit_url))


def _describe(path: str, repo_id: str, token: str | None) -> None:
    """What a push would send, from the same checks, without the Hub."""
    from huggingface_hub import ModelCard

    from .card_data import BLOCK
    from .client import check_repo_id
    from .folder import CARD, read_checkpoint
    from .model_card import shown

    checkpoint = read_checkpoint(path, token)
    contents = checkpoint.contents(check_repo_id(repo_id))
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in sorted(contents.items())}
    for name, size in {**sizes, f"in all, to {repo_id}": sum(sizes.values())}.items():
        print(f"{size:>16,}  {name}")
    if isinstance(text := contents.get(CARD), bytes):
        card = ModelCard(text.decode(), ignore_metadata_errors=True).data.to_dict()
        told = {
            name: card.get(key) for name, key in (("settings", BLOCK), ("base model", "base_model"), ("tags", "tags"))
        }
        print("\n".join(f"card: {name}: {one_line(shown(value))}" for name, value in told.items() if value))
    stays = sorted(entry.name for entry in checkpoint.folder.iterdir() if entry.name not in contents)
    print(f"stays here: {', '.join(stays) or 'nothing'}")
    print("checked: weights and JSON are whole; no token; no pickled file; no local path in a configuration")


def _list(**options) -> None:
    from .find import list_checkpoints

    records = list_checkpoints(**options)
    if not records:
        print("none found", file=sys.stderr)
        return
    wide = min(44, max(len(record.repo_id) for record in records))
    for name, task, alpha, scores in [("repository", "task", "alpha", "results"), *map(_row, records)]:
        print(f"{alpha:>5.5}  {_cut(task, 20):20}  {_cut(name, wide):{wide}}  {_cut(scores, 69 - wide)}")


def _row(record: CheckpointRecord) -> tuple[str, str, str, str]:
    scores = ", ".join(f"{result.metric} {result.value:.4g}" for result in record.results)
    return record.repo_id, record.task or "-", "-" if record.alpha is None else f"{record.alpha:g}", scores or "-"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _download(**options) -> None:
    from .download import download_checkpoint

    print(download_checkpoint(**options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m rdrop_trainer.hub",
        description="Push, find, download and release R-Drop checkpoints.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="push | list | download | release")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--token", help="of the Hub; by default the stored one (`hf auth login`, or HF_TOKEN)")
        return sub

    push = command("push", _push, "Push a saved folder: model, tokenizer and card in one commit.")
    push.add_argument("path", help="the folder")
    push.add_argument("repo_id", help="USER/NAME; made if there is none")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--revision", help="branch, made if there is none (default: main)")
    push.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    push.add_argument("--dry_run", action="store_true", help="check all, list what would be sent, and ask no Hub")

    found = command("list", _list, "List the R-Drop checkpoints on the Hub.")
    found.add_argument("--task", help="such as text-classification, or mrpc")
    found.add_argument("--base_model", help="the model that was fine-tuned")
    found.add_argument("--author", help="user or organisation")
    found.add_argument("--alpha", type=float, help="just this weight of the divergence, such as 4")

    download = command("download", _download, "Download a checkpoint, verify every file, and print where it is.")
    download.add_argument("repo_id", help="USER/NAME")
    download.add_argument("--revision", help="branch, tag or commit (default: main)")

    # Listed here; its options are those of its program
    commands.add_parser("release", help="Train recipes with and without R-Drop, and push both: release --help")
    return parser


if __name__ == "__main__":
    sys.exit(main())
