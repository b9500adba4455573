"""The command line: `python -m rdrop_trainer.hub push|list|show|download|release`."""

from __future__ import annotations

import argparse
import json
import logging
import runpy
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import HubError, InputError, one_line

# Each command imports what it needs: --help and wrong options shall not wait for torch and transformers
if TYPE_CHECKING:
    from .find import CheckpointRecord

_WIDTH = 100  # columns of the tables
_RELEASE = "rdrop_trainer.script.release"  # a program of its own: it trains, so it stands above the hub


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 for success, 2 for wrong input, 3 for a failure of the Hub, 130 for an interruption.
    """
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
    if dry_run:
        return _describe(path, repo_id, options["token"])
    from .push import push_checkpoint

    commit = push_checkpoint(path, repo_id, **options)
    print(one_line(commit.pr_url or commit.commit_url))


def _describe(path: str, repo_id: str, token: str | None) -> None:
    """What a push would send, from the same checks, without the Hub."""
    from huggingface_hub import ModelCard

    from .card_data import BLOCK
    from .client import check_repo_id
    from .folder import CARD, read_checkpoint

    checkpoint = read_checkpoint(path, token)
    contents = checkpoint.contents(check_repo_id(repo_id, with_owner=False))
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in sorted(contents.items())}
    for name, size in {**sizes, f"in all, to {repo_id}": sum(sizes.values())}.items():
        print(f"{size:>16,}  {name}")
    card = ModelCard(checkpoint.card, ignore_metadata_errors=True).data
    alpha = card[BLOCK].get("alpha") if isinstance(card.get(BLOCK), dict) else None
    told = {"alpha": alpha, "base model": card.base_model, "tags": ", ".join(map(str, card.tags or ()))}
    told["results"] = len(card.eval_results or ())
    made = CARD if checkpoint.has_card else f"made from the configuration, unless the repository has a {CARD}"
    print(f"card: {made}; " + "; ".join(f"{name} {value}" for name, value in told.items() if value is not None))
    stays = sorted(entry.name for entry in checkpoint.folder.iterdir() if entry.name not in contents)
    print(f"stays here: {', '.join(stays) or 'nothing'}")
    print("checked: weights and JSON are whole; no token; no pickled file; no local path in a configuration")


def _list(as_json: bool, **options) -> None:
    from .find import list_checkpoints

    records = list_checkpoints(**options)
    if as_json:
        print(json.dumps([_plain(record) for record in records], indent=2, ensure_ascii=False))
        return
    if not records:
        print("none found", file=sys.stderr)
        return
    wide = min(44, max(len(record.repo_id) for record in records))
    print(f"{'alpha':>5}  {'task':20}  {'repository':{wide}}  results")
    for record in records:
        scores = ", ".join(f"{result.metric} {result.value:.4g}" for result in record.results)
        row = f"{_alpha(record):>5.5}  {_cut(record.task or '-', 20):20}  {_cut(record.repo_id, wide):{wide}}  "
        print(row + _cut(scores or "-", _WIDTH - len(row)))


def _show(as_json: bool, **options) -> None:
    from .card_data import settings_block
    from .find import show_checkpoint

    record = show_checkpoint(**options)
    if as_json:
        print(json.dumps(_plain(record), indent=2, ensure_ascii=False))
        return
    lines: dict[str, Any] = {"repository": record.repo_id, "revision": record.revision, "task": record.task}
    lines |= {"base model": record.base_model, "changed": record.last_modified, "downloads": record.downloads}
    if record.settings is not None:
        lines |= settings_block(record.settings, record.dropout, record.version or "-")
        lines["dropout"] = ", ".join(f"{name} {value:g}" for name, value in record.dropout.items()) or None
    for name, value in lines.items():
        print(_cut(f"{name:24} {'-' if value is None else value}", _WIDTH))
    for result in record.results:
        data = " ".join(part for part in (result.dataset, result.config, result.split) if part)
        print(_cut(f"{_cut(result.metric, 24):24} {result.value:<10.4f} {data}", _WIDTH))


def _download(**options) -> None:
    from .download import download_checkpoint

    print(download_checkpoint(**options))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _alpha(record: CheckpointRecord) -> str:
    return "-" if record.alpha is None else f"{record.alpha:g}"


def _plain(record: CheckpointRecord) -> dict[str, Any]:
    plain = {**asdict(record), "alpha": record.alpha, "results": [result._asdict() for result in record.results]}
    plain["last_modified"] = record.last_modified and record.last_modified.isoformat()
    return plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m rdrop_trainer.hub",
        description="Push, find, download and release R-Drop checkpoints.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="push | list | show | download | release")

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
    push.add_argument("--commit_message", help="default: Upload R-Drop checkpoint")
    push.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    push.add_argument("--dry_run", action="store_true", help="check all, list what would be sent, and ask no Hub")

    found = command("list", _list, "List the R-Drop checkpoints on the Hub.")
    found.add_argument("--task", help="such as text-classification, or mrpc")
    found.add_argument("--base_model", help="the model that was fine-tuned")
    found.add_argument("--author", help="user or organisation")
    found.add_argument("--limit", type=int, help="at most so many")
    found.add_argument("--json", action="store_true", dest="as_json", help="everything that is known, as JSON")

    show = command("show", _show, "Show what a checkpoint's card tells: settings and results.")
    show.add_argument("repo_id", help="USER/NAME")
    show.add_argument("--revision", help="branch, tag or commit (default: main)")
    show.add_argument("--json", action="store_true", dest="as_json", help="as JSON")

    download = command("download", _download, "Download a checkpoint, verify every file, and print where it is.")
    download.add_argument("repo_id", help="USER/NAME")
    download.add_argument("--revision", help="branch, tag or commit (default: main)")
    download.add_argument("--local_dir", help="folder to copy it to (default: the cache alone)")

    # Listed here; its options are those of its program
    commands.add_parser("release", help="Train recipes with and without R-Drop, and push both: release --help")
    return parser


if __name__ == "__main__":
    sys.exit(main())
