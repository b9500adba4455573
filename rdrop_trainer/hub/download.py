"""Downloading a checkpoint: its files alone, each verified, and none outside its folder."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import shutil
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, ModelInfo, constants, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling

from ..errors import HubError, InputError
from ..run_folder import replacing, write_text
from .client import WAITS, check_repo_id, connect, failure, reason, response_of, seconds_to_wait, with_retries
from .folder import CARD, is_part

logger = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_A_REVISION = re.compile(r"\.\.|^[/.]|[\\:\s]|/$|^$")


class RemoteFile(NamedTuple):
    """A file as the server lists it, or, without the server, as the cache has it."""

    name: str
    size: int
    sha256: str | None  # of files in LFS
    blob_id: str | None  # git's, of the others

    @classmethod
    def of(cls, listed: RepoSibling) -> RemoteFile:
        """The file of an entry in the server's list."""
        sha256, blob_id = (listed.lfs.sha256, None) if listed.lfs else (None, listed.blob_id)
        return cls(str(listed.rfilename), listed.size, sha256, blob_id)

    def fault(self, content: Path | bytes) -> str | None:
        """What is wrong with a downloaded file, or with the content of one that was sent; None if nothing is."""
        if isinstance(content, Path) and not content.is_file():
            return "is missing"
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size != self.size:
            return f"has {size:,} bytes, the server states {self.size:,}"
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % size)
        with open(content, "rb") if isinstance(content, Path) else BytesIO(content) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        known = self.sha256 or self.blob_id
        same = known is None or digest.hexdigest() == known
        return None if same else "has another hash than the server states"


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

    Size and hash of every file are compared with the server's. A damaged file is fetched once more. Pickled weights,
    code and other files of the repository are not downloaded. The files are in the cache of huggingface_hub, where
    `hf cache` shows them; what is there is not fetched again. Without the Hub (HF_HUB_OFFLINE, or a failure of the
    server), what was downloaded before is verified against the hashes that the cache has, and used.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; default main.
        token: for private repositories; None for the stored one.
        local_dir: folder to copy the files to, when all are verified; files of the same names are replaced.
        cache_dir: default HF_HUB_CACHE.
        with_code: also fetch the Python files of a custom model class. Read them before you run them.

    Returns:
        `local_dir`, or the folder in the cache.

    Raises:
        InputError: the name is not valid; the repository holds no checkpoint with safetensors weights; the folder holds
            weights of another checkpoint; the folder or the cache cannot be written.
        HubError: there is no such repository or revision; the Hub could not be reached, and the cache holds no such
            checkpoint; a file is damaged; the name or the hash of a file leads out of the folder.
    """
    check_repo_id(repo_id, with_owner=False)
    if revision is not None and _NOT_A_REVISION.search(revision):
        raise InputError(f"{revision!r}: is no branch, tag or commit")
    where = f"{repo_id} at {revision or 'main'}"
    target = None if local_dir is None else Path(os.path.abspath(local_dir))
    if target is not None and target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, expected a folder")
    api = connect(token)
    kept = _kept(repo_id, revision, cache_dir)
    info: ModelInfo | None = None
    try:
        waits = () if kept else WAITS
        info = with_retries(lambda: api.model_info(repo_id, revision=revision, files_metadata=True), waits)
    except Exception as error:
        may_pass = isinstance(error, OfflineModeIsEnabled) or seconds_to_wait(error, 0.0) is not None
        if kept is None or not may_pass:
            raise failure(f"{where} was not downloaded", error) from None
        files = _files_of(kept)
        if faults := _faults(kept, files):
            name, fault = next(iter(faults.items()))
            raise failure(f"{where} was not downloaded, and {name} in the cache {fault}", error) from None
        logger.warning(f"{where}: {reason(error)}. What was downloaded before is used")
        folder = kept
    else:
        files = _chosen(where, info, with_code)
    if target is not None:
        _check_no_others(target, files)
    if info is not None:
        folder = _fetch(api, where, repo_id, info, files, cache_dir)
        if revision != info.sha:  # the name is known without the Hub from here on
            with suppress(OSError):  # a cache that can be read alone
                write_text(folder.parent.parent / "refs" / (revision or "main"), str(info.sha))
    if target is None:
        return folder
    try:
        with ExitStack() as copies:  # all of them replace what is there, or none does
            for file in files:
                shutil.copyfile(folder / file.name, copies.enter_context(replacing(target / file.name)))
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _kept(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """The folder of a checkpoint in the cache; None where there is none."""
    for name in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision)
        if isinstance(path, str) and any(Path(path).parent.glob("*.safetensors")):
            return Path(path).parent
    return None


def _files_of(folder: Path) -> list[RemoteFile]:
    """The files of a checkpoint in the cache. They are links to files that have their hashes for names."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, kept_as = path.relative_to(folder).as_posix(), path.resolve().name
        if is_part(name) or name == CARD:
            sha256, blob_id = (kept_as if re.fullmatch(f"[0-9a-f]{{{n}}}", kept_as) else None for n in (64, 40))
            files.append(RemoteFile(name, path.stat().st_size, sha256, blob_id))
    return files


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
    if not _COMMIT.fullmatch(info.sha or ""):
        raise HubError(f"{where} was not downloaded: the server calls its commit {info.sha!r}, which is none")
    files = []
    names = [str(sibling.rfilename) for sibling in info.siblings or ()]
    for name, sibling in zip(names, info.siblings or (), strict=True):
        parts = re.split(r"[/\\]", name)
        if ".." in parts or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or not name.isprintable():
            raise HubError(f"{where} was not downloaded: the server lists a file {name!r}, which leads outside")
        if not (is_part(name) or name == CARD or (with_code and name.endswith(".py") and name.count("/") < 2)):
            continue
        files.append(RemoteFile.of(sibling))
        if not isinstance(sibling.size, int) or not (files[-1].sha256 or files[-1].blob_id):
            raise HubError(f"{where} was not downloaded: the server states no size or no hash of {name}")
    if not any(file.name.endswith(".safetensors") for file in files):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".h5", ".msgpack")))
        listed = f"{', '.join(pickled[:3])} but no safetensors weights; pickled ones can run code"
        raise InputError(f"{where}: holds {listed if pickled else 'no weights'}. Ask its owner for model.safetensors")
    if not {*names} & {"config.json", "adapter_config.json"}:
        raise InputError(f"{where}: holds no config.json, so no model that transformers can load")
    return files


def _fetch(
    api: HfApi, where: str, repo_id: str, info: ModelInfo, files: list[RemoteFile], cache_dir: str | Path | None
) -> Path:
    """Fetch the files into the cache, and verify them there. What is damaged does not stay."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    folder = cache / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots" / str(info.sha)
    patterns = [glob.escape(file.name) for file in files]
    for again in (False, True):
        error: Exception | None = None
        try:
            with_retries(
                lambda: api.snapshot_download(repo_id, revision=info.sha, cache_dir=cache_dir, allow_patterns=patterns)
            )
        except Exception as caught:
            error = caught
        faults = _faults(folder, files)
        if error is None and not faults:
            return folder
        too_short = "Consistency check failed" in str(error)  # the client's own check, of the size
        if error is not None and not too_short:
            if isinstance(error, OSError) and error.errno is not None and response_of(error) is None:
                raise InputError(f"{error.filename or cache}: cannot be written: {error.strerror}") from error
            name = next((name for name in faults if name in str(error)), next(iter(faults), "a file"))
            raise failure(f"{name} of {where} was not downloaded", error, "The same command goes on") from None
        name = next(iter(faults))
        fault = "is not as long as the server states" if too_short else faults[name]
        for damaged in faults:
            _remove(folder / damaged)
        if not again:
            logger.warning(f"{name} of {where} {fault}; it is fetched once more")
    raise HubError(f"{where} was not downloaded: {name} {fault}. Nothing of it was kept")


def _faults(folder: Path, files: list[RemoteFile]) -> dict[str, str]:
    """What is wrong with downloaded files, by their names."""
    found = {file.name: file.fault(folder / file.name) for file in files}
    return {name: fault for name, fault in found.items() if fault}


def _remove(path: Path) -> None:
    """Take a damaged file out of the cache: the link, and what it points at."""
    if path.is_symlink():
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
