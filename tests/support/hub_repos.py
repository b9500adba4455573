"""What the local Hub stores: files, commits and refs of one repository, and what the Hub derives from them."""

import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

from support import hub_cards

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".parquet", ".pt", ".zip", ".gz")
LFS_SIZE = 1_000_000  # bytes; any larger file goes through LFS whatever its name
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForImageClassification": "image-classification",
}


class Refusal(Exception):
    """An answer with an error status; `code` is the Hub's X-Error-Code, `body` more of its JSON."""

    def __init__(self, status: int, message: str, code: str | None = None, headers=None, **body):
        super().__init__(message)
        self.status, self.message, self.body = status, message, body
        shown = message.encode("ascii", "replace").decode().replace("\n", " ")  # a header cannot hold more
        self.headers = {**(headers or {}), "X-Error-Message": shown, **({"X-Error-Code": code} if code else {})}


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def oid(self) -> str:
        """Git's hash: of the content, or of the pointer that git keeps for an LFS file."""
        return git_hash(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    tree: dict[str, File]
    parents: tuple[str, ...]
    author: str
    title: str
    message: str
    date: str
    repo: str

    @cached_property
    def sha(self) -> str:
        tree = "".join(f"{path} {file.oid}\n" for path, file in sorted(self.tree.items()))
        text = "\n".join([self.repo, tree, *self.parents, self.author, self.date, self.title, self.message])
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Discussion:
    num: int
    title: str
    description: str
    author: str
    is_pull_request: bool
    status: str
    created: str = field(default_factory=now)
    merged_as: str | None = None


class Repo:
    """One repository; `kind` is "model" or "dataset". It starts, as the Hub's do, with a commit of .gitattributes."""

    def __init__(self, repo_id: str, kind: str, private: bool):
        self.id, self.kind, self.private = repo_id, kind, private
        self.gated = False
        self.created = now()
        self.author = repo_id.split("/")[0] if "/" in repo_id else None
        self.blobs: dict[str, bytes] = {}  # LFS contents that were uploaded, by sha256
        self.parts: dict[tuple[str, int], bytes] = {}  # of multipart uploads, by (sha256, number)
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        self.pulls: dict[int, str] = {}
        self.history: dict[str, Commit] = {}
        first = self.record(
            {".gitattributes": File(GITATTRIBUTES, lfs=False)}, (), self.author or "hub", "initial commit"
        )
        self.branches["main"] = first.sha

    def record(self, tree: dict[str, File], parents: tuple[str, ...], author: str, title: str, message="") -> Commit:
        commit = Commit(tree, parents, author, title, message, now(), f"{self.kind}s/{self.id}")
        self.history[commit.sha] = commit
        return commit

    def refs(self) -> dict[str, str]:
        return {
            **{f"refs/pr/{num}": sha for num, sha in self.pulls.items()},
            **{f"refs/tags/{name}": sha for name, sha in self.tags.items()},
            **{f"refs/heads/{name}": sha for name, sha in self.branches.items()},
        }

    def resolve(self, revision: str) -> Commit:
        """The commit a branch, tag, refs/... name, full hash or hash prefix of 7 digits or more stands for."""
        refs = self.refs()
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return self.history[refs[name]]
        found = [sha for sha in self.history if len(revision) >= 7 and sha.startswith(revision)]
        if len(found) != 1:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.history[found[0]]

    def advance(self, revision: str, commit: Commit):
        """Points a branch or a pull request's ref at `commit`."""
        if pull := re.fullmatch(r"refs/pr/(\d+)", revision):
            self.pulls[int(pull[1])] = commit.sha
        elif (name := revision.removeprefix("refs/heads/")) in self.branches:
            self.branches[name] = commit.sha
        else:
            raise Refusal(404, f"{revision} is no branch", "RevisionNotFound")

    def log(self, commit: Commit) -> list[Commit]:
        """The commit and its first parents, newest first."""
        commits = [commit]
        while commits[-1].parents:
            commits.append(self.history[commits[-1].parents[0]])
        return commits

    def open(self, title: str, description: str, author: str, pull: bool, status: str) -> Discussion:
        discussion = Discussion(len(self.discussions) + 1, title, description, author, pull, status)
        self.discussions.append(discussion)
        if pull:
            self.pulls[discussion.num] = self.branches["main"]
        return discussion


def card_text(commit: Commit) -> str:
    return commit.tree["README.md"].content.decode() if "README.md" in commit.tree else ""


def card_data(commit: Commit) -> dict | None:
    """The card's metadata as JSON can carry it; None without a card or with metadata that cannot be read."""
    data, errors = hub_cards.metadata(card_text(commit))
    return None if errors or not data else json.loads(json.dumps(data, default=str))


def config_of(commit: Commit) -> dict | None:
    if "config.json" not in commit.tree:
        return None
    config = json.loads(commit.tree["config.json"].content)
    return {key: config[key] for key in ("architectures", "model_type") if key in config}


def safetensors_info(commit: Commit) -> dict | None:
    """Counts of parameters by type, from the headers of the safetensors files."""
    counts: dict[str, int] = {}
    for path, file in commit.tree.items():
        if path.endswith(".safetensors") and len(file.content) > 8:
            (length,) = struct.unpack("<Q", file.content[:8])
            try:
                header = json.loads(file.content[8 : 8 + length])
            except ValueError:  # not a safetensors file but for its name
                continue
            for name, tensor in header.items():
                if name != "__metadata__":
                    size = 1
                    for n in tensor["shape"]:
                        size *= n
                    counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + size
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def many(value) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def derived(commit: Commit, kind: str) -> dict:
    """library_name, pipeline_tag and tags, which the Hub works out from the card and from config.json."""
    data, config = card_data(commit) or {}, config_of(commit) or {}
    prefixes = ["dataset", "language"] if kind == "model" else ["task_categories", "size_categories", "language"]
    tags = [str(tag) for tag in many(data.get("tags"))]
    if kind == "model":
        library = data.get("library_name") or ("transformers" if config.get("model_type") else None)
        classes = config.get("architectures")
        classes = [str(name) for name in classes] if isinstance(classes, list) else []
        heads = [PIPELINES[end] for name in classes for end in PIPELINES if name.endswith(end)]
        pipeline = data.get("pipeline_tag") or next(iter(heads), None)
        weights = "safetensors" if any(path.endswith(".safetensors") for path in commit.tree) else None
        index = "model-index" if data.get("model-index") else None
        tags = [library, weights, config.get("model_type"), pipeline, *tags, index]
        tags += [f"dataset:{name}" for name in many(data.get("datasets"))]
        tags += [f"base_model:{name}" for name in many(data.get("base_model"))]
        relation = data.get("base_model_relation") or ("adapter" if library == "peft" else "finetune")
        tags += [f"base_model:{relation}:{name}" for name in many(data.get("base_model"))]
    else:
        library, pipeline = None, None
        tags += [f"{prefix}:{value}" for prefix in prefixes for value in many(data.get(prefix))]
    tags += [*map(str, many(data.get("language")))] if kind == "model" else []
    tags += [f"license:{name}" for name in many(data.get("license"))]
    tags += [f"arxiv:{number}" for number in re.findall(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", card_text(commit))]
    tags = [*tags, "region:us"]
    return {"library_name": library, "pipeline_tag": pipeline, "tags": list(dict.fromkeys(tag for tag in tags if tag))}


def info(repo: Repo, commit: Commit, blobs: bool = False, rename=lambda path: path) -> dict:
    """Everything `GET /api/models/{id}` may tell; a field that is None is left out."""
    model_facts = {}
    if repo.kind == "model":
        data = card_data(commit) or {}
        model_facts = {
            "modelId": repo.id,
            "config": config_of(commit),
            "model-index": data.get("model-index"),
            "safetensors": safetensors_info(commit),
            "spaces": [],
        }
    facts = {
        "_id": hashlib.sha1(f"{repo.kind}s/{repo.id}".encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.author,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "trendingScore": 0,
        "usedStorage": sum(len(file.content) for file in commit.tree.values()),
        "cardData": card_data(commit),
        "siblings": [
            {
                "rfilename": rename(path),
                **({"size": len(file.content), "blobId": file.oid} if blobs else {}),
                **({"lfs": lfs_facts(file, "sha256")} if blobs and file.lfs else {}),
            }
            for path, file in sorted(commit.tree.items())
        ],
        **derived(commit, repo.kind),
        **model_facts,
    }
    return {key: value for key, value in facts.items() if value is not None}


def lfs_facts(file: File, key: str) -> dict:
    return {key: file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
