"""Downloading a checkpoint: its files alone, each verified, and none outside its folder."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.utils import WeakFileLock

from ..errors import HubError, InputError
from .client import check_repo_id, connect, failure, with_retries
from .folder import CARD, is_part

logger = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9_+=@-][A-Za-z0-9._+=@-]*(/[A-Za-z0-9_+=@-][A-Za-z0-9._+=@-]*)?")


class RemoteFile(NamedTuple):
    """A file as the server lists it."""

    name: str
    size: int
    sha256: str | None  # of files in LFS
    blob_id: str | None  # git's, of the others

    def fault(self, path: Path) -> str | None:
        """What is wrong with a downloaded file; None if nothing is."""
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != self.size:
            return f"has {size:,} bytes, the server states {self.size:,}"
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % size)
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return (
            None if digest.hexdigest() == (self.sha256 or self.blob_id) else "has another hash than the server states"
        )


def download_checkpoint(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    with_code: bool = False,
) -> Path:
    """Download a checkpoint: configuration, tokenizer or processor, safetensors weights and card.

    Size and hash of every file are compared with the server's. A damaged file is fetched once more. No file reaches the
    folder before all are verified. Pickled weights, code and other files of the repository are not downloaded.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; default main.
        token: for private repositories; None for the stored one.
        local_dir: folder for the files; files of the same names are replaced. By default each commit has a folder in
            `cache_dir`, and is not fetched again.
        cache_dir: default "rdrop-trainer" in HF_HOME.
        with_code: also fetch the Python files of a custom model class. Read them before you run them.

    Returns:
        The folder.

    Raises:
        InputError: the name is not valid; the repository holds no checkpoint with safetensors weights; the folder holds
            weights of another checkpoint, or cannot be written.
        HubError: there is no such repository or revision; the Hub could not be reached; a file is damaged; the name of
            a file leads out of the folder.
    """
    check_repo_id(repo_id, with_owner=False)
    where = f"{repo_id} at {revision or 'main'}"
    api = connect(token)
    try:
        info = with_retries(lambda: api.model_info(repo_id, revision=revision, files_metadata=True))
    except Exception as error:
        raise failure(f"{where} was not downloaded", error) from None
    if not _COMMIT.fullmatch(info.sha or ""):
        raise HubError(f"{where} was not downloaded: the server calls its commit {info.sha!r}, which is none")
    files = _chosen(where, info, with_code)
    cache = Path(cache_dir or Path(constants.HF_HOME) / "rdrop-trainer")
    kept = cache / repo_id.replace("/", "--") / (info.sha + "-code" * with_code)
    target = Path(os.path.abspath(kept if local_dir is None else local_dir))
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, expected a folder")
    _check_no_others(target, files)
    part = target.with_name(f".{target.name}.{info.sha}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(cache / f".{info.sha}.lock"):  # several processes may load the same checkpoint
            if any(file.fault(target / file.name) for file in files):
                _fetch(api, where, repo_id, info.sha, files, part)
                for file in files:
                    (target / file.name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(part / file.name, target / file.name)
                shutil.rmtree(part)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _check_no_others(target: Path, files: list[RemoteFile]) -> None:
    """Refuse a folder with other weights, which would be read in place of these, or with them."""
    names = {file.name for file in files}
    others = sorted(
        path.name
        for path in target.glob("*")
        if path.name not in names and is_part(path.name) and ".safetensors" in path.name
    )
    if others:
        raise InputError(f"{target}: holds {others[0]} of another checkpoint; choose an empty folder")


def _chosen(where: str, info: ModelInfo, with_code: bool) -> list[RemoteFile]:
    """The files to fetch. No honest server lists a name that leads out of the folder."""
    files = []
    for sibling in info.siblings or ():
        name = str(sibling.rfilename)
        parts = re.split(r"[/\\]", name)
        if ".." in parts or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or not name.isprintable():
            raise HubError(f"{where} was not downloaded: the server lists a file {name!r}, which leads outside")
        if not (is_part(name) or name == CARD or (with_code and name.endswith(".py"))) or not _NAME.fullmatch(name):
            continue
        lfs = sibling.lfs
        files.append(RemoteFile(name, sibling.size, lfs.sha256 if lfs else None, None if lfs else sibling.blob_id))
        if not isinstance(sibling.size, int) or not (files[-1].sha256 or files[-1].blob_id):
            raise HubError(f"{where} was not downloaded: the server states no size or no hash of {name}")
    names = {str(sibling.rfilename) for sibling in info.siblings or ()}
    if not any(file.name.endswith(".safetensors") for file in files):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".h5", ".msgpack")))
        has = (
            f"{', '.join(pickled[:3])} but no safetensors weights; pickled ones can run code"
            if pickled
            else "no weights"
        )
        raise InputError(f"{where}: holds {has}. Ask its owner for model.safetensors")
    if not names & {"config.json", "adapter_config.json"}:
        raise InputError(f"{where}: holds no config.json, so no model that transformers can load")
    return files


def _fetch(api: HfApi, where: str, repo_id: str, commit: str, files: list[RemoteFile], part: Path) -> None:
    """Fetch the files into the folder `part`, and verify them."""
    for file in files:
        fault = file.fault(part / file.name)
        for again in (False, True):
            if fault is not None:
                if again:
                    logger.warning(f"{file.name} of {where} {fault}; it is fetched once more")
                fault = _fetch_file(api, where, repo_id, commit, file, part, again)
        if fault is not None:
            shutil.rmtree(part)
            raise HubError(f"{where} was not downloaded: {file.name} {fault}. Nothing of it was kept")


def _fetch_file(
    api: HfApi, where: str, repo_id: str, commit: str, file: RemoteFile, part: Path, again: bool
) -> str | None:
    """Fetch a file. Returns what is wrong with it; None if nothing is."""
    try:
        # Into a plain folder: the client's cache makes its paths from the server's answers
        with_retries(
            lambda: api.hf_hub_download(repo_id, file.name, revision=commit, local_dir=part, force_download=again)
        )
    except Exception as error:
        if "Consistency check failed" in str(error):  # the client's own, of the size
            return "is not as long as the server states"
        raise failure(f"{file.name} of {where} was not downloaded", error, "The same command goes on") from None
    return file.fault(part / file.name)
