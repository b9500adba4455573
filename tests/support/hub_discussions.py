"""The local Hub's routes of discussions and pull requests."""

from support.hub_repos import Discussion, Refusal, Repo
from support.hub_routes import API, known, readable, route, web, writable


def described(repo: Repo, one: Discussion) -> dict:
    return {
        "num": one.num,
        "title": one.title,
        "status": one.status,
        "author": {"name": one.author},
        "createdAt": one.created,
        "isPullRequest": one.is_pull_request,
        "repo": {"name": repo.id, "type": repo.kind},
    }


@route("discussions", "POST", rf"{API}/discussions")
def open_discussion(hub, request, kind, id):
    repo = readable(hub, request, kind, id)
    body = request.json()
    pull = bool(body.get("pullRequest"))
    if len(body["title"]) < 3:
        raise Refusal(400, "The title must be at least 3 characters long")
    one = repo.open(body["title"], body["description"], known(request), pull, "draft" if pull else "open")
    return 200, {"num": one.num, "url": f"{web(hub, repo)}/discussions/{one.num}", "pullRequest": pull}, {}


@route("discussions", "GET", rf"{API}/discussions")
def discussions(hub, request, kind, id):
    repo = readable(hub, request, kind, id)
    wanted = {name: request.query[name][0] for name in ("type", "status", "author") if name in request.query}
    found = [
        described(repo, one)
        for one in reversed(repo.discussions)
        if wanted.get("type", "all") in ("all", "pull_request" if one.is_pull_request else "discussion")
        and wanted.get("status", "all") in ("all", "open" if one.status in ("open", "draft") else "closed")
        and wanted.get("author", one.author) == one.author
    ]
    start = int(request.query.get("p", ["0"])[0]) * hub.page_size
    return 200, {"discussions": found[start : start + hub.page_size], "count": len(found), "start": start}, {}


def numbered(repo: Repo, num: str) -> Discussion:
    if not 1 <= int(num) <= len(repo.discussions):
        raise Refusal(404, f"No discussion {num}")
    return repo.discussions[int(num) - 1]


@route("discussions", "GET", rf"{API}/discussions/(?P<num>\d+)")
def discussion(hub, request, kind, id, num):
    repo = readable(hub, request, kind, id)
    one = numbered(repo, num)
    common = {"createdAt": one.created, "author": {"name": one.author}}
    first = {"edited": False, "hidden": False, "latest": {"raw": one.description}}
    events = [{"id": f"{num}-0", "type": "comment", "data": first, **common}]
    facts = {**described(repo, one), "events": events}
    if one.is_pull_request:
        commits = repo.log(repo.history[repo.pulls[one.num]])
        onto = {commit.sha for commit in repo.log(repo.resolve("main"))}
        for new in reversed([commit for commit in commits if commit.sha not in onto]):
            data = {"subject": new.title, "oid": new.sha}
            events.append({"id": new.sha, "type": "commit", "data": data, **common})
        changes = {"base": "refs/heads/main", "mergeCommitId": one.merged_as}
        facts |= {"changes": changes, "filesWithConflicts": [], "diff": ""}
    return 200, facts, {}


@route("status", "POST", rf"{API}/discussions/(?P<num>\d+)/status")
def change_status(hub, request, kind, id, num):
    """By the owner, or by whoever opened it."""
    one = numbered(readable(hub, request, kind, id), num)
    if known(request) != one.author:
        writable(hub, request, kind, id)
    one.status = request.json()["status"]
    event = {"id": f"{num}-status", "type": "status-change", "createdAt": one.created, "author": {"name": one.author}}
    return 200, {"newStatus": {**event, "data": {"status": one.status}}}, {}


@route("merge", "POST", rf"{API}/discussions/(?P<num>\d+)/merge")
def merge(hub, request, kind, id, num):
    """Takes the pull request's changes over its base; two sides that changed one file are a conflict."""
    repo = writable(hub, request, kind, id)
    one = numbered(repo, num)
    main = repo.resolve("main")
    if not one.is_pull_request or one.status not in ("open", "draft"):
        raise Refusal(400, f"Discussion {num} cannot be merged")
    theirs = repo.resolve(f"refs/pr/{num}")
    onto = {commit.sha for commit in repo.log(main)}
    base = next(commit for commit in repo.log(theirs) if commit.sha in onto)
    changed = {path for path in {*base.tree, *theirs.tree} if base.tree.get(path) != theirs.tree.get(path)}
    if any(base.tree.get(path) != main.tree.get(path) for path in changed):
        raise Refusal(409, "The pull request has conflicts")
    tree = {path: file for path, file in main.tree.items() if path not in changed}
    tree |= {path: theirs.tree[path] for path in changed if path in theirs.tree}
    merged = repo.record(tree, (main.sha, theirs.sha), request.user, f"{one.title} (#{num})")
    repo.advance("main", merged)
    one.status, one.merged_as = "merged", merged.sha
    return 200, {}, {}
