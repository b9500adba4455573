"""The repository and commit on the Hub that a data set came from."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# datasets 5 names its folders by repository, configuration, version and commit
_CACHE = re.compile(r"[/\\](?:([^/\\]+)___)?([^/\\]+)[/\\][^/\\]+[/\\][^/\\]+[/\\]([0-9a-f]{40})[/\\][^/\\]+\.arrow$")
_ADDRESS = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})")


class Origin(NamedTuple):
    """A data set on the Hub: its repository, and the commit that was read."""

    repo_id: str
    revision: str


def origin_of(dataset: Any) -> Origin | None:
    """The origin of a `datasets.Dataset`; None for local files and for anything else."""
    addresses = getattr(getattr(dataset, "info", None), "download_checksums", None) or ()
    for match in filter(None, map(_ADDRESS.match, map(str, addresses))):
        return Origin(match[1], match[2])
    for file in getattr(dataset, "cache_files", None) or ():
        if match := _CACHE.search(file["filename"]):
            return Origin(f"{match[1]}/{match[2]}" if match[1] else match[2], match[3])
    return None


def keep_origin(made: Any, source: Any) -> None:
    """Note the origin of `source` in a data set that was made from its rows."""
    if origin := origin_of(source):
        made.info.download_checksums = {f"hf://datasets/{origin.repo_id}@{origin.revision}": {}}
        made.info.config_name = source.info.config_name
