"""The tests' Hub, driven by the clients it stands in for: who may do what, commits, files, pull requests."""

import json
import socket
from pathlib import Path

import huggingface_hub as hf
import pytest
from huggingface_hub import CommitOperationDelete
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from support.hub_calls import CARD, WEIGHTS, add, status

# ---- Who may do what ----


def test_whoami_and_tokens(hub, api):
    assert api.whoami()["name"] == "ada" and api.whoami(token="hf_bob")["name"] == "bob"
    assert status(api.whoami, token="hf_nobody") == 401
    hub.repo("ada/m", {"a.txt": "a"})
    assert status(api.model_info, "ada/m", token="hf_nobody") == 401
    assert {(one.token, one.status) for one in hub.requests} == {(True, 200), (True, 401)}
    assert not any("hf_" in str(one) for one in hub.requests)


def test_creating_repositories(hub, api):
    url = api.create_repo("m")
    assert (url.repo_id, url.repo_type, url) == ("ada/m", "model", f"{hub.url}/ada/m")
    assert status(api.create_repo, "ada/m") == 409
    assert api.create_repo("ada/m", exist_ok=True).repo_id == "ada/m"
    assert api.create_repo("ada/m", repo_type="dataset").repo_type == "dataset"
    assert status(api.create_repo, "bob/m") == 403
    assert status(api.create_repo, "ada/n", token=hub.user("ada", "hf_reads", write=False)) == 403
    assert status(api.create_repo, "ada/n", token=False) == 401
    with pytest.raises(HFValidationError):
        api.create_repo("ada/a--b")
    post = hf.utils.get_session().post
    answer = post(f"{hub.url}/api/repos/create", json={"name": "a b"}, headers={"authorization": "Bearer hf_ada"})
    assert answer.status_code == 400
    api.delete_repo("ada/m")
    assert not api.repo_exists("ada/m")


def test_a_private_repository_looks_like_none(hub, api):
    api.create_repo("secret", private=True)
    add(api, repo="ada/secret")
    assert api.model_info("ada/secret").private
    for token, code in (("hf_bob", 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.model_info("ada/secret", token=token)
        assert error.value.response.status_code == code
        with pytest.raises(RepositoryNotFoundError):
            hf.hf_hub_download("ada/secret", "a.txt", token=token)
        assert not list(api.list_models(token=token))
    assert [one.id for one in api.list_models()] == ["ada/secret"]
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ada/missing")


def test_nobody_writes_to_a_repository_of_somebody_else(hub, api):
    hub.repo("bob/m", {"a.txt": "a"})
    assert status(add, api, repo="bob/m") == 403
    assert status(add, api, repo="bob/m", token=False) == 401
    assert len(hub.commits("bob/m")) == 2


# ---- Pushing and loading ----


def test_a_folder_goes_up_and_comes_down(hub, api, tmp_path):
    api.create_repo("m")
    folder = tmp_path / "up"
    (folder / "logs").mkdir(parents=True)
    files = {"README.md": CARD.encode(), "model.safetensors": WEIGHTS, "logs/big.txt": b"x" * 1_500_000}
    for path, content in files.items():
        (folder / path).write_bytes(content)
    first = api.upload_folder(repo_id="ada/m", folder_path=folder, commit_message="Push")
    assert hub.files("ada/m") == {**files, ".gitattributes": hub.files("ada/m")[".gitattributes"]}
    assert [one.title for one in hub.commits("ada/m")] == ["Push", "initial commit"]
    assert hub.commits("ada/m")[0].sha == first.oid and len(first.oid) == 40
    sent = len(hub.seen("upload"))
    assert sent == 2  # the weights, and the text of more than 1 MB
    again = api.upload_folder(repo_id="ada/m", folder_path=folder, commit_message="Push")
    assert again.oid == first.oid and len(hub.seen("upload")) == sent and len(hub.seen("commit")) == 1
    down = Path(hf.snapshot_download("ada/m"))
    assert (down / "model.safetensors").read_bytes() == WEIGHTS and (down / "README.md").read_text() == CARD
    assert down.name == first.oid
    files = {one.rfilename: one for one in api.model_info("ada/m", files_metadata=True).siblings}
    assert files["model.safetensors"].lfs.size == len(WEIGHTS) and files["README.md"].lfs is None


def test_a_blob_that_is_there_is_not_asked_for_again(hub, api):
    api.create_repo("m")
    add(api, "one.bin", WEIGHTS)
    add(api, "two.bin", WEIGHTS)
    assert len(hub.seen("upload")) == 1 and hub.files("ada/m")["two.bin"] == WEIGHTS


def test_large_files_go_up_in_parts(hub, api):
    api.create_repo("m")
    hub.multipart_size = 40_000
    add(api, "model.bin", WEIGHTS)
    assert hub.files("ada/m")["model.bin"] == WEIGHTS
    assert [one.path[-2:] for one in hub.seen("upload")] == ["/1", "/2", "/3"]


def test_commits_keep_history_and_revisions(hub, api):
    api.create_repo("m")
    first, second = add(api, content=b"1").oid, add(api, content=b"2").oid
    api.create_branch("ada/m", branch="side", revision=first)
    api.create_tag("ada/m", tag="v1", revision=first)
    add(api, "b.txt", revision="side")
    for revision, content in (("main", "2"), (second, "2"), (first[:8], "1"), ("v1", "1"), ("side", "1")):
        path = hf.hf_hub_download("ada/m", "a.txt", revision=revision)
        assert Path(path).read_text() == content, revision
    assert [one.commit_id for one in api.list_repo_commits("ada/m")][:2] == [second, first]
    refs = api.list_repo_refs("ada/m")
    assert {one.name for one in refs.branches} == {"main", "side"} and refs.tags[0].target_commit == first
    assert status(api.create_branch, "ada/m", branch="side") == 409
    api.create_branch("ada/m", branch="side", exist_ok=True)
    api.delete_branch("ada/m", branch="side")
    api.delete_tag("ada/m", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ada/m", revision="side")
    with pytest.raises(EntryNotFoundError):
        hf.hf_hub_download("ada/m", "missing.txt")


def test_commit_operations(hub, api):
    api.create_repo("m")
    head = add(api, "logs/a.txt").oid
    add(api, "logs/b.txt")
    assert status(add, api, "c.txt", parent_commit=head) == 412
    assert "c.txt" not in hub.files("ada/m")
    api.create_commit("ada/m", [CommitOperationDelete("logs/a.txt")], commit_message="Delete")
    assert set(hub.files("ada/m")) == {".gitattributes", "logs/b.txt"}
    api.delete_folder("logs", "ada/m")
    assert set(hub.files("ada/m")) == {".gitattributes"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("never.txt", "ada/m")
    count = len(hub.commits("ada/m"))
    with pytest.raises(ValueError, match="license"):
        add(api, "README.md", b"---\nlicense: my own\n---\n")

    def commit(*lines):
        body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines).encode()
        auth = {"authorization": "Bearer hf_ada"}
        return hf.utils.get_session().post(f"{hub.url}/api/models/ada/m/commit/main", content=body, headers=auth)

    header = ("header", {"summary": "s"})
    for wrong in (
        ("lfsFile", {"path": "x.bin", "oid": "0" * 64}), ("file", {"path": "../x", "content": ""}), ("?", {})
    ):  # fmt: skip
        assert commit(header, wrong).status_code == 400, wrong
    answer = commit(header)
    assert answer.json()["commitOid"] == hub.commits("ada/m")[0].sha and len(hub.commits("ada/m")) == count


def test_uploads_are_checked(hub, api):
    api.create_repo("m")
    session, oid = hf.utils.get_session(), "1" * 64
    auth = {"authorization": "Bearer hf_ada"}
    batch = session.post(
        f"{hub.url}/ada/m.git/info/lfs/objects/batch",
        json={"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": 3}]},
        headers=auth,
    ).json()
    actions = batch["objects"][0]["actions"]
    assert session.put(actions["upload"]["href"], content=b"abc").status_code == 400
    assert session.put(actions["upload"]["href"].replace("key=", "key=0"), content=b"abc").status_code == 403
    assert session.post(actions["verify"]["href"], json={"oid": oid, "size": 3}, headers=auth).status_code == 404


def test_pull_requests(hub, api):
    hub.repo("bob/m", {"a.txt": "a"})
    made = add(api, "b.txt", repo="bob/m", create_pr=True)
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert "b.txt" not in hub.files("bob/m") and "b.txt" in hub.files("bob/m", "refs/pr/1")
    assert Path(hf.hf_hub_download("bob/m", "b.txt", revision="refs/pr/1")).read_text() == "a"
    draft = api.create_pull_request("bob/m", "Words", description="Some words")
    assert (draft.num, draft.status, draft.is_pull_request, draft.author) == (2, "draft", True, "ada")
    add(api, "c.txt", repo="bob/m", revision="refs/pr/2")
    assert [one.num for one in api.get_repo_discussions("bob/m")] == [2, 1]
    assert [one.num for one in api.get_repo_discussions("bob/m", author="bob")] == []
    assert api.list_repo_refs("bob/m", include_pull_requests=True).pull_requests[0].ref == "refs/pr/1"
    assert status(api.merge_pull_request, "bob/m", 1) == 403
    api.merge_pull_request("bob/m", 1, token="hf_bob")
    details = api.get_discussion_details("bob/m", 1)
    assert details.status == "merged" and details.merge_commit_oid == hub.commits("bob/m")[0].sha
    assert "b.txt" in hub.files("bob/m") and "c.txt" not in hub.files("bob/m")
    assert not api.create_discussion("bob/m", "A question", description="Why?").is_pull_request


def test_listing_a_tree(hub, api):
    hub.repo("ada/m", {"a.txt": "a", "logs/b.txt": "bb", "logs/deep/c.txt": "c"})
    hub.page_size = 2
    names = {one.path for one in api.list_repo_tree("ada/m", recursive=True)}
    assert names == {".gitattributes", "a.txt", "logs", "logs/b.txt", "logs/deep", "logs/deep/c.txt"}
    assert len(hub.seen("tree")) == 3  # pages
    assert {one.path for one in api.list_repo_tree("ada/m", "logs")} == {"logs/b.txt", "logs/deep"}
    add(api, "new.txt")
    found = {one.path: one for one in api.get_paths_info("ada/m", ["a.txt", "logs", "no"], expand=True)}
    assert set(found) == {"a.txt", "logs"} and found["a.txt"].size == 1
    assert found["a.txt"].last_commit.title == "Add files"
    assert api.file_exists("ada/m", "logs/b.txt") and not api.file_exists("ada/m", "b.txt")


def test_a_range_of_a_file(hub):
    hub.repo("ada/m", {"a.txt": "0123456789"})
    get = hf.utils.get_session().get
    for span, part in (("2-4", b"234"), ("7-", b"789"), ("-2", b"89"), ("8-99", b"89")):
        answer = get(f"{hub.url}/ada/m/resolve/main/a.txt", headers={"Range": f"bytes={span}"})
        assert (answer.status_code, answer.content) == (206, part)
    assert get(f"{hub.url}/ada/m/resolve/main/a.txt", headers={"Range": "bytes=10-"}).status_code == 416


# ---- Nothing else ----


def test_nothing_else_can_be_reached(hub):
    with pytest.raises(OSError, match="no test reaches"):
        socket.create_connection(("huggingface.co", 443), timeout=5)
    assert socket.create_connection(("localhost", hub.server.server_port), timeout=5)


def test_the_fixture_starts_from_nothing(hub):
    assert not hub.repos and not hub.users and not hub.faults and not hub.requests
    with pytest.raises(RepositoryNotFoundError):
        hf.hf_hub_download("ada/m", "a.txt")
