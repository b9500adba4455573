"""Downloading a checkpoint: its files alone, each verified, and none outside its folder."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

from huggingface_hub import ModelInfo, constants, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ..errors import HubError, InputError
from ..run_folder import write_text
from .client import DROPPED, WAITS, cause, check_repo_id, connect, failure, reason, seconds_to_wait, with_retries
from .folder import CONFIGS, is_part

logger = logging.getLogger(__name__)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of one in LFS
_NOT_A_REVISION = re.compile(r"\.\.|^[/.]|[\\:\s]|/$|^$")


def download_checkpoint(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    with_code: bool = False,
) -> Path:
    """Download a checkpoint: configuration, tokenizer or processor, safetensors weights and card.

    The hash of every file is compared with the server's. A damaged file is fetched once more. Pickled weights, code and
    other files of the repository are not downloaded. The files are in the cache of huggingface_hub, where `hf cache`
    shows them; what is there is not fetched again. Without the Hub (HF_HUB_OFFLINE, or a failure of the server), what
    was downloaded before is verified against the hashes that the cache has, and used.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; default main.
        token: for private repositories; None for the stored one.
        cache_dir: default HF_HUB_CACHE.
        with_code: also fetch the Python files of a custom model class. Read them before you run them.

    Returns:
        The folder in the cache.

    Raises:
        InputError: the name is not valid; the repository holds no checkpoint with safetensors weights; the cache cannot
            be written.
        HubError: there is no such repository or revision; the Hub could not be reached, and the cache holds no such
            checkpoint; a file is damaged; the name or the hash of a file leads out of the folder.
    """
    check_repo_id(repo_id)
    if revision is not None and _NOT_A_REVISION.search(revision):
        raise InputError(f"{revision!r}: is no branch, tag or commit")
    where, api = f"{repo_id} at {revision or 'main'}", connect(token)
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    kept = _kept(repo_id, revision, cache)
    try:
        info = with_retries(
            lambda: api.model_info(repo_id, revision=revision, files_metadata=True), () if kept else WAITS
        )
    except Exception as error:
        may_pass = isinstance(error, OfflineModeIsEnabled) or seconds_to_wait(error) is not None
        damaged = _damaged(kept, _hashes_in(kept)) if kept and may_pass else []
        if not kept or not may_pass or damaged:
            also = f", and {damaged[0]} in the cache has another hash" if damaged else ""
            raise failure(f"{where} was not downloaded{also}", error) from None
        logger.warning(f"{where}: {reason(error)}. What was downloaded before is used")
        return kept
    hashes = _to_fetch(where, info, with_code)
    folder = cache / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots" / str(info.sha)
    patterns = [glob.escape(name) for name in hashes]

    fetch = partial(api.snapshot_download, repo_id, revision=info.sha, cache_dir=cache, allow_patterns=patterns)
    _fetch_verified(fetch, where, folder, hashes)
    if revision != info.sha:  # the name is known without the Hub from here on
        with suppress(OSError):  # a cache that can be read alone
            write_text(folder.parent.parent / "refs" / (revision or "main"), str(info.sha))
    return folder


def differs(content: Path | bytes, known: str) -> bool:
    """Whether a file, or the content of one, has another hash than the Hub states of it: git's, or SHA-256 of LFS."""
    if not known or (isinstance(content, Path) and not content.is_file()):
        return True
    with open(content, "rb") if isinstance(content, Path) else BytesIO(content) as file:
        return known != (git_hash(file.read()) if len(known) == 40 else sha_fileobj(file).hex())


def hashes_of(info: ModelInfo) -> dict[str, str]:
    """The files of a repository -> their hashes, "" where the server states none."""
    files = info.siblings or ()
    return {str(file.rfilename): str((file.lfs.sha256 if file.lfs else file.blob_id) or "") for file in files}


def _kept(repo_id: str, revision: str | None, cache: Path) -> Path | None:
    """The folder of a checkpoint in the cache; None where there is none."""
    found = (try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision) for name in CONFIGS)
    folders = (Path(path).parent for path in found if isinstance(path, str))
    return next((folder for folder in folders if any(folder.glob("*.safetensors"))), None)


def _hashes_in(folder: Path) -> dict[str, str]:
    """The files of a checkpoint in the cache -> their hashes. They are links to files that have these for names."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    kept_as = {name: (folder / name).resolve().name for name in names if is_part(name)}
    return {name: known for name, known in kept_as.items() if _HASH.fullmatch(known)}


def _to_fetch(where: str, info: ModelInfo, with_code: bool) -> dict[str, str]:
    """The files to fetch -> their hashes. No honest server lists a name that leads out of the folder."""
    if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
        raise HubError(f"{where} was not downloaded: the server calls its commit {info.sha!r}, which is none")
    listed = hashes_of(info)
    for name in listed:
        parts = re.split(r"[/\\]", name)
        if ".." in parts or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or not name.isprintable():
            raise HubError(f"{where} was not downloaded: the server lists a file {name!r}, which leads outside")
    code = {name for name in listed if with_code and name.endswith(".py") and name.count("/") < 2}
    hashes = {name: known for name, known in listed.items() if is_part(name) or name in code}
    if unknown := [name for name, known in hashes.items() if not _HASH.fullmatch(known)]:
        raise HubError(f"{where} was not downloaded: the server states no hash of {unknown[0]}")
    if not any(name.endswith(".safetensors") for name in hashes):
        pickled = sorted(name for name in listed if name.endswith((".bin", ".pt", ".ckpt", ".h5", ".msgpack")))
        only = f"{', '.join(pickled[:3])} but no safetensors weights; pickled ones can run code"
        raise InputError(f"{where}: holds {only if pickled else 'no weights'}. Ask its owner for model.safetensors")
    if not hashes.keys() & {*CONFIGS}:
        raise InputError(f"{where}: holds no config.json, so no model that transformers can load")
    return hashes


def _fetch_verified(fetch: Callable[[], str], where: str, folder: Path, hashes: Mapping[str, str]) -> None:
    """Fetch the files, and verify them in their folder. What is damaged does not stay, and is fetched once more."""
    for again in (False, True):
        try:
            with_retries(fetch)
        except Exception as error:
            if "Consistency check failed" not in str(error):  # the client's own check, of the size
                if isinstance(error, OSError) and error.errno is not None and not isinstance(cause(error), DROPPED):
                    raise InputError(f"{error.filename or folder}: cannot be written: {error.strerror}") from error
                raise failure(f"{where} was not downloaded", error, "The same command goes on") from None
        damaged = _damaged(folder, hashes)
        if not damaged:
            return
        for path in (folder / name for name in damaged):
            if path.is_symlink():  # to the file in the cache
                (path.parent / os.readlink(path)).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        if not again:
            logger.warning(f"{damaged[0]} of {where} has another hash than the server states; it is fetched once more")
    raise HubError(
        f"{where} was not downloaded: {damaged[0]} has another hash than the server states. Nothing of it was kept"
    )


def _damaged(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """The files in a folder that are missing, or not what they are to be."""
    return [name for name, known in hashes.items() if differs(folder / name, known)]
