"""Requests to the Hub: the client, names of repositories, retries, and messages of failures."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id

from ..errors import HubError, InputError, one_line
from .limits import NOT_REACHED, UNREACHED, httpx, in_retries, limit_requests, silence

logger = logging.getLogger(__name__)
T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is not waited for
# What a token looks like: of users, of organisations, of logins by OAuth, and of jobs
TOKEN = r"(?<![A-Za-z0-9])(?:hf_(?:oauth|jwt)_[\w.=-]{20,}|(?:hf|api_org)_[A-Za-z0-9]{20,})"
DROPPED = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


def connect(token: str | bool | None = None) -> HfApi:
    """A client of the Hub at `HF_ENDPOINT`, whose requests all have a limit of time.

    Args:
        token: None or True for the stored one (`hf auth login` or HF_TOKEN), False for none.

    Raises:
        InputError: the token holds characters that no token has; the message does not show it.
    """
    token = token.strip() if isinstance(token, str) else token
    used = get_token() if token in (None, True) else token
    # A HTTP library would refuse the header, and show the token in its message
    if isinstance(used, str) and not re.fullmatch(r"[\x21-\x7e]+", used):
        whose = "token:" if used is token else "the stored token (`hf auth login`, HF_TOKEN)"
        raise InputError(f"{whose} is empty or holds spaces or other characters that no token has; copy it again")
    limit_requests()
    return HfApi(token=token, library_name="rdrop-trainer")


def check_repo_id(repo_id: str) -> str:
    """The name of a repository, "user/name" or "name" alone, checked before it becomes part of an address or a path."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r}: is no repository's name, expected USER/NAME: {error}") from error
    return repo_id


def repo_name(hub_model_id: str | None, output_dir: str | Path) -> str:
    """The repository that a run pushes to: `hub_model_id`, or else the name of its folder."""
    return hub_model_id or Path(output_dir).absolute().name


def with_retries(call: Callable[[], T], waits: tuple[float, ...] = WAITS) -> T:
    """Call, and try again after failures that may pass: rate limits (429), server errors (5xx), dropped connections.

    Between the tries it waits 1, 2, 4, 8 and 16 seconds, or as long as the server asks for (Retry-After), 10 minutes at
    most. A server that cannot be reached is given up after 8 seconds, and one that is silent after two requests. The
    call must be safe to repeat.
    """
    lost = 0.0  # seconds since the last sign of life
    for wait in (*waits, None):
        started, token = time.monotonic(), in_retries.set(True)
        try:
            return call()
        except Exception as error:
            seconds, patience = seconds_to_wait(error, wait), _patience(error)
            lost += 0.0 if patience == math.inf else time.monotonic() - started + (seconds or 0.0)
            if seconds is None or lost > patience:
                raise
            logger.warning(f"{reason(error)}; trying again in {seconds:.0f} s")
        finally:
            in_retries.reset(token)
        time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


@contextmanager
def offline(when: bool = True) -> Iterator[None]:
    """Within it, the libraries use what is in their caches, and ask no Hub."""
    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = before or when
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def offline_if_unreached() -> AbstractContextManager[None]:
    """`offline`, if the Hub is out of reach: the libraries would try for half a minute else, file by file."""
    return offline(constants.HF_HUB_OFFLINE or not _is_reached(constants.ENDPOINT))


@cache
def _is_reached(endpoint: str) -> bool:
    try:
        connect(token=False)
        with_retries(lambda: get_session().head(endpoint))
    except Exception as error:  # any but these is the sign of a server
        return not isinstance(cause(error), NOT_REACHED)
    return True


def cause(error: BaseException) -> BaseException:
    """What an error comes from: the server's answer, or the lost connection, in its chain; else the error itself."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, (HfHubHTTPError, *DROPPED)):
        link = link.__cause__ or link.__context__
    return link or error


def _patience(error: BaseException) -> float:
    """Seconds without a sign of life after which a server is given up."""
    found = cause(error)
    if isinstance(found, NOT_REACHED):
        return UNREACHED
    return 2 * silence() if isinstance(found, httpx.TimeoutException) else math.inf


def seconds_to_wait(error: BaseException, otherwise: float | None = 0.0) -> float | None:
    """How many seconds to wait before a failed call is tried again; None if that is of no use.

    Args:
        otherwise: seconds where the server asks for none.
    """
    found = cause(error)
    if not isinstance(found, HfHubHTTPError):
        return otherwise if isinstance(found, DROPPED) else None
    status, headers = found.response.status_code, found.response.headers
    # 409 and 412: somebody else changed the repository in between
    if otherwise is None or (status not in (408, 409, 412, 429) and status < 500):
        return None
    limit, asked = parse_ratelimit_headers(headers), headers.get("Retry-After", "").strip()
    if status == 429 and limit is not None and limit.remaining == 0:
        asked = str(limit.reset_in_seconds)
    seconds = max(float(asked), otherwise) if asked.isdecimal() else otherwise
    return seconds if seconds <= LONGEST_WAIT else None


_REASONS = {
    401: "the token is missing, wrong or without the right to do this: run `hf auth login`, or set HF_TOKEN",
    403: "this account may not do this there; check the owner's name and the token's rights",
    404: "no such repository, revision or file, or it is private and the token has no right to it",
    413: "a file is larger than the Hub takes",
    429: "the Hub asks to wait before more requests",
}
_AGREE = (
    "agree to its owner's terms on its page, and have the token of that account at hand (`hf auth login`, HF_TOKEN)"
)


def reason(error: BaseException) -> str:
    """What went wrong, in one printable line. Tokens and addresses, which may hold signatures, are left out."""
    return one_line(re.sub(TOKEN, "(a token)", _reason(error)))


def _reason(error: BaseException) -> str:
    found = error if isinstance(error, (HubError, InputError)) else cause(error)  # ours say it
    if isinstance(found, DROPPED):
        if isinstance(found, httpx.TimeoutException) and not isinstance(found, httpx.ConnectTimeout):
            return "the Hub did not answer in time; for a slow line, set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
        return f"the connection failed ({type(found).__name__})"
    if isinstance(found, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked"
    if not isinstance(found, HfHubHTTPError):
        return " ".join(str(found).split()) or type(found).__name__
    status, said = found.response.status_code, " ".join((found.server_message or "").split())[:300]
    if isinstance(found, GatedRepoError):
        known, said = "it is gated", _AGREE
    elif isinstance(found, RepositoryNotFoundError):  # without a token, the Hub answers 401 for it
        known, said = _REASONS[404], said if status == 404 else "run `hf auth login` if it is private"
    else:
        known = _REASONS.get(status) or ("the Hub has a fault" if status >= 500 else "refused")
    return f"{known} (HTTP {status}{': ' + said if said else ''})"


def failure(what: str, error: BaseException, advice: str = "") -> HubError:
    """The `HubError` to raise for an error: what was tried, why it failed, what to do."""
    return HubError(f"{what}: {reason(error)}" + (f". {advice}" if advice else ""))
