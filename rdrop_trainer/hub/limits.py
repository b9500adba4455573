"""Limits of the client's requests, most of which have none, and a check of the answers it makes paths of."""

from __future__ import annotations

import re
from contextvars import ContextVar
from functools import wraps
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import _http

from ..errors import HubError

try:
    from huggingface_hub.utils import httpx  # huggingface_hub's own HTTP library, whatever its name
except ImportError:  # huggingface_hub before 2.0
    import httpx

UNREACHED = 8.0  # seconds without a connection, in all tries together, after which the Hub is out of reach
SILENCE = 30.0  # seconds without a byte after which a request ends; HF_HUB_DOWNLOAD_TIMEOUT sets a longer time
NOT_REACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
in_retries: ContextVar[bool] = ContextVar("in_retries", default=False)
_HASHES = ("ETag", "X-Linked-Etag", "X-Repo-Commit")  # headers that the client makes paths of


class NoAnswer(Exception):
    """The Hub was not reached, or was silent for too long. The client does not try again by itself after this one."""


def silence() -> float:
    """Seconds without a byte after which a request ends."""
    return max(SILENCE, constants.HF_HUB_DOWNLOAD_TIMEOUT)


def limit_requests() -> None:
    """See to it that requests of the client end, in all of the process: most of them have no limit of their own."""
    if not hasattr(get_session().send, "limited"):
        make = _http._GLOBAL_CLIENT_FACTORY
        _http._GLOBAL_CLIENT_FACTORY = lambda: _limited(make())  # the client makes a new session after a failure
        _limited(get_session())


def _limited(session: Any) -> Any:
    """A session whose requests have limits, and whose answers are checked before the client makes paths of them."""
    send = session.send

    @wraps(send)
    def limited_send(request: Any, **options: Any) -> Any:
        given = request.extensions.get("timeout", {})
        patient = 4 if "/commit/" in request.url.path else 1  # the Hub takes its time over large ones
        limits = {"connect": UNREACHED, "read": patient * silence(), "write": silence()}
        if request.method != "HEAD":  # for which the client asks six times for a minute
            limits |= {name: seconds for name, seconds in given.items() if seconds is not None}
        request.extensions = {**request.extensions, "timeout": {**given, **limits}}
        try:
            response = send(request, **options)
        except (*NOT_REACHED, httpx.TimeoutException) as error:
            if in_retries.get():
                raise NoAnswer(str(error)) from error
            raise
        _check_hashes(request, response)
        return response

    limited_send.limited = True  # type: ignore[attr-defined]
    session.send = limited_send
    return session


def _check_hashes(request: Any, response: Any) -> None:
    hashes: list[str] = []
    if request.method == "HEAD" and "/resolve/" in request.url.path:
        hashes = [response.headers.get(name, "") for name in _HASHES]
    elif "/tree/" in request.url.path and response.is_success:
        found = [file.get("lfs") for file in response.json() if isinstance(file, dict)]
        hashes = [str(lfs.get("oid")) for lfs in found if isinstance(lfs, dict)]
    for value in hashes:
        if not re.fullmatch(r"(W/)?[\w.+=\"-]*", value) or ".." in value:
            raise HubError(f"the server states the hash {value!r}, which leads outside")
