"""The tests' Hub, driven by the clients it stands in for."""

import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub as hf
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CARD = """---
license: mit
tags: [r-drop]
datasets: [nyu-mll/glue]
base_model: google-bert/bert-base-cased
pipeline_tag: text-classification
library_name: transformers
model-index:
- name: m
  results:
  - task: {type: text-classification}
    dataset: {type: nyu-mll/glue, name: GLUE MRPC, config: mrpc}
    metrics: [{type: accuracy, value: 0.8}]
---
See https://arxiv.org/abs/2106.14448
"""
WEIGHTS = bytes(range(256)) * 400  # 102 400 bytes


@pytest.fixture
def api(hub):
    hub.user("ada")
    hub.user("bob")
    hub.login("ada")
    return HfApi()


def add(api, path="a.txt", content=b"a", repo="ada/m", **options):
    return api.create_commit(repo, [CommitOperationAdd(path, content)], commit_message=f"Add {path}", **options)


def status(call, *args, **kwargs):
    with pytest.raises(HfHubHTTPError) as error:
        call(*args, **kwargs)
    return error.value.response.status_code


def stubborn(call, *args, **kwargs):
    """A second call where huggingface_hub 1.x gives up on a connection that 2.x opens again."""
    try:
        return call(*args, **kwargs)
    except Exception:
        if int(hf.__version__.split(".")[0]) > 1:
            raise
        return call(*args, **kwargs)


# Who may do what


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


# Pushing and loading


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


# What the Hub derives from a card


def test_tags_come_from_the_card(hub, api):
    hub.repo("ada/m", {"README.md": CARD, "config.json": '{"model_type": "bert"}', "model.safetensors": WEIGHTS})
    info = api.model_info("ada/m")
    assert set(info.tags) == {
        *("transformers", "safetensors", "bert", "text-classification", "r-drop", "model-index", "license:mit"),
        *("dataset:nyu-mll/glue", "base_model:google-bert/bert-base-cased", "arxiv:2106.14448", "region:us"),
        "base_model:finetune:google-bert/bert-base-cased",
    }
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-classification")
    assert info.card_data.eval_results[0].metric_value == 0.8 and info.model_index[0]["name"] == "m"
    assert hub.card("ada/m")["license"] == "mit"
    some = api.model_info("ada/m", expand=["tags", "cardData"])
    assert some.tags == info.tags and some.sha is None and some.card_data.license == "mit"


def test_listing_models(hub, api):
    for n in range(7):
        hub.repo(f"ada/m{n}", {"README.md": CARD if n % 2 else "---\ntags: [r-drop]\n---\n"})
    hub.repo("bob/other", {"README.md": "---\ntags: [other]\n---\n"})
    hub.page_size = 2
    assert {one.id for one in api.list_models(filter="r-drop")} == {f"ada/m{n}" for n in range(7)}
    assert len(hub.seen("list")) == 4  # pages
    found = list(api.list_models(filter=["r-drop", "dataset:nyu-mll/glue"], cardData=True))
    assert {one.id for one in found} == {"ada/m1", "ada/m3", "ada/m5"} and found[0].card_data.license == "mit"
    assert {one.id for one in api.list_models(pipeline_tag="text-classification")} == {"ada/m1", "ada/m3", "ada/m5"}
    assert [one.id for one in api.list_models(author="bob")] == ["bob/other"]
    assert [one.id for one in api.list_models(search="OTH", full=True)] == ["bob/other"]
    assert len(list(api.list_models(limit=3))) == 3
    times = [one.last_modified for one in api.list_models(sort="last_modified", expand=["lastModified"])]
    assert len(times) == 8 and times == sorted(times, reverse=True)


@pytest.mark.skipif(
    "constants.ENDPOINT" not in inspect.getsource(ModelCard.validate), reason="this client asks huggingface.co alone"
)
def test_a_card_is_validated_and_pushed(hub, api):
    api.create_repo("m")
    result = EvalResult("text-classification", "nyu-mll/glue", "GLUE", "accuracy", 0.5)
    card = ModelCard.from_template(ModelCardData(license="mit", model_name="m", eval_results=[result]))
    card.push_to_hub("ada/m")
    assert hub.card("ada/m")["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert ModelCard.load("ada/m").data.license == "mit"


@pytest.mark.parametrize(
    "change, complaint",
    [
        (("license: mit", "license: my own"), "license"),
        (("[r-drop]", "r-drop"), "tags"),
        (("[r-drop]", "[1]"), "tags"),
        (("google-bert/bert-base-cased", "/home/me/model"), "base_model"),
        (("[nyu-mll/glue]", "[a/b/c]"), "datasets"),
        (("value: 0.8", "value: .nan"), "finite"),
        (("{type: text-classification}", "{}"), "task.type"),
        ((", name: GLUE MRPC", ""), "dataset.name"),
        (("type: accuracy, ", ""), "metrics[0].type"),
        (("tags: [r-drop]", "tags: [r-drop"), "YAML"),
        ((CARD, "---\n- a list\n---\n"), "mapping"),
    ],
)
def test_metadata_the_hub_refuses(hub, change, complaint):
    text = CARD.replace(*change)
    sound, answer = (
        hf.utils.get_session().post(f"{hub.url}/api/validate-yaml", json={"content": one, "repoType": "model"})
        for one in (CARD, text)
    )
    assert sound.json() == {"errors": [], "warnings": []}
    assert answer.status_code == 400 and complaint in str(answer.json()["errors"]), answer.json()


def test_metadata_the_hub_warns_of(hub, api):
    api.create_repo("m")
    for text in ("No metadata", "---\npipeline_tag: mind-reading\n---\n"):
        with pytest.warns(UserWarning, match="empty or missing yaml|not in the official list"):
            add(api, "README.md", text.encode())


# Other libraries


def test_transformers_loads_a_model_by_name(hub, api, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from support import tiny

    model = tiny.bert()
    model.push_to_hub("ada/bert", private=True)
    tiny.tokenizer().push_to_hub("ada/bert")
    loaded = AutoModelForSequenceClassification.from_pretrained("ada/bert")
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert AutoTokenizer.from_pretrained("ada/bert")("w3")["input_ids"] == [3]
    info = api.model_info("ada/bert")
    assert info.pipeline_tag == "text-classification" and info.safetensors.total == model.num_parameters()
    with pytest.raises(OSError, match="not a valid model identifier"):
        AutoModelForSequenceClassification.from_pretrained("ada/missing")


def test_datasets_loads_a_configuration(hub, tmp_path):
    import datasets

    card = "---\nconfigs:\n"
    files = {}
    for config in ("mrpc", "rte"):
        card += f"- config_name: {config}\n  data_files:\n"
        for split, rows in (("train", 5), ("validation", 3)):
            card += f"  - {{split: {split}, path: {config}/{split}-*}}\n"
            rows = datasets.Dataset.from_dict({"sentence1": [f"{config} {n}" for n in range(rows)]})
            rows.to_parquet(tmp_path / "rows.parquet")
            files[f"{config}/{split}-00000-of-00001.parquet"] = (tmp_path / "rows.parquet").read_bytes()
    hub.repo("nyu-mll/glue", {"README.md": card + "---\n", **files}, kind="dataset")
    loaded = datasets.load_dataset("nyu-mll/glue", "mrpc")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 3}
    assert loaded["train"][0] == {"sentence1": "mrpc 0"}
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset("nyu-mll/none")
    hub.user("ada")
    hub.login("ada")
    loaded["train"].push_to_hub("ada/rows")
    assert hub.repos["dataset", "ada/rows"].kind == "dataset"
    assert len(datasets.load_dataset("ada/rows", split="train")) == 5


def test_a_child_process_asks_this_hub(hub):
    hub.user("ada")
    hub.login("ada")
    code = "import huggingface_hub as hf; print(hf.whoami()['name']); hf.model_info('ada/none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "ada\n" and "RepositoryNotFoundError" in done.stderr
    assert [one.status for one in hub.requests] == [200, 404]
    assert os.environ["HF_ENDPOINT"] == hf.constants.ENDPOINT == hub.url


# Faults


def test_a_refused_commit_is_refused_once(hub, api):
    api.create_repo("m")
    hub.fail("commit", status=503, headers={"Retry-After": "1"})
    assert status(add, api) == 503
    assert "a.txt" not in hub.files("ada/m")
    add(api)
    assert hub.files("ada/m")["a.txt"] == b"a"
    assert [one.status for one in hub.seen("commit")] == [503, 200]


@pytest.mark.parametrize("route", ["preupload", "batch", "upload", "verify"])
def test_the_client_retries_the_rest_of_a_push(hub, api, route):
    api.create_repo("m")
    hub.fail(route, status=503, times=2)
    add(api, "model.bin", WEIGHTS)
    assert [one.status for one in hub.seen(route)] == [503, 503, 200]


def test_a_dropped_upload(hub, api):
    api.create_repo("m")
    hub.drop("upload", after=50_000)
    stubborn(add, api, "model.bin", WEIGHTS)
    assert hub.files("ada/m")["model.bin"] == WEIGHTS
    assert [one.status for one in hub.seen("upload")] == [None, 200]


def test_a_lost_answer(hub, api):
    api.create_repo("m")
    hub.lose_answer("commit")
    with pytest.raises(Exception) as error:
        add(api)
    assert not isinstance(error.value, HfHubHTTPError)
    assert hub.files("ada/m")["a.txt"] == b"a" and hub.seen("commit")[0].status is None
    count = len(hub.commits("ada/m"))
    add(api)
    assert len(hub.commits("ada/m")) == count  # nothing to commit, and the client knows


def test_a_dropped_download(hub, api):
    hub.repo("ada/m", {"model.bin": WEIGHTS})
    hub.drop("resolve", after=30_000, method="GET")
    with pytest.raises(Exception, match="reset by peer"):  # the client gives up
        hf.hf_hub_download("ada/m", "model.bin")
    hub.drop("resolve", after=30_000, method="GET", hard=False)
    path = stubborn(hf.hf_hub_download, "ada/m", "model.bin")  # here it tries again
    assert Path(path).read_bytes() == WEIGHTS
    assert [one.status for one in hub.seen("resolve", "GET")] == [None, None, 200]


def test_a_short_download_is_noticed(hub, api):
    hub.repo("ada/m", {"model.bin": WEIGHTS})
    hub.truncate("model.bin", keep=100)
    with pytest.raises(OSError, match="Consistency check"):
        hf.hf_hub_download("ada/m", "model.bin")


def test_a_corrupt_download_is_not_noticed_by_the_client(hub, api):
    hub.repo("ada/m", {"a.bin": WEIGHTS, "b.bin": WEIGHTS[:-1]})
    hub.corrupt("a.bin")
    a, b = (Path(hf.hf_hub_download("ada/m", name)).read_bytes() for name in ("a.bin", "b.bin"))
    assert len(a) == len(WEIGHTS) and sum(x != y for x, y in zip(a, WEIGHTS, strict=True)) == 1
    assert b == WEIGHTS[:-1]
    assert Path(hf.hf_hub_download("ada/m", "a.bin", force_download=True)).read_bytes() == WEIGHTS


def test_false_headers(hub, api):
    hub.repo("ada/m", {"a.txt": "a"})
    hub.lie("X-Repo-Commit", "0" * 40)
    hub.lie("ETag", '"beef"', path="a.txt")
    path = Path(hf.hf_hub_download("ada/m", "a.txt"))
    assert path.parent.name == "0" * 40 and path.resolve().name == "beef"


def test_a_listing_with_a_path_that_leads_out(hub, api, tmp_path):
    hub.repo("ada/m", {"config.json": "{}"})
    hub.rename("config.json", "../../evil.json")
    assert "../../evil.json" in [one.rfilename for one in api.model_info("ada/m").siblings]
    assert "../../evil.json" in api.list_repo_files("ada/m")
    with pytest.raises(Exception):  # noqa: B017 (which error, differs by version)
        hf.snapshot_download("ada/m", local_dir=tmp_path / "in" / "here")
    assert not list(tmp_path.glob("**/evil.json"))


def test_faults_pick_their_requests(hub, api):
    hub.repo("ada/m", {"a.txt": "a", "b.txt": "b"})
    hub.fail("resolve", status=500, path="b.txt", method="HEAD", times=None)
    assert Path(hf.hf_hub_download("ada/m", "a.txt")).read_text() == "a"
    with pytest.raises(Exception, match="500|locate the file"):
        hf.hf_hub_download("ada/m", "b.txt")
    hub.fail("info", status=502, skip=1)
    assert api.model_info("ada/m").id == "ada/m"
    assert status(api.model_info, "ada/m") == 502
    hub.delay("info", 0.3)
    with pytest.raises(Exception, match="(?i)timed out"):
        api.model_info("ada/m", timeout=0.05)


def test_a_range_of_a_file(hub):
    hub.repo("ada/m", {"a.txt": "0123456789"})
    get = hf.utils.get_session().get
    for span, part in (("2-4", b"234"), ("7-", b"789"), ("-2", b"89"), ("8-99", b"89")):
        answer = get(f"{hub.url}/ada/m/resolve/main/a.txt", headers={"Range": f"bytes={span}"})
        assert (answer.status_code, answer.content) == (206, part)
    assert get(f"{hub.url}/ada/m/resolve/main/a.txt", headers={"Range": "bytes=10-"}).status_code == 416


def test_nothing_else_can_be_reached(hub):
    with pytest.raises(OSError, match="no test reaches"):
        socket.create_connection(("huggingface.co", 443), timeout=5)
    assert socket.create_connection(("localhost", hub.server.server_port), timeout=5)


def test_the_fixture_starts_from_nothing(hub):
    assert not hub.repos and not hub.users and not hub.faults and not hub.requests
    with pytest.raises(RepositoryNotFoundError):
        hf.hf_hub_download("ada/m", "a.txt")
