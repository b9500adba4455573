"""The local Hub's routes that write: LFS uploads, commits, branches and tags."""

import base64
import hashlib
import json
from fnmatch import fnmatch
from urllib.parse import urlencode

from support import hub_cards
from support.hub_repos import File, Refusal, Repo, is_lfs
from support.hub_routes import API, ID, route, web, writable

LFS = rf"/lfs/(?P<kind>model|dataset)s/{ID}/(?P<oid>[0-9a-f]{{64}})"


@route("preupload", "POST", rf"{API}/preupload/(?P<rev>[^/]+)")
def preupload(hub, request, kind, id, rev):
    repo = writable(hub, request, kind, id, pull=request.flag("create_pr") or rev.startswith("refs/pr/"))
    commit = repo.resolve(rev)
    answers = []
    ignored = commit.tree[".gitignore"].content.decode().split() if ".gitignore" in commit.tree else []
    for one in request.json()["files"]:
        there = commit.tree.get(one["path"])
        mode = "lfs" if is_lfs(one["path"], one["size"]) else "regular"
        same = {"oid": there.etag} if there else {}
        left_out = any(fnmatch(one["path"], pattern) for pattern in ignored)
        answers.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": left_out, **same})
    return 200, {"files": answers, "commitOid": commit.sha}, {}


@route("batch", "POST", rf"/(?:(?P<kind>dataset)s/)?{ID}\.git/info/lfs/objects/batch")
def batch(hub, request, id, kind="model"):
    body = request.json()
    ref = body.get("ref", {}).get("name")
    repo = writable(hub, request, kind, id, pull=ref is None or ref.startswith("refs/pr/"))
    objects, multipart = [], False
    for one in body["objects"]:
        if one["oid"] in repo.blobs:
            objects.append(one)
            continue
        address = f"{hub.url}/lfs/{kind}s/{id}/{one['oid']}"
        query = urlencode({"key": hub.key, "size": one["size"]})
        header, href = {}, f"{address}?{query}"
        if hub.multipart_size and one["size"] > hub.multipart_size and "multipart" in body["transfers"]:
            count = -(-one["size"] // hub.multipart_size)
            header = {str(n): f"{address}/{n}?{query}" for n in range(1, count + 1)}
            header["chunk_size"] = str(hub.multipart_size)
            href, multipart = f"{address}/complete?{query}", True
        actions = {"upload": {"href": href, "header": header}, "verify": {"href": f"{address}/verify"}}
        objects.append({**one, "actions": actions})
    return 200, {"transfer": "multipart" if multipart else "basic", "objects": objects}, {}


def signed(hub, request, kind: str, id: str) -> tuple[Repo, int]:
    """The repository and the size that an upload address stands for."""
    if request.query.get("key") != [hub.key] or (kind, id) not in hub.repos:
        raise Refusal(403, "SignatureDoesNotMatch")
    return hub.repos[kind, id], int(request.query["size"][0])


def keep(repo: Repo, oid: str, size: int, content: bytes):
    if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, "BadDigest: the content is not what its address promised")
    repo.blobs[oid] = content


@route("upload", "PUT", LFS)
def upload(hub, request, kind, id, oid):
    repo, size = signed(hub, request, kind, id)
    keep(repo, oid, size, request.body)
    return 200, b"", {"ETag": f'"{oid}"'}


@route("upload", "PUT", rf"{LFS}/(?P<part>\d+)")
def upload_part(hub, request, kind, id, oid, part):
    repo, _ = signed(hub, request, kind, id)
    repo.parts[oid, int(part)] = request.body
    return 200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}


@route("complete", "POST", f"{LFS}/complete")
def complete(hub, request, kind, id, oid):
    repo, size = signed(hub, request, kind, id)
    contents = []
    for one in request.json()["parts"]:
        contents.append(repo.parts.pop((oid, one["partNumber"]), b""))
        if one["etag"].strip('"') != hashlib.md5(contents[-1]).hexdigest():
            raise Refusal(400, f"InvalidPart: {one['partNumber']}")
    keep(repo, oid, size, b"".join(contents))
    return 200, {}, {}


@route("verify", "POST", f"{LFS}/verify")
def verify(hub, request, kind, id, oid):
    repo = writable(hub, request, kind, id, pull=True)
    if len(repo.blobs.get(oid, b"")) != request.json()["size"] or oid not in repo.blobs:
        raise Refusal(404, f"No LFS object {oid} of that size")
    return 200, {}, {}


def safe(path: str) -> str:
    parts = path.split("/")
    if not path or any(part in ("", ".", "..", ".git") for part in parts):
        raise Refusal(400, f"Invalid path: {path}")
    return path


def put_file(repo: Repo, tree: dict[str, File], value: dict):
    content = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
    tree[safe(value["path"])] = File(content, lfs=False)


def put_lfs_file(repo: Repo, tree: dict[str, File], value: dict):
    content = repo.blobs.get(value["oid"])
    if content is None or value.get("size", len(content)) != len(content):
        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
    tree[safe(value["path"])] = File(content, lfs=True)


def drop_files(repo: Repo, tree: dict[str, File], value: dict):
    path = value["path"].rstrip("/")
    gone = [name for name in tree if name == path or name.startswith(f"{path}/")]
    if not gone:
        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    for name in gone:
        del tree[name]


OPERATIONS = {"file": put_file, "lfsFile": put_lfs_file, "deletedFile": drop_files, "deletedFolder": drop_files}


@route("commit", "POST", rf"{API}/commit/(?P<rev>[^/]+)")
def commit(hub, request, kind, id, rev):
    pull = request.flag("create_pr")
    repo = writable(hub, request, kind, id, pull=pull or rev.startswith("refs/pr/"))
    head = repo.resolve(rev)
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except ValueError as error:
        raise Refusal(400, f"Invalid commit: {error}") from error
    if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
        raise Refusal(400, "A commit needs a header with a summary")
    header = lines[0]["value"]
    if parent := header.get("parentCommit"):
        if pull:
            head = repo.resolve(parent)
        elif not head.sha.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(head.tree)
    for line in lines[1:]:
        if line["key"] not in OPERATIONS:
            raise Refusal(400, f"Unknown operation: {line['key']}")
        OPERATIONS[line["key"]](repo, tree, line["value"])
    if "README.md" in tree and tree["README.md"] != head.tree.get("README.md"):
        errors, _ = hub_cards.validate(tree["README.md"].content.decode(), kind)
        if errors:
            raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(errors))
    new, opened = head, None
    if tree != head.tree:
        title, text = header["summary"], header.get("description", "")
        if pull:
            opened = repo.open(title, text, request.user, pull=True, status="open")
            rev = f"refs/pr/{opened.num}"
        new = repo.record(tree, (head.sha,), request.user, title, text)
        repo.advance(rev, new)
    answer = {
        "success": True,
        "commitOid": new.sha,
        "commitUrl": f"{web(hub, repo)}/commit/{new.sha}",
        "hookOutput": "",
    }
    if opened:
        answer["pullRequestUrl"] = f"{web(hub, repo)}/discussions/{opened.num}"
    return 200, answer, {}


@route("branch", "POST DELETE", rf"{API}/branch/(?P<name>[^/]+)")
def branch(hub, request, kind, id, name):
    repo = writable(hub, request, kind, id)
    if request.method == "DELETE":
        return remove_ref(repo.branches, name, keep="main")
    if name in repo.branches:
        raise Refusal(409, f"Branch {name} exists")
    repo.branches[name] = repo.resolve(request.json().get("startingPoint", "main")).sha
    return 200, {}, {}


@route("tag", "POST DELETE", rf"{API}/tag/(?P<name>[^/]+)")
def tag(hub, request, kind, id, name):
    """POST: `name` is the revision to tag, the tag stands in the body. DELETE: `name` is the tag."""
    repo = writable(hub, request, kind, id)
    if request.method == "DELETE":
        return remove_ref(repo.tags, name)
    if (new := request.json()["tag"]) in repo.tags:
        raise Refusal(409, f"Tag {new} exists")
    repo.tags[new] = repo.resolve(name).sha
    return 200, {}, {}


def remove_ref(refs: dict[str, str], name: str, keep: str = ""):
    if name not in refs:
        raise Refusal(404, f"No ref {name}", "RevisionNotFound")
    if name == keep:
        raise Refusal(403, f"{name} cannot be removed")
    del refs[name]
    return 200, {}, {}
