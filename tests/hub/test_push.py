"""push_checkpoint with the real client against a local Hub: the whole checkpoint or nothing, once, and no secrets."""

import hashlib
import json
import os
import time
import traceback

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save
from transformers import AutoModelForSequenceClassification

from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import push_checkpoint
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.client import connect, httpx, with_retries
from rdrop_trainer.hub.folder import read_checkpoint
from support import tiny

REPO = "ada/model"
SENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SHOWN = {"seen.png", "linked/report.md"}  # by the card


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What a training leaves: a model, 5 MB of it, and much that nobody else should get."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    tiny.bert(vocab_size=80_000).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size > 5_000_000
    (folder / "checkpoint-5").mkdir()
    for name in ("training_args.bin", "optimizer.pt", "checkpoint-5/optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("hf_secretsecretsecretsecret")
    (folder / "all_results.json").write_text(json.dumps({"settings": {"data_dir": "/home/ada"}}))
    (folder / "train.csv").write_text("private data")
    (folder / "seen.png").write_bytes(b"\x89PNG seen")
    (folder / "unseen.png").write_bytes(b"\x89PNG unseen")
    (folder / "report.md").write_text("of a comparison")
    (folder / "linked").mkdir()
    (folder / "linked" / "report.md").write_text("of another")
    card = (
        "---\nlibrary_name: transformers\ntags: [r-drop]\n---\n\n# Mine\n\n![a](seen.png) [report](linked/report.md)\n"
    )
    (folder / "README.md").write_text(card)
    return folder


def state(folder):
    """Every file below a folder, by its hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def written(hub, repo=REPO, revision="main"):
    """The files of a repository but the one that the Hub makes itself."""
    return {name: content for name, content in hub.files(repo, revision).items() if name != ".gitattributes"}


def is_whole(hub, folder, revision="main"):
    files = written(hub, revision=revision)
    same = all(files[name] == (folder / name).read_bytes() for name in files if name != "README.md")
    return set(files) == {*SENT, *SHOWN} and same


# ---- What is sent ----


def test_a_checkpoint_and_nothing_else_is_sent(ada, folder):
    before = state(folder)
    commit = push_checkpoint(folder, REPO, commit_message="My model")
    assert is_whole(ada, folder) and state(folder) == before
    assert [c.title for c in ada.commits(REPO)][0] == "My model" and len(ada.commits(REPO)) == 2
    assert commit.oid == ada.commits(REPO)[0].sha and commit.commit_url.endswith(f"{REPO}/commit/{commit.oid}")
    assert ada.seen("upload"), "5 MB go through LFS"
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    expected = AutoModelForSequenceClassification.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))


def test_pushing_again_makes_no_second_commit(ada, folder):
    first = push_checkpoint(folder, REPO)
    uploads = len(ada.seen("upload"))
    assert push_checkpoint(folder, REPO).oid == first.oid
    assert len(ada.commits(REPO)) == 2 and len(ada.seen("upload")) == uploads


def test_a_name_alone_is_the_users_own(ada, folder):
    push_checkpoint(folder, "model")
    assert is_whole(ada, folder)


def test_files_of_an_earlier_checkpoint_go(ada, folder):
    """Else a model.safetensors of before would be read in place of the shards."""
    push_checkpoint(folder, REPO)
    ada.repo(REPO, {"notes.txt": "kept", "pytorch_model.bin": "old", "vocab.txt": "old"})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with torch.no_grad():
        model.classifier.bias.fill_(7.0)
    model.save_pretrained(folder, max_shard_size="4MB")
    push_checkpoint(folder, REPO)
    files = written(ada)
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    other = {"model.safetensors.index.json", "notes.txt", *SHOWN}
    assert set(files) == (SENT - {"model.safetensors"}) | shards | other
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    assert (loaded.classifier.bias == 7).all()


def test_a_folder_without_a_card_takes_the_repositorys_own_from_nobody(ada, folder, caplog):
    (folder / "README.md").unlink()
    push_checkpoint(folder, REPO)
    assert set(written(ada)) == SENT - {"README.md"} and "has no README.md" in caplog.text
    ada.repo(REPO, {"README.md": "# Written by hand", "config.json": "{}"})
    push_checkpoint(folder, REPO)
    assert written(ada)["README.md"] == b"# Written by hand" and written(ada)["config.json"] != b"{}"


def test_local_paths_are_taken_out(ada, folder, tmp_path):
    card = f"---\nbase_model: {tmp_path}\n---\nTuned from [{tmp_path}](https://huggingface.co/{tmp_path}): {tmp_path}\n"
    (folder / "README.md").write_text(card)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": str(tmp_path)}))
    before = state(folder)
    push_checkpoint(folder, REPO)
    assert not [name for name, content in written(ada).items() if str(tmp_path).encode() in content]
    assert json.loads(written(ada)["config.json"]) == config and state(folder) == before


def test_private_repositories(ada, folder, monkeypatch):
    push_checkpoint(folder, REPO, private=True)
    assert ada.repos["model", REPO].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Exception, match="404|401"):
        snapshot_download(REPO)
    push_checkpoint(folder, "ada/open", token="hf_ada", private=False)
    with pytest.raises(InputError, match="ada/open: is there already and public"):
        push_checkpoint(folder, "ada/open", token="hf_ada", private=True)


def test_a_branch_is_made(ada, folder):
    push_checkpoint(folder, REPO, revision="v2")
    assert is_whole(ada, folder, "v2") and written(ada) == {}


@pytest.mark.parametrize("lost", [False, True])
def test_a_pull_request_leaves_main_alone(ada, folder, lost):
    ada.repo("eve/model", {"config.json": "{}"})
    if lost:
        ada.lose_answer("discussions", method="POST")
        ada.lose_answer("commit")
    commit = push_checkpoint(folder, "eve/model", create_pr=True, commit_message="Better")
    assert set(written(ada, "eve/model")) == {"config.json"}
    assert set(written(ada, "eve/model", "refs/pr/1")) == {*SENT, *SHOWN}
    assert commit.pr_num == 1 and commit.pr_revision == "refs/pr/1"
    requests = connect().get_repo_discussions("eve/model")
    assert [(request.title, request.status) for request in requests] == [("Better", "open")]


# ---- Refusals before anything is sent ----


INDEX = "model.safetensors.index.json"
WEIGHTS = save({"a": torch.ones(1)})
TOKEN = b"hf_abcdefghijklmnopqrstuvwx"


def shards(*names):
    return json.dumps({"weight_map": dict(enumerate(names))}).encode()


# What is wrong -> the files that make it so (None: no file), and what is said
HARM = {
    "cut short": ({"model.safetensors": WEIGHTS[:-1]}, "model.safetensors: is damaged or not finished"),
    "pickled": (
        {"model.safetensors": None, "pytorch_model.bin": b"pickle"},
        "holds only .*pytorch_model.bin.*, which can run code.*expected model.safetensors",
    ),
    "a lost shard": ({"model.safetensors": None, INDEX: shards("a.safetensors")}, "a.safetensors: is missing"),
    "a shard outside": (
        {"model.safetensors": None, "../secret.safetensors": WEIGHTS, INDEX: shards("../secret.safetensors")},
        "secret.safetensors: is missing",
    ),
    "the optimizer as a shard": (
        {"model.safetensors": None, INDEX: shards("optimizer.pt")},
        "optimizer.pt: is damaged or not finished",
    ),
    "a token in the card": ({"README.md": TOKEN}, "README.md: holds what looks like a token"),
    "a token in a picture": (
        {"seen.png": b"\x89PNG\r\n\xfftEXt by " + TOKEN},
        "seen.png: holds what looks like a token",
    ),
    "a broken card": ({"README.md": b"---\na: [\n---\n"}, "README.md: its metadata cannot be read"),
    "a card of other types": ({"README.md": b"---\nbase_model: [[a]]\n---\n"}, "its metadata cannot be read"),
    "an adapter of a folder": (
        {"adapter_config.json": b'{"base_model_name_or_path": "/"}'},
        "adapter of the model in .*which others do not have",
    ),
    "no configuration": ({"config.json": None}, "holds no config.json"),
    "a broken configuration": ({"config.json": b'{"a":'}, "config.json:1: not valid JSON"),
}


@pytest.mark.parametrize("case", HARM)
def test_what_is_not_whole_is_not_sent(ada, folder, case):
    files, said = HARM[case]
    for name, content in files.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        push_checkpoint(folder, REPO)
    assert ada.requests == [] and "abcdefghijklm" not in str(error.value)


def test_a_folder_that_is_not_there(ada, folder):
    with pytest.raises(InputError, match="no such folder"):
        push_checkpoint(folder / "none", REPO)
    assert ada.requests == []


def test_a_checkpoint_below_may_be_deleted_meanwhile(folder, monkeypatch):
    scandir = os.scandir

    def deleted(path="."):
        if str(path).endswith("checkpoint-5"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deleted)
    assert {*read_checkpoint(folder).files, "README.md"} == {*SENT, *SHOWN}


@pytest.mark.parametrize("name", ["", "../x", "ada/mo del", "/etc/passwd"])
def test_names_of_repositories(ada, folder, name):
    with pytest.raises(InputError, match="is no repository's name"):
        push_checkpoint(folder, name)
    assert ada.requests == []


def test_a_token_with_a_line_break_is_not_shown(ada, folder):
    push_checkpoint(folder, REPO, token="hf_ada\n")  # as read from a file
    with pytest.raises(InputError) as error:
        push_checkpoint(folder, REPO, token="hf_very\nsecret")
    assert "secret" not in str(error.value)
    (folder / "chat_template.jinja").write_text("a custom-token in a file")
    with pytest.raises(InputError, match="chat_template.jinja: holds what looks like a token"):
        push_checkpoint(folder, REPO, token="custom-token")


def test_pull_requests_are_against_main(folder, capsys):
    with pytest.raises(InputError, match="leave out the revision 'v2'"):
        push_checkpoint(folder, REPO, revision="v2", create_pr=True)
    assert main(["push", str(folder), REPO, "--dry_run", "--revision", "v2", "--create_pr"]) == 2
    assert "leave out the revision 'v2'" in capsys.readouterr().err


# ---- Faults ----


LIMIT = {"status": 429, "headers": {"Retry-After": "41"}}
FAULTS = {
    "a refusal": [("fail", "commit", {"status": 503})],
    "a broken upload": [("drop", "upload", {"after": 1_000_000})],
    "a lost answer": [("lose_answer", "commit", {})],
    "a limit": [("fail", "commit", LIMIT)],
    "a limit of creations": [("fail", "create", LIMIT)],
    "a limit as the Hub says it": [("fail", "commit", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=41'}})],
    "a lost creation": [("lose_answer", "create", {})],
    "a conflict": [("fail", "commit", {"status": 409})],
    "everything once": [
        ("fail", route, {"status": 502})
        for route in "create info validate preupload batch upload verify commit".split()
    ],
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_that_pass(ada, folder, waits, case):
    before = state(folder)
    for fault, route, options in FAULTS[case]:
        getattr(ada, fault)(route, **options)
    commit = push_checkpoint(folder, REPO)
    assert is_whole(ada, folder) and state(folder) == before
    assert [c.title for c in ada.commits(REPO)] == ["Upload R-Drop checkpoint", "initial commit"]
    assert commit.oid == ada.commits(REPO)[0].sha
    assert waits and ("limit" not in case or 41 in waits)


def test_a_commit_that_is_slower_than_its_answer_is_not_made_twice(ada, folder, monkeypatch):
    """A commit whose answer was lost arrives while the next try is under way, which must not make it again."""
    contents = read_checkpoint(folder).contents(REPO).items()
    client = type(connect())
    preupload, tries = client.preupload_lfs_files, []

    def late(self, *args, **kwargs):
        preupload(self, *args, **kwargs)
        tries.append(1)
        if len(tries) == 1:
            raise httpx.ReadError("lost")
        if len(tries) == 2:
            ada.repo(REPO, {name: c if isinstance(c, bytes) else c.read_bytes() for name, c in contents})

    monkeypatch.setattr(client, "preupload_lfs_files", late)
    push_checkpoint(folder, REPO)
    assert is_whole(ada, folder) and len(ada.commits(REPO)) == 2
    assert [request.status for request in ada.seen("commit")] == [412]


def test_somebody_elses_commit_in_between(ada, folder, monkeypatch):
    client = type(connect())
    create_commit, done = client.create_commit, []

    def create(self, *args, **kwargs):
        if not done:
            done.append(ada.repo(REPO, {"other.txt": "theirs"}))
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(client, "create_commit", create)
    push_checkpoint(folder, REPO)
    assert written(ada)["other.txt"] == b"theirs" and set(written(ada)) == {*SENT, *SHOWN, "other.txt"}


@pytest.mark.parametrize(
    ("fault", "route", "options", "said", "tries"),
    [
        ("fail", "commit", {"status": 503}, r"the Hub has a fault \(HTTP 503", 6),
        ("drop", "upload", {"after": 1000}, "the connection failed", None),
        ("drop", "commit", {}, "the connection failed", 6),
        ("fail", "commit", {"status": 403}, "this account may not do this there", 1),
        ("fail", "commit", {"status": 429, "headers": {"Retry-After": "9000"}}, "asks to wait", 1),
    ],
)
def test_faults_that_stay(ada, folder, fault, route, options, said, tries):
    before = state(folder)
    getattr(ada, fault)(route, times=None, **options)
    with pytest.raises(HubError, match=said) as error:
        push_checkpoint(folder, REPO, private=True)
    assert f"python -m rdrop_trainer.hub push {folder} {REPO} --private" in str(error.value)
    assert written(ada) == {} and state(folder) == before
    assert tries is None or len(ada.seen("commit")) == tries
    shown = "".join(traceback.format_exception(error.value))
    assert ada.url not in shown and "hf_ada" not in shown
    ada.faults.clear()
    push_checkpoint(folder, REPO, private=True)
    assert is_whole(ada, folder)


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [("hf_wrong", REPO, "hf auth login"), ("hf_eve", REPO, "may not do this"), (False, REPO, "hf auth login")],
)
def test_who_may_not_push(ada, folder, waits, token, repo, said):
    with pytest.raises(HubError, match=said) as error:
        push_checkpoint(folder, repo, token=token)
    assert waits == [] and "hf_" not in str(error.value).replace(str(folder), "")
    assert ("model", repo) not in ada.repos


def test_a_server_that_is_not_there(folder, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the connection failed"):
        push_checkpoint(folder, REPO, token="hf_ada")
    assert waits == [1, 2, 4], "out of reach within 10 s"


def test_a_push_that_is_interrupted_says_how_to_go_on(ada, folder, monkeypatch, caplog):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    ada.fail("commit", status=503)
    with pytest.raises(KeyboardInterrupt):
        push_checkpoint(folder, REPO)
    assert caplog.messages[-1].endswith(f"To go on: python -m rdrop_trainer.hub push {folder} {REPO}")
    assert written(ada) == {}


def test_a_token_that_the_server_repeats_is_not_shown(ada, folder):
    ada.fail("commit", status=403, message="no rights for hf_abcdefghijklmnopqrstuvwx there", times=None)
    with pytest.raises(HubError, match=r"no rights for \(a token\) there"):
        push_checkpoint(folder, REPO)


@pytest.mark.parametrize("asked", ["\u00b3", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_that_makes_no_sense_is_no_reason_to_give_up(ada, folder, waits, asked):
    ada.fail("commit", status=429, headers={"Retry-After": asked})
    push_checkpoint(folder, REPO)
    assert waits == [1]


# ---- The pieces ----


def test_patient_gives_up_on_what_does_not_pass(waits):
    calls = []

    def fails():
        calls.append(1)
        raise KeyError("ours")

    with pytest.raises(KeyError):
        with_retries(fails)
    assert len(calls) == 1 and waits == []
