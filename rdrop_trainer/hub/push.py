"""Pushing a checkpoint: one commit that holds the whole of it, or none."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import InputError
from .client import check_repo_id, connect, failure, patient
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

    Optimizer states, checkpoints below the folder, pickled files, logs and results stay. All is checked before the
    first byte is sent, and becomes one commit; files of an earlier checkpoint that this one does not have are taken
    away in it. Rate limits, server errors and dropped connections are waited for and tried again; a commit whose answer
    was lost is not made twice. The folder is not changed.

    Args:
        path: the folder.
        repo_id: "user/name"; made if there is none. "name" alone is the token's user's.
        private: whether a new repository is private; None leaves it to the account's settings.
        token: None for the stored one.
        revision: branch, made from main if there is none; default main.
        commit_message: default "Upload R-Drop checkpoint".
        create_pr: open a pull request with the checkpoint instead of changing the branch main.

    Returns:
        The commit, with `oid`, `commit_url` and, for a pull request, `pr_url`.

    Raises:
        InputError: the folder holds no whole checkpoint, or a token; a name or token is none; the repository is public,
            although `private` is asked for.
        HubError: the Hub refused, or could not be reached for half a minute or longer. The message has the command that
            continues.
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
        repo_id = patient(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if private and not patient(lambda: api.model_info(repo_id)).private:
            raise InputError(f"{repo_id}: is there already and public; make it private first, or push to another")
        if create_pr:
            return _push_pull_request(api, repo_id, checkpoint, message)
        if revision not in (None, MAIN) and not revision.startswith("refs/"):
            patient(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        return _commit(api, repo_id, checkpoint, message, revision or MAIN)
    except InputError:
        raise
    except KeyboardInterrupt:
        logger.error(f"{path} was not pushed to {repo_id}: interrupted. {advice}")
        raise
    except Exception as error:
        # The errors of uploads show signed addresses, so they are not shown behind this one
        raise failure(f"{path} was not pushed to {repo_id}", error, advice) from None


def _commit(api: HfApi, repo_id: str, checkpoint: Checkpoint, message: str, revision: str) -> CommitInfo:
    """Make the commit. Tried again from the start: what arrived is not sent again, and no commit is made twice."""
    contents = checkpoint.contents(repo_id)

    def attempt() -> CommitInfo:
        head = api.model_info(repo_id, revision=revision)
        there = {file.rfilename for file in head.siblings or ()}
        # Read anew, since the client keeps in these what the last try knew of the repository
        operations: list = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in contents.items()
            if name != CARD or checkpoint.has_card or CARD not in there
        ]
        operations += [CommitOperationDelete(name) for name in sorted(there) if checkpoint.replaces(name)]
        # Without the parent, a commit whose answer was lost and that is still under way would be made twice
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha)

    return patient(attempt)


def _push_pull_request(api: HfApi, repo_id: str, checkpoint: Checkpoint, title: str) -> CommitInfo:
    """Open a pull request, commit to it, and mark it ready."""

    def titled() -> set[int]:
        requests = api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="all")
        return {request.num for request in requests if request.title == title}

    before = patient(titled)

    def attempt() -> int:
        made = titled() - before  # by a try whose answer was lost
        return min(made) if made else api.create_pull_request(repo_id, title=title).num

    number = patient(attempt)
    commit = _commit(api, repo_id, checkpoint, title, f"refs/pr/{number}")
    request = patient(lambda: api.get_discussion_details(repo_id, number))
    if request.status == "draft":
        patient(lambda: api.change_discussion_status(repo_id, number, "open"))
    return replace(commit, pr_url=request.url)
