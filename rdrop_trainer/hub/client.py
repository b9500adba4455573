"""Requests to the Hub: the client, names of repositories, retries, and messages of failures."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

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
_DROPPED = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


def connect(token: str | bool | None = None) -> HfApi:
    """A client of the Hub at `HF_ENDPOINT`, whose requests all have a limit of time.

    Args:
        token: a token; None or True for the stored one (`hf auth login` or HF_TOKEN), False for none.

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


def check_repo_id(repo_id: str, with_owner: bool = True) -> str:
    """Check the name of a repository before it becomes part of an address or a path.

    Args:
        repo_id: "user/name".
        with_owner: whether "name" alone is wrong.

    Returns:
        The name.

    Raises:
        InputError: the name is not valid.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r}: is no repository's name, expected USER/NAME: {error}") from error
    if with_owner and "/" not in repo_id:
        raise InputError(f"{repo_id!r}: expected USER/NAME")
    return repo_id


def repo_name(hub_model_id: str | None, output_dir: str | Path) -> str:
    """The repository that a run pushes to: `hub_model_id`, or else the name of its folder."""
    return hub_model_id or Path(output_dir).absolute().name


def with_retries(call: Callable[[], T], waits: tuple[float, ...] = WAITS) -> T:
    """Call, and try again after failures that may pass: rate limits (429), server errors (5xx), dropped connections.

    Between the tries it waits 1, 2, 4, 8 and 16 seconds, or as long as the server asks for (Retry-After), 10 minutes at
    most. A server that cannot be reached is given up after 8 seconds, and one that is silent after two requests. The
    call must be safe to repeat.

    Raises:
        Exception: the last failure.
    """
    lost = 0.0  # seconds since the last sign of life
    for wait in (*waits, None):
        started, token = time.monotonic(), in_retries.set(True)
        try:
            return call()
        except Exception as error:
            seconds = None if wait is None else seconds_to_wait(error, wait)
            patience = _patience(error)
            if patience is not None:
                lost += time.monotonic() - started + (seconds or 0.0)
            if seconds is None or (patience is not None and lost > patience):
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
        return _patience(error) != UNREACHED
    return True


def _patience(error: BaseException) -> float | None:
    """Seconds without a sign of life after which a server is given up; None if the failure is one."""
    if any(isinstance(e, NOT_REACHED) for e in _chain(error)):
        return UNREACHED
    return 2 * silence() if any(isinstance(e, httpx.TimeoutException) for e in _chain(error)) else None


def seconds_to_wait(error: BaseException, otherwise: float) -> float | None:
    """How long to wait before a failed call is tried again.

    Args:
        error: the failure.
        otherwise: seconds where the server asks for none.

    Returns:
        Seconds; None if trying again is of no use.
    """
    response = response_of(error)
    if response is None:
        return otherwise if any(isinstance(e, _DROPPED) for e in _chain(error)) else None
    # 409 and 412: somebody else changed the repository in between
    if response.status_code not in (408, 409, 412, 429) and response.status_code < 500:
        return None
    asked = _asked_to_wait(response)
    if asked is None:
        return otherwise
    return max(asked, otherwise) if asked <= LONGEST_WAIT else None


def _asked_to_wait(response: Any) -> float | None:
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def response_of(error: BaseException) -> Any | None:
    """The server's answer that led to an error; None if there was none."""
    return next((e.response for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_REASONS = {
    401: "the token is missing, wrong or without the right to do this: run `hf auth login`, or set HF_TOKEN",
    403: "this account may not do this there; check the owner's name and the token's rights",
    404: "no such repository, revision or file, or it is private and the token has no right to it",
    413: "a file is larger than the Hub takes",
    429: "the Hub asks to wait before more requests",
}


def reason(error: BaseException) -> str:
    """What went wrong, in one printable line. Tokens and addresses, which may hold signatures, are left out."""
    return one_line(re.sub(TOKEN, "(a token)", _reason(error)))


def _reason(error: BaseException) -> str:
    if isinstance(error, (HubError, InputError)):  # ours, which say it
        return str(error)
    response = response_of(error)
    if response is None:
        dropped = next((e for e in _chain(error) if isinstance(e, _DROPPED)), None)
        if isinstance(dropped, httpx.TimeoutException) and not isinstance(dropped, httpx.ConnectTimeout):
            return "the Hub did not answer in time; for a slow line, set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
        if dropped is not None:
            return f"the connection failed ({type(dropped).__name__})"
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so the Hub is not asked"
        return " ".join(str(error).split()) or type(error).__name__
    http_error = next(e for e in _chain(error) if isinstance(e, HfHubHTTPError))
    said = " ".join((http_error.server_message or "").split())[:300]
    if isinstance(http_error, GatedRepoError):
        return (
            f"it is gated (HTTP {response.status_code}): agree to its owner's terms on its page, and have the token of "
            "that account at hand (`hf auth login`, or HF_TOKEN)"
        )
    # Without a token, the Hub answers 401 for a missing repository too
    status = 404 if isinstance(http_error, RepositoryNotFoundError) else response.status_code
    if status != response.status_code:
        said = "run `hf auth login` if it is private"
    known = _REASONS.get(status) or ("the Hub has a fault" if response.status_code >= 500 else "refused")
    return f"{known} (HTTP {response.status_code}{': ' + said if said else ''})"


def failure(what: str, error: BaseException, advice: str = "") -> HubError:
    """The `HubError` to raise for an error: what was tried, why it failed, what to do."""
    return HubError(f"{what}: {reason(error)}" + (f". {advice}" if advice else ""))
