"""Pushing a checkpoint: one commit that holds the whole of it, or none."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import InputError
from .client import check_repo_id, connect, failure, with_retries
from .folder import CARD, Checkpoint, read_checkpoint

logger = logging.getLogger(__name__)
MAIN = "main"


def push_checkpoint(
    path: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push a saved folder to the Hub: model, tokenizer or processor, card and the pictures it shows.

    Optimizer states, checkpoints in subfolders, pickled files, logs and results are not pushed. Everything is checked
    before the first byte is sent. One commit adds the files, and deletes those of an earlier checkpoint. Rate limits,
    server errors and dropped connections are tried again after a wait; a commit whose answer was lost is not made
    twice. The folder is not changed.

    Args:
        path: the folder.
        repo_id: "user/name"; created if there is none. "name" alone belongs to the user of the token.
        private: whether a new repository is private; None for the account's setting.
        token: None for the stored one.
        revision: branch, created from main if there is none; default main.
        commit_message: default "Upload R-Drop checkpoint".
        create_pr: open a pull request instead of changing the branch main.

    Returns:
        The commit, with `oid`, `commit_url` and, for a pull request, `pr_url`.

    Raises:
        InputError: the folder holds no whole checkpoint, or holds a token; the name or the token is not valid; the
            repository is public, although `private` is asked for.
        HubError: the Hub refused, or could not be reached for half a minute or longer. The message has the command to
            go on with.
    """
    check_repo_id(repo_id, with_owner=False)
    if create_pr and revision not in (None, MAIN):
        raise InputError(f"a pull request is opened against {MAIN}; leave out the revision {revision!r}, or create_pr")
    checkpoint = read_checkpoint(path, token)
    if not checkpoint.has_card:
        logger.warning(f"{path}: has no {CARD}, so the card says little; RDropTrainer.create_model_card writes one")
    message = commit_message or "Upload R-Drop checkpoint"
    command = ["python", "-m", "rdrop_trainer.hub", "push", str(path), repo_id]
    command += ["--private"] * (private is True) + ["--create_pr"] * create_pr
    command += ["--revision", revision] if revision else []
    advice = f"Nothing is lost, all of it is in {path}. To go on: {shlex.join(command)}"
    api = connect(token)
    try:
        repo_id = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if private and not with_retries(lambda: api.model_info(repo_id)).private:
            raise InputError(f"{repo_id}: is there already and public; make it private first, or push to another")
        if create_pr:
            return _push_pull_request(api, repo_id, checkpoint, message)
        if revision not in (None, MAIN) and not revision.startswith("refs/"):
            with_retries(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        return _commit(api, repo_id, checkpoint, message, revision or MAIN)
    except InputError:
        raise
    except KeyboardInterrupt:
        logger.error(f"{path} was not pushed to {repo_id}: interrupted. {advice}")
        raise
    except Exception as error:
        # Errors of uploads show signed addresses, so the cause is not shown
        raise failure(f"{path} was not pushed to {repo_id}", error, advice) from None


def _commit(api: HfApi, repo_id: str, checkpoint: Checkpoint, message: str, revision: str) -> CommitInfo:
    """Make the commit. A further try starts anew, but sends no file twice and makes no second commit."""
    contents = checkpoint.contents(repo_id)

    def attempt() -> CommitInfo:
        head = api.model_info(repo_id, revision=revision)
        there = {file.rfilename for file in head.siblings or ()}
        # Made anew for each try: the client keeps in them what it knew of the repository
        operations: list = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in contents.items()
            if name != CARD or checkpoint.has_card or CARD not in there
        ]
        operations += [CommitOperationDelete(name) for name in sorted(there) if checkpoint.replaces(name)]
        # With the parent named, a commit whose answer was lost is not made twice
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha)

    return with_retries(attempt)


def _push_pull_request(api: HfApi, repo_id: str, checkpoint: Checkpoint, title: str) -> CommitInfo:
    """Open a pull request, commit to it, and mark it ready."""

    def titled() -> set[int]:
        requests = api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="all")
        return {request.num for request in requests if request.title == title}

    before = with_retries(titled)

    def attempt() -> int:
        made = titled() - before  # by an earlier try whose answer was lost
        return min(made) if made else api.create_pull_request(repo_id, title=title).num

    number = with_retries(attempt)
    commit = _commit(api, repo_id, checkpoint, title, f"refs/pr/{number}")
    request = with_retries(lambda: api.get_discussion_details(repo_id, number))
    if request.status == "draft":
        with_retries(lambda: api.change_discussion_status(repo_id, number, "open"))
    return replace(commit, pr_url=request.url)
