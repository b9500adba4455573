"""Pushing a checkpoint: one commit that holds the whole of it, or none."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError

from .._console import typed
from ..errors import HubError, InputError
from .client import check_repo_id, connect, failure, reason, with_retries
from .download import differs, hashes_of
from .folder import CARD, Checkpoint, read_checkpoint

logger = logging.getLogger(__name__)
MAIN = "main"


def push_checkpoint(
    path: str | Path | Checkpoint,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push a saved folder to the Hub: model, tokenizer or processor, card and the pictures it shows.

    A report that the card links is pushed too. Optimizer states, checkpoints in subfolders, pickled files, logs and
    results are not. Everything is checked before the first byte is sent, and what was checked is what is sent. One
    commit adds the files, and deletes those of an earlier checkpoint; then its files are compared with those that were
    meant. A repository that has just these files gets no commit. Rate limits, server errors and dropped connections are
    tried again after a wait; a commit whose answer was lost is not made twice. The folder is not changed.

    Args:
        path: the folder, or what `read_checkpoint` found in it.
        repo_id: "user/name"; created if there is none. "name" alone belongs to the user of the token.
        private: whether a new repository is private; None for the account's setting.
        token: None for the stored one.
        revision: branch, created from main if there is none; default main.
        commit_message: default "Upload R-Drop checkpoint".
        create_pr: open a pull request instead of changing the branch main.

    Returns:
        The commit that holds the checkpoint, with `oid`, `commit_url` and, for a pull request, `pr_url`.

    Raises:
        InputError: the folder holds no whole checkpoint, or holds a token; it changes meanwhile; the name or the token
            is not valid; the Hub refuses the card; the repository is public, although `private` is asked for, or its
            .gitignore names files of the checkpoint.
        HubError: the Hub refused, could not be reached, or was silent for a minute: the message has the command to go
            on with. Or the commit does not hold what was meant.
    """
    check_repo_id(repo_id)
    check_branch(revision, create_pr)
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path, token)
    folder = checkpoint.folder
    if CARD not in checkpoint.files:
        logger.warning(
            f"{folder}: has no {CARD}, so the model is pushed without a card, and not found as one of R-Drop; "
            "RDropTrainer.create_model_card writes one"
        )
    command = ["python", "-m", "rdrop_trainer.hub", "push", str(folder), repo_id]
    command += ["--private"] * (private is True) + ["--create_pr"] * create_pr
    command += ["--revision", revision] if revision else []
    advice = f"Nothing is lost, all of it is in {folder}. To go on: {typed(command)}"
    api = connect(token)
    try:
        repo_id = with_retries(partial(_repository, api, repo_id, private))
        if revision not in (None, MAIN) and not revision.startswith("refs/"):
            with_retries(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        message = commit_message or "Upload R-Drop checkpoint"
        return with_retries(partial(_commit, api, repo_id, checkpoint, message, revision or MAIN, create_pr))
    except (InputError, HubError):
        raise
    except KeyboardInterrupt:
        logger.error(f"{folder} was not pushed to {repo_id}: interrupted. {advice}")
        raise
    except Exception as error:
        if f"metadata in {CARD}" in str(error):
            raise InputError(
                f"{folder / CARD}: the Hub refuses it: {reason(error)}; mend it, then push again"
            ) from None
        # Errors of uploads show signed addresses, so the cause is not shown
        raise failure(f"{folder} was not pushed to {repo_id}", error, advice) from None


def check_branch(revision: str | None, create_pr: bool) -> None:
    """Refuse a pull request against another branch than main."""
    if create_pr and revision not in (None, MAIN):
        raise InputError(f"a pull request is opened against {MAIN}; leave out the revision {revision!r}, or create_pr")


def _repository(api: HfApi, repo_id: str, private: bool | None) -> str:
    """The whole name of a repository, which is made if there is none."""
    try:
        found = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not found.private:
        raise InputError(f"{repo_id}: is there already and public; make it private first, or push to another")
    return found.id


def _commit(
    api: HfApi, repo_id: str, checkpoint: Checkpoint, message: str, revision: str, create_pr: bool
) -> CommitInfo:
    """The commit or pull request that holds a checkpoint: the one that is there, by a try whose answer was lost say, or
    a new one, whose files are compared.
    """
    head = api.model_info(repo_id, revision=revision, files_metadata=True)
    places: list[tuple[str, str | None]] = [(revision, None)]
    if create_pr:
        requests = api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open")
        places += [(f"refs/pr/{request.num}", request.url) for request in requests if request.title == message]
    for place, url in places:
        info = head if place == revision else api.model_info(repo_id, revision=place, files_metadata=True)
        if not _differences(info, checkpoint, repo_id):
            address = f"{api.endpoint}/{repo_id}/commit/{info.sha}"
            return CommitInfo(address, commit_message=message, commit_description="", oid=str(info.sha), pr_url=url)
    # Made anew for each try: the client keeps in them what it knew of the repository
    contents = checkpoint.contents(repo_id).items()
    added = [CommitOperationAdd(name, c if isinstance(c, bytes) else str(c)) for name, c in contents]
    deleted = [CommitOperationDelete(name) for name in sorted(hashes_of(head)) if checkpoint.replaces(name)]
    api.preupload_lfs_files(repo_id, added, revision=revision, create_pr=create_pr, free_memory=False)
    checkpoint.check_unchanged()
    if ignored := [addition.path_in_repo for addition in added if getattr(addition, "_should_ignore", False)]:
        raise InputError(f"{repo_id}: its .gitignore names {', '.join(ignored)}, which would be left out; mend it")
    commit = api.create_commit(
        repo_id,
        [*added, *deleted],
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
        parent_commit=head.sha,  # so that one whose answer was lost is not made twice
    )
    info = api.model_info(repo_id, revision=commit.pr_revision or commit.oid, files_metadata=True)
    if wrong := _differences(info, checkpoint, repo_id):
        raise HubError(
            f"{checkpoint.folder} is not whole in {commit.commit_url}: {', '.join(wrong)} differ from what was sent; "
            "look at it there, then push again"
        )
    return commit


def _differences(info: ModelInfo, checkpoint: Checkpoint, repo_id: str) -> list[str]:
    """Names of files that a commit does not have as they were meant, or has and should not."""
    there = hashes_of(info)
    wrong = [name for name, content in checkpoint.contents(repo_id).items() if differs(content, there.get(name, ""))]
    return wrong + sorted(name for name in there if checkpoint.replaces(name))
