"""A Hugging Face Hub on 127.0.0.1 for the tests: users, repositories with history, and faults on demand.

hub = Hub()                                # serves at once; hub.url is what HF_ENDPOINT must be
hub.user("ada", "hf_ada")                  # a user and their token; hub.login("ada") puts it in HF_TOKEN
hub.repo("ada/model", {"config.json": b"{}"}, private=True)
hub.fail("commit", status=503)             # the next commit is refused, and so on: see the methods
hub.files("ada/model"), hub.commits("ada/model"), hub.card("ada/model"), hub.requests
"""

import json
import math
import os
import re
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from support import (
    hub_collections,  # noqa: F401 (its import adds its routes)
    hub_discussions,  # noqa: F401
    hub_routes,
    hub_writes,  # noqa: F401
)
from support.hub_repos import Commit, File, Refusal, Repo, card_data, is_lfs


class Seen(NamedTuple):
    """One request: `status` is None where the connection was cut, `token` says whether one came, not which."""

    method: str
    path: str
    status: int | None
    token: bool
    route: str


@dataclass(frozen=True)
class Answer:
    """`body` is bytes, or something JSON can hold."""

    status: int = 200
    body: object = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str  # as sent, still quoted
    query: dict[str, list[str]]
    headers: dict[str, str]
    user: str | None = None
    write: bool = False
    body: bytes = b""

    def json(self) -> dict:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, f"Invalid JSON: {error}") from error

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass
class Fault:
    """Something that goes wrong for the next `times` requests (None: all) of a route, after `skip` that pass."""

    route: str
    method: str | None = None
    path: str = ""  # part of the request's path
    times: int | None = 1
    skip: int = 0
    instead: Answer | None = None
    cut_after: int | None = None
    hard: bool = True
    lose: bool = False
    delay: float = 0
    change: Callable[[Answer], Answer] | None = None

    def strikes(self, route: str, request: Request) -> bool:
        if self.times == 0 or self.route not in (route, "*") or self.method not in (None, request.method):
            return False
        if self.path not in unquote(request.path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class Cut(Exception):
    """The connection is to end without an answer."""


class Hub:
    def __init__(self):
        self.lock = threading.RLock()
        self.key = secrets.token_hex(8)  # signs upload addresses, which carry no token
        self.ended = threading.Event()  # nothing is waited for any more
        self.reset()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self):
        """Forgets users, repositories, faults and requests; takes HF_TOKEN out of the environment."""
        self.ended.set()
        with self.lock:
            self.ended = threading.Event()
            self.users: dict[str, tuple[str, bool]] = {}  # token -> name, may write
            self.repos: dict[tuple[str, str], Repo] = {}
            self.collections: dict[str, dict] = {}  # slug -> what the Hub says of it
            self.faults: list[Fault] = []
            self.names: dict[str, str] = {}  # path -> the false name listings give it
            self.requests: list[Seen] = []
            self.page_size = 1000
            self.multipart_size: int | None = None  # larger LFS files are uploaded in parts of this many bytes
        os.environ.pop("HF_TOKEN", None)

    # What is there

    def user(self, name: str, token: str | None = None, write: bool = True) -> str:
        """Adds a user (or another token of theirs) and returns the token; `write=False` makes it a read token."""
        token = token or f"hf_{name}"
        self.users[token] = (name, write)
        return token

    def login(self, name: str):
        """The client, in this process and its children, is `name` from here on."""
        os.environ["HF_TOKEN"] = next(token for token, (user, _) in self.users.items() if user == name)

    def repo(
        self, repo_id: str, files: dict[str, bytes | str] | None = None, kind="model", private=False, gated=False
    ) -> Repo:
        """Puts `files` on main of a repository, which need not exist, without any request. `gated`: its owner alone
        reads the files."""
        with self.lock:
            repo = self.repos.setdefault((kind, repo_id), Repo(repo_id, kind, private))
            repo.gated = repo.gated or gated
            head = repo.resolve("main")
            tree = dict(head.tree)
            for path, content in (files or {}).items():
                content = content.encode() if isinstance(content, str) else content
                tree[path] = File(content, is_lfs(path, len(content)))
                if tree[path].lfs:
                    repo.blobs[tree[path].sha256] = content
            if files:
                repo.advance("main", repo.record(tree, (head.sha,), repo.author or "hub", "Add files"))
            return repo

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        tree = self.repos[kind, repo_id].resolve(revision).tree
        return {path: file.content for path, file in tree.items()}

    def commits(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """Newest first; the last is the repository's own "initial commit"."""
        repo = self.repos[kind, repo_id]
        return repo.log(repo.resolve(revision))

    def card(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict | None:
        """The metadata of the repository's README.md."""
        return card_data(self.repos[kind, repo_id].resolve(revision))

    def seen(self, route: str, method: str | None = None) -> list[Seen]:
        return [one for one in self.requests if one.route == route and method in (None, one.method)]

    # What goes wrong. Routes go by the names in hub_routes ("commit", "upload", "resolve", ...; "*" for any); `times`,
    # `skip`, `method` and `path` (part of it) narrow the requests down.

    def fail(self, route: str, status=500, headers=None, message="The server says no", **which) -> Fault:
        """An error in place of the work."""
        return self._add(route, instead=Answer(status, {"error": message}, headers or {}), **which)

    def drop(self, route: str, after: int = 0, hard: bool = True, **which) -> Fault:
        """The connection ends once `after` bytes went through: of the request's body, or, where it has none, of the
        answer's. With a reset, or (`hard=False`) closed in order, which the client tells apart in downloads."""
        return self._add(route, cut_after=after, hard=hard, **which)

    def lose_answer(self, route: str, **which) -> Fault:
        """The work is done, the connection reset before the answer."""
        return self._add(route, lose=True, **which)

    def delay(self, route: str, seconds: float, **which) -> Fault:
        return self._add(route, delay=seconds, **which)

    def hang(self, route: str, **which) -> Fault:
        """The server takes the request and never answers: the connection ends with the test."""
        return self._add(route, delay=math.inf, lose=True, **which)

    def corrupt(self, path: str, **which) -> Fault:
        """One byte of a download is wrong, its length right."""

        def flip(body: bytes) -> bytes:
            middle = len(body) // 2
            return body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]

        return self._add("resolve", method="GET", path=path, change=lambda a: replace(a, body=flip(a.body)), **which)

    def truncate(self, path: str, keep: int = 10, **which) -> Fault:
        """A download ends after `keep` bytes, and its Content-Length agrees."""
        return self._add("resolve", method="GET", path=path, change=lambda a: replace(a, body=a.body[:keep]), **which)

    def lie(self, header: str, value: str, route="resolve", times: int | None = None, **which) -> Fault:
        """A header of the answers is false."""
        return self._add(route, times=times, change=lambda a: replace(a, headers={**a.headers, header: value}), **which)

    def rename(self, path: str, to: str):
        """Listings call the file `to`, and it is served under that name."""
        self.names[path] = to

    def _add(self, route: str, **fields) -> Fault:
        assert route == "*" or route in {one.name for one in hub_routes.ROUTES}, route
        self.faults.append(Fault(route, **fields))
        return self.faults[-1]

    # Serving

    def identify(self, request: Request):
        """Who asks; a token nobody has is refused wherever it is sent."""
        header = request.headers.get("authorization")
        if header:
            token = header.removeprefix("Bearer ")
            if token not in self.users:
                raise Refusal(401, "Invalid credentials in Authorization header")
            request.user, request.write = self.users[token]

    def strike(self, route: str, request: Request) -> tuple[Fault | None, list[Fault]]:
        """The one fault that stops or delays this request, and those that change its answer."""
        with self.lock:
            stop = next((f for f in self.faults if not f.change and f.strikes(route, request)), None)
            return stop, [f for f in self.faults if f.change and f.strikes(route, request)]

    def answer(self, route: "hub_routes.Route | None", match: re.Match | None, request: Request) -> Answer:
        try:
            if route is None:
                raise Refusal(404, f"Sorry, we can't find {request.path}")
            self.identify(request)
            with self.lock:
                groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                status, body, headers = route.run(self, request, **groups)
                return Answer(status, body, headers)
        except (KeyError, TypeError, ValueError) as error:
            return Answer(400, {"error": f"Malformed request: {error!r}"})
        except Refusal as refusal:
            body = {"error": refusal.message, **refusal.body}
            return Answer(refusal.status, body, refusal.headers)


class Server(ThreadingHTTPServer):
    hub: Hub

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that is killed is no error here
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self):
        hub = self.server.hub
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query, keep_blank_values=True), headers)
        route, match = hub_routes.find(request.method, request.path)
        name = route.name if route else "unknown"
        stop, changes = hub.strike(name, request)
        status = None
        try:
            if stop and stop.delay:  # tests replace time.sleep
                hub.ended.wait(None if stop.delay == math.inf else stop.delay)
            if stop and stop.delay == math.inf:
                raise Cut
            cut = stop.cut_after if stop else None
            uploads = bool(int(headers.get("content-length", 0)) or "transfer-encoding" in headers)
            request.body = self.read_body(headers, cut if uploads else None)
            answer = stop.instead if stop and stop.instead else hub.answer(route, match, request)
            if answer.status < 400:
                for fault in changes:
                    answer = fault.change(answer)
            if stop and stop.lose:
                raise Cut
            status = answer.status if cut is None else None
        except Cut:
            answer = None
        # Logged before the answer leaves, so that a client that has it finds its request in the log
        hub.requests.append(Seen(request.method, request.path, status, "authorization" in headers, name))
        if answer:
            self.send(answer, cut)
        if status is None:
            self.end_connection(stop.hard)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def read_body(self, headers: dict[str, str], cut: int | None) -> bytes:
        if cut is not None:
            self.rfile.read(min(cut, int(headers.get("content-length", cut))))
            raise Cut
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, answer: Answer, cut: int | None):
        headers = dict(answer.headers)
        body = answer.body
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        self.send_response(answer.status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def end_connection(self, hard: bool):
        """`hard`: with RST, by lingering for 0 seconds, and by the descriptor, which no buffered file holds back."""
        self.close_connection = True
        if not hard:
            return
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *args):
        pass
