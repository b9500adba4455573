"""The command line: `python -m rdrop_trainer.hub push|list|show|download`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..errors import HubError, InputError
from .download import download_checkpoint
from .find import CheckpointRecord, list_checkpoints, show_checkpoint
from .push import push_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 when all went well, 2 for input that has to be mended, 3 when the Hub did not do it."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
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


def _push(path: str, repo_id: str, **options) -> None:
    commit = push_checkpoint(path, repo_id, **options)
    print(commit.pr_url or commit.commit_url)


def _list(as_json: bool, **options) -> None:
    records = list_checkpoints(**options)
    if as_json:
        print(json.dumps([_plain(record) for record in records], indent=2, ensure_ascii=False))
        return
    print(f"{'alpha':>5}  {'task':24}  {'repository':40}  results")
    for record in records:
        scores = ", ".join(f"{result.metric} {result.value:.4g}" for result in record.results[:3])
        print(f"{_alpha(record):>5}  {record.task or '-':24}  {record.repo_id:40}  {scores or '-'}")
    if not records:
        print("none found", file=sys.stderr)


def _show(as_json: bool, **options) -> None:
    record = show_checkpoint(**options)
    if as_json:
        print(json.dumps(_plain(record), indent=2, ensure_ascii=False))
        return
    lines = {"repository": record.repo_id, "revision": record.revision, "task": record.task}
    lines |= {"base model": record.base_model, "written by": record.version and f"rdrop-trainer {record.version}"}
    if record.settings is not None:
        lines |= {name.removeprefix("rdrop_"): value for name, value in asdict(record.settings).items()}
    lines |= record.dropout
    for name, value in lines.items():
        print(f"{name:24} {'-' if value is None else value}")
    for result in record.results:
        data = " ".join(part for part in (result.dataset, result.config, result.split) if part)
        print(f"{result.metric:24} {result.value:.4f}  {data}")


def _download(**options) -> None:
    print(download_checkpoint(**options))


def _alpha(record: CheckpointRecord) -> str:
    return "-" if record.alpha is None else f"{record.alpha:g}"


def _plain(record: CheckpointRecord) -> dict[str, Any]:
    plain = {**asdict(record), "alpha": record.alpha, "results": [result._asdict() for result in record.results]}
    plain["last_modified"] = record.last_modified and record.last_modified.isoformat()
    return plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m rdrop_trainer.hub", description="Push, find and download R-Drop checkpoints.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="push | list | show | download")

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

    found = command("list", _list, "List the R-Drop checkpoints on the Hub.")
    found.add_argument("--task", help="such as text-classification, or mrpc")
    found.add_argument("--base_model", help="the model that was fine-tuned")
    found.add_argument("--author", help="user or organisation")
    found.add_argument("--limit", type=int, help="at most so many")
    found.add_argument("--json", action="store_true", dest="as_json", help="all that is known, as JSON")

    show = command("show", _show, "Show what a checkpoint's card tells: settings and results.")
    show.add_argument("repo_id", help="USER/NAME")
    show.add_argument("--revision", help="branch, tag or commit (default: main)")
    show.add_argument("--json", action="store_true", dest="as_json", help="as JSON")

    download = command("download", _download, "Download a checkpoint, verify every file, and print where it is.")
    download.add_argument("repo_id", help="USER/NAME")
    download.add_argument("--revision", help="branch, tag or commit (default: main)")
    download.add_argument("--local_dir", help="folder to put it in (default: one in HF_HOME)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
