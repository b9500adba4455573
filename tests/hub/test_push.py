"""push_checkpoint with the real client against a local Hub: what is sent, and what is not whole is not."""

import json
import os

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save
from transformers import AutoModelForSequenceClassification

from rdrop_trainer.errors import InputError
from rdrop_trainer.hub import push_checkpoint
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.client import connect
from rdrop_trainer.hub.folder import read_checkpoint
from support.pushing import REPO, SENT, SHOWN, is_whole, state, written

# ---- What is sent ----


def test_a_checkpoint_and_nothing_else_is_sent(ada, trained):
    before = state(trained)
    commit = push_checkpoint(trained, REPO, commit_message="My model")
    assert is_whole(ada, trained) and state(trained) == before
    assert [c.title for c in ada.commits(REPO)][0] == "My model" and len(ada.commits(REPO)) == 2
    assert commit.oid == ada.commits(REPO)[0].sha and commit.commit_url.endswith(f"{REPO}/commit/{commit.oid}")
    assert ada.seen("upload"), "5 MB go through LFS"
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    expected = AutoModelForSequenceClassification.from_pretrained(trained)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))


def test_pushing_again_makes_no_second_commit(ada, trained):
    first = push_checkpoint(trained, REPO)
    uploads = len(ada.seen("upload"))
    assert push_checkpoint(trained, REPO).oid == first.oid
    assert len(ada.commits(REPO)) == 2 and len(ada.seen("upload")) == uploads


def test_a_name_alone_is_the_users_own(ada, trained):
    push_checkpoint(trained, "model")
    assert is_whole(ada, trained)


def test_files_of_an_earlier_checkpoint_go(ada, trained):
    """Else a model.safetensors of before would be read in place of the shards."""
    push_checkpoint(trained, REPO)
    ada.repo(REPO, {"notes.txt": "kept", "pytorch_model.bin": "old", "vocab.txt": "old"})
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    (trained / "model.safetensors").unlink()
    with torch.no_grad():
        model.classifier.bias.fill_(7.0)
    model.save_pretrained(trained, max_shard_size="4MB")
    push_checkpoint(trained, REPO)
    files = written(ada)
    shards = {path.name for path in trained.glob("model-*.safetensors")}
    assert len(shards) > 1
    other = {"model.safetensors.index.json", "notes.txt", *SHOWN}
    assert set(files) == (SENT - {"model.safetensors"}) | shards | other
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    assert (loaded.classifier.bias == 7).all()


def test_a_folder_without_a_card_takes_the_repositorys_own_from_nobody(ada, trained, caplog):
    (trained / "README.md").unlink()
    push_checkpoint(trained, REPO)
    assert set(written(ada)) == SENT - {"README.md"} and "has no README.md" in caplog.text
    ada.repo(REPO, {"README.md": "# Written by hand", "config.json": "{}"})
    push_checkpoint(trained, REPO)
    assert written(ada)["README.md"] == b"# Written by hand" and written(ada)["config.json"] != b"{}"


def test_local_paths_are_taken_out(ada, trained, tmp_path):
    card = f"---\nbase_model: {tmp_path}\n---\nTuned from [{tmp_path}](https://huggingface.co/{tmp_path}): {tmp_path}\n"
    (trained / "README.md").write_text(card)
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps({**config, "_name_or_path": str(tmp_path)}))
    before = state(trained)
    push_checkpoint(trained, REPO)
    assert not [name for name, content in written(ada).items() if str(tmp_path).encode() in content]
    assert json.loads(written(ada)["config.json"]) == config and state(trained) == before


def test_private_repositories(ada, trained, monkeypatch):
    push_checkpoint(trained, REPO, private=True)
    assert ada.repos["model", REPO].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Exception, match="404|401"):
        snapshot_download(REPO)
    push_checkpoint(trained, "ada/open", token="hf_ada", private=False)
    with pytest.raises(InputError, match="ada/open: is there already and public"):
        push_checkpoint(trained, "ada/open", token="hf_ada", private=True)


def test_a_branch_is_made(ada, trained):
    push_checkpoint(trained, REPO, revision="v2")
    assert is_whole(ada, trained, "v2") and written(ada) == {}


@pytest.mark.parametrize("lost", [False, True])
def test_a_pull_request_leaves_main_alone(ada, trained, lost):
    ada.repo("eve/model", {"config.json": "{}"})
    if lost:
        ada.lose_answer("discussions", method="POST")
        ada.lose_answer("commit")
    commit = push_checkpoint(trained, "eve/model", create_pr=True, commit_message="Better")
    assert set(written(ada, "eve/model")) == {"config.json"}
    assert set(written(ada, "eve/model", "refs/pr/1")) == {*SENT, *SHOWN}
    assert commit.pr_num == 1 and commit.pr_revision == "refs/pr/1"
    requests = connect().get_repo_discussions("eve/model")
    assert [(request.title, request.status) for request in requests] == [("Better", "open")]


def test_a_checkpoint_below_may_be_deleted_meanwhile(trained, monkeypatch):
    scandir = os.scandir

    def deleted(path="."):
        if str(path).endswith("checkpoint-5"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deleted)
    assert {*read_checkpoint(trained).files, "README.md"} == {*SENT, *SHOWN}


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
def test_what_is_not_whole_is_not_sent(ada, trained, case):
    files, said = HARM[case]
    for name, content in files.items():
        (trained / name).unlink() if content is None else (trained / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        push_checkpoint(trained, REPO)
    assert ada.requests == [] and "abcdefghijklm" not in str(error.value)


def test_a_folder_that_is_not_there(ada, trained):
    with pytest.raises(InputError, match="no such folder"):
        push_checkpoint(trained / "none", REPO)
    assert ada.requests == []


@pytest.mark.parametrize("name", ["", "../x", "ada/mo del", "/etc/passwd"])
def test_names_of_repositories(ada, trained, name):
    with pytest.raises(InputError, match="is no repository's name"):
        push_checkpoint(trained, name)
    assert ada.requests == []


def test_a_token_with_a_line_break_is_not_shown(ada, trained):
    push_checkpoint(trained, REPO, token="hf_ada\n")  # as read from a file
    with pytest.raises(InputError) as error:
        push_checkpoint(trained, REPO, token="hf_very\nsecret")
    assert "secret" not in str(error.value)
    (trained / "chat_template.jinja").write_text("a custom-token in a file")
    with pytest.raises(InputError, match="chat_template.jinja: holds what looks like a token"):
        push_checkpoint(trained, REPO, token="custom-token")


def test_pull_requests_are_against_main(trained, capsys):
    with pytest.raises(InputError, match="leave out the revision 'v2'"):
        push_checkpoint(trained, REPO, revision="v2", create_pr=True)
    assert main(["push", str(trained), REPO, "--dry_run", "--revision", "v2", "--create_pr"]) == 2
    assert "leave out the revision 'v2'" in capsys.readouterr().err
