"""The local Hub's routes, and those that read. Each takes the hub, the request and the parts of its path that the
pattern names; it gives status, body, headers."""

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode

from support import hub_cards
from support.hub_repos import Commit, File, Refusal, Repo, info, lfs_facts

ID = r"(?P<id>[^/]+(?:/[^/]+)??)"
API = rf"/api/(?P<kind>model|dataset)s/{ID}"
BASIC = {"_id", "id", "modelId", "author", "createdAt", "downloads", "likes", "private", "tags", "trendingScore"}
LISTED = BASIC | {"library_name", "pipeline_tag"}
FULL = {"sha", "lastModified", "gated", "disabled", "siblings"}


class Route(NamedTuple):
    name: str
    methods: tuple[str, ...]
    pattern: re.Pattern
    run: Callable


ROUTES: list[Route] = []


def route(name: str, methods: str, pattern: str):
    def register(run):
        ROUTES.append(Route(name, tuple(methods.split()), re.compile(pattern), run))
        return run

    return register


def find(method: str, path: str) -> tuple[Route | None, re.Match | None]:
    for one in ROUTES:
        if method in one.methods and (match := one.pattern.fullmatch(path)):
            return one, match
    return None, None


# Who may do what


def readable(hub, request, kind: str, id: str) -> Repo:
    """A private repository of somebody else looks like none; without a token both are a 401, as on the Hub."""
    repo = hub.repos.get((kind, id))
    if repo is None or (repo.private and repo.author != request.user):
        raise Refusal(404 if request.user else 401, "Repository not found", "RepoNotFound")
    return repo


def known(request) -> str:
    if not request.user:
        raise Refusal(401, "Invalid username or password.")
    return request.user


def writable(hub, request, kind: str, id: str, pull: bool = False) -> Repo:
    """`pull`: a pull request, which anybody who can read may open."""
    repo = readable(hub, request, kind, id)
    if not request.write or (known(request) != repo.author and not pull):
        known(request)
        raise Refusal(403, f"You don't have the rights to write to {id}")
    return repo


def page(hub, request, items: list):
    """One page of a list and, in the Link header, the address of the next."""
    size = min(hub.page_size, int(request.query.get("limit", [hub.page_size])[0]))
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if start + size < len(items):
        query = urlencode({**request.query, "cursor": start + size}, doseq=True)
        headers["Link"] = f'<{hub.url}{request.path}?{query}>; rel="next"'
    return 200, items[start : start + size], headers


# Users, repositories, cards


@route("whoami", "GET", "/api/whoami-v2")
def whoami(hub, request):
    token = {"displayName": "test", "role": "write" if request.user and request.write else "read"}
    user = {"type": "user", "id": known(request), "name": request.user, "fullname": request.user, "orgs": []}
    return 200, {**user, "auth": {"type": "access_token", "accessToken": token}}, {}


def named_repo(request) -> tuple[str, str, dict]:
    """Type and id of the repository that a create or delete request names in its body."""
    body = request.json()
    owner = body.get("organization") or known(request)
    if owner != known(request) or not request.write:
        raise Refusal(403, f'You don\'t have the rights to create a repository under the namespace "{owner}"')
    repo_id = f"{owner}/{body.get('name', '')}"
    kind = body.get("type") or "model"
    if not hub_cards.is_repo_id(repo_id) or kind not in ("model", "dataset"):
        raise Refusal(400, f"Invalid repository name or type: {repo_id}, {kind}")
    return kind, repo_id, body


def web(hub, repo: Repo) -> str:
    return f"{hub.url}/{'' if repo.kind == 'model' else 'datasets/'}{repo.id}"


@route("create", "POST", "/api/repos/create")
def create(hub, request):
    kind, repo_id, body = named_repo(request)
    if (kind, repo_id) in hub.repos:
        url = web(hub, hub.repos[kind, repo_id])
        raise Refusal(409, f"You already created this {kind} repo: {repo_id}", url=url)
    private = bool(body.get("private")) or body.get("visibility") == "private"
    repo = hub.repos[kind, repo_id] = Repo(repo_id, kind, private)
    return 200, {"url": web(hub, repo), "name": repo_id, "id": repo_id}, {}


@route("delete", "DELETE", "/api/repos/delete")
def delete(hub, request):
    kind, repo_id, _ = named_repo(request)
    readable(hub, request, kind, repo_id)
    del hub.repos[kind, repo_id]
    return 200, {}, {}


@route("validate", "POST", "/api/validate-yaml")
def validate(hub, request):
    body = request.json()
    errors, warnings = hub_cards.validate(body["content"], body.get("repoType") or "model")
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return 400 if errors else 200, answer, {}


def matches(facts: dict, query: dict) -> bool:
    wanted = [tag.lower() for value in query.get("filter", []) for tag in value.split(",")]
    tags = {tag.lower() for tag in facts["tags"]}
    return (
        all(tag in tags for tag in wanted)
        and facts.get("author") in query.get("author", [facts.get("author")])
        and facts.get("pipeline_tag") in query.get("pipeline_tag", [facts.get("pipeline_tag")])
        and all(text.lower() in facts["id"].lower() for text in query.get("search", []))
    )


@route("list", "GET", "/api/(?P<kind>model|dataset)s")
def listing(hub, request, kind):
    repos = [
        repo for repo in hub.repos.values() if repo.kind == kind and (not repo.private or repo.author == request.user)
    ]
    query = request.query
    found = [facts for facts in (info(repo, repo.resolve("main")) for repo in repos) if matches(facts, query)]
    found.sort(key=lambda facts: facts.get(query.get("sort", ["createdAt"])[0], 0), reverse=True)
    keys = LISTED | (FULL if request.flag("full") else set())
    keys |= {name for name in ("cardData", "config") if request.flag(name)}
    keys |= {"cardData", "sha", "lastModified"} if kind == "dataset" else set()
    keys = {"_id", "id", *query["expand"]} if "expand" in query else keys
    return page(hub, request, [{key: facts[key] for key in facts if key in keys} for facts in found])


@route("info", "GET", API)
@route("info", "GET", rf"{API}/revision/(?P<rev>[^/]+)")
def repo_info(hub, request, kind, id, rev="main"):
    repo = readable(hub, request, kind, id)
    facts = info(repo, repo.resolve(rev), request.flag("blobs"), lambda path: hub.names.get(path, path))
    if "expand" in request.query:
        facts = {key: facts[key] for key in facts if key in {"_id", "id", *request.query["expand"]}}
    return 200, facts, {}


@route("auth-check", "GET", rf"{API}/auth-check(?P<write>/write)?")
def auth_check(hub, request, kind, id, write=None):
    (writable if write else readable)(hub, request, kind, id)
    return 200, {}, {}


# Reading a repository


def entry(path: str, file: File) -> dict:
    lfs = {"lfs": lfs_facts(file, "oid")} if file.lfs else {}
    return {"type": "file", "oid": file.oid, "size": len(file.content), "path": path, **lfs}


def folders(commit: Commit) -> dict[str, dict]:
    """An entry for every folder that a path of the commit implies."""
    found: dict[str, list[str]] = {}
    for path, file in sorted(commit.tree.items()):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            found.setdefault("/".join(parts[:depth]), []).append(path + file.oid)
    oids = {path: hashlib.sha1("".join(inside).encode()).hexdigest() for path, inside in found.items()}
    return {path: {"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in oids.items()}


def entries(hub, request, repo: Repo, commit: Commit, expand: bool) -> dict[str, dict]:
    """Files and folders of a commit by their true path; `expand` adds the commit that last changed a file."""
    found = {**folders(commit), **{path: entry(path, file) for path, file in commit.tree.items()}}
    for path, facts in found.items():
        facts["path"] = hub.names.get(path, path)
        if expand and path in commit.tree:
            history = repo.log(commit)
            while len(history) > 1 and history[1].tree.get(path) == commit.tree[path]:
                history.pop(0)
            facts["lastCommit"] = {"id": history[0].sha, "title": history[0].title, "date": history[0].date}
    return dict(sorted(found.items()))


@route("tree", "GET", rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?")
def tree(hub, request, kind, id, rev, path=""):
    repo = readable(hub, request, kind, id)
    commit = repo.resolve(rev)
    found = entries(hub, request, repo, commit, request.flag("expand"))
    prefix = f"{path.rstrip('/')}/" if path else ""
    if path and not any(name.startswith(prefix) for name in found):
        raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
    inside = [name for name in found if name.startswith(prefix)]
    if not request.flag("recursive"):
        inside = [name for name in inside if "/" not in name[len(prefix) :]]
    return page(hub, request, [found[name] for name in inside])


@route("paths-info", "POST", rf"{API}/paths-info/(?P<rev>[^/]+)")
def paths_info(hub, request, kind, id, rev):
    repo = readable(hub, request, kind, id)
    form = parse_qs(request.body.decode())
    expand = form.get("expand", ["false"])[0].lower() == "true"
    found = entries(hub, request, repo, repo.resolve(rev), expand)
    return 200, [found[path] for path in form.get("paths", []) if path in found], {}


@route("refs", "GET", rf"{API}/refs")
def refs(hub, request, kind, id):
    repo = readable(hub, request, kind, id)
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    found = {
        name: [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in repo.refs().items()
            if ref.startswith(prefix)
        ]
        for name, prefix in kinds.items()
    }
    return 200, {**found, "converts": []}, {}


@route("commits", "GET", rf"{API}/commits/(?P<rev>[^/]+)")
def commits(hub, request, kind, id, rev):
    repo = readable(hub, request, kind, id)
    found = [
        {"id": one.sha, "title": one.title, "message": one.message, "date": one.date, "authors": [{"user": one.author}]}
        for one in repo.log(repo.resolve(rev))
    ]
    return page(hub, request, found)


@route("resolve", "GET HEAD", rf"/(?:(?P<kind>dataset)s/)?{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def resolve(hub, request, id, rev, path, kind="model"):
    repo = readable(hub, request, kind, id)
    if repo.gated and request.user != repo.author:
        raise Refusal(403 if request.user else 401, f"Access to {id} is restricted", "GatedRepo")
    commit = repo.resolve(rev)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    true_names = {false: true for true, false in hub.names.items()}
    file = commit.tree.get(true_names.get(path, path))
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    span = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not span or span[0] == "bytes=-":
        return 200, file.content, headers
    size = len(file.content)
    start = int(span[1]) if span[1] else max(0, size - int(span[2]))
    end = min(size, int(span[2]) + 1) if span[1] and span[2] else size
    if start >= end:
        raise Refusal(416, "Range not satisfiable", None, {"Content-Range": f"bytes */{size}"})
    return 206, file.content[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
