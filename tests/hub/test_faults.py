"""Servers that are silent, away, or false, and what they say."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import (
    client,
    download_checkpoint,
    list_checkpoints,
    load_checkpoint,
    push_checkpoint,
)
from rdrop_trainer.hub.__main__ import main
from support import tiny
from support.pushing import REPO, trainer_of

# ---- A server that takes a request and never answers ----


@pytest.fixture
def soon(monkeypatch):
    """Limits of fractions of a second."""
    monkeypatch.setattr("rdrop_trainer.hub.limits.SILENCE", 0.2)
    for name in ("DOWNLOAD", "ETAG"):
        monkeypatch.setattr(f"huggingface_hub.constants.HF_HUB_{name}_TIMEOUT", 0.2)


@pytest.mark.parametrize("route", ["info", "list", "create", "upload", "commit"])
def test_a_silent_server(there, folder, soon, route):
    there.hang(route, times=None)
    calls = {
        "info": [lambda: load_checkpoint(REPO)],
        "list": [list_checkpoints],
    }.get(route, [lambda: push_checkpoint(folder, "ada/new")])
    for call in calls:
        started = time.monotonic()
        with pytest.raises(
            HubError, match="the Hub did not answer in time; for a slow line, set HF_HUB_DOWNLOAD_TIMEO"
        ):
            call()
        assert time.monotonic() - started < 4


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_silent_download(there, soon, method):
    there.hang("resolve", method=method, times=None)
    started = time.monotonic()
    with pytest.raises(HubError, match="was not downloaded: the Hub did not answer in time"):
        download_checkpoint(REPO)
    assert time.monotonic() - started < 8


def test_a_training_with_a_silent_server(ada, tmp_path, soon, caplog):
    ada.hang("*", times=None)
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer._finish_current_push()
    assert trainer.state.global_step > 0 and "the Hub did not answer in time" in caplog.text


def test_progress_is_life(there, soon, folder):
    """A server that is slow, but not silent, is waited for."""
    there.delay("upload", 0.15, times=None)
    there.delay("commit", 0.15, times=None)
    there.delay("info", 0.15, times=None)
    push_checkpoint(folder, "ada/new")
    assert "model.safetensors" in there.files("ada/new")


def test_a_slow_line_is_given_more_time(there, monkeypatch):
    monkeypatch.setattr("rdrop_trainer.hub.limits.SILENCE", 0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 5)
    there.delay("info", 0.3)
    assert download_checkpoint(REPO) and len(there.seen("info")) == 1


def test_a_limit_of_ones_own_holds(there, soon):
    there.delay("info", 0.5, times=2)
    client.connect()
    get, url = huggingface_hub.get_session().get, f"{there.url}/api/models/{REPO}"
    assert get(url, timeout=5).status_code == 200
    with pytest.raises(client.httpx.ReadTimeout):
        get(url)


def test_a_new_session_has_limits_too(there, soon, monkeypatch):
    """The client makes a new one after a connection that failed, and a user may set another."""
    client.connect()
    huggingface_hub.close_session()
    there.hang("info", times=None)
    with pytest.raises(HubError, match="did not answer in time"):
        download_checkpoint(REPO)


# ---- Without the Hub ----


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


AWAY = {
    "offline": lambda hub, patch: offline(patch),
    "503": lambda hub, patch: hub.fail("*", status=503, times=None),
    "dropped": lambda hub, patch: hub.drop("*", times=None),
}


@pytest.mark.parametrize(
    ("case", "revision"), [*((case, None) for case in AWAY), *(("offline", name) for name in ("main", "v1", "commit"))]
)
def test_what_was_downloaded_is_loaded_without_the_hub(there, monkeypatch, waits, case, revision):
    there.repos["model", REPO].branches["v1"] = commit = there.commits(REPO)[0].sha
    revision = commit if revision == "commit" else revision
    expected = tiny.weights(load_checkpoint(REPO, revision=revision).model)
    AWAY[case](there, monkeypatch)
    loaded = load_checkpoint(REPO, revision=revision)
    assert tiny.identical(tiny.weights(loaded.model), expected) and loaded.settings.rdrop_alpha == 2.5
    assert waits == [], "it is there already"
    with pytest.raises(HubError, match="ada/other at main was not downloaded"):
        load_checkpoint("ada/other")
    with pytest.raises(HubError, match="at v2 was not downloaded"):
        load_checkpoint(REPO, revision="v2")


def test_damage_is_noticed_without_the_hub(there, monkeypatch):
    folder = download_checkpoint(REPO)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("0", "1", 1))
    offline(monkeypatch)
    with pytest.raises(HubError, match="config.json in the cache has another hash.*HF_HUB_OFFLINE is set"):
        load_checkpoint(REPO)


def test_a_refusal_is_no_reason_to_use_the_cache(there):
    download_checkpoint(REPO)
    there.fail("info", status=403, times=None)
    with pytest.raises(HubError, match="this account may not"):
        load_checkpoint(REPO)


def test_the_files_are_where_other_programs_look_for_them(there):
    download_checkpoint(REPO)
    there.requests.clear()
    AutoModelForSequenceClassification.from_pretrained(REPO, local_files_only=True)
    assert [one for one in there.requests if "adapter_config.json" not in one.path] == []  # with peft, it asks for that


# ---- Messages ----


@pytest.mark.parametrize("token", ["hf_eve", False])
def test_a_gated_repository(ada, saved, token):
    ada.repo(REPO, {path.name: path.read_bytes() for path in saved.iterdir()}, gated=True)
    with pytest.raises(HubError, match="it is gated .HTTP 40[13]: agree to its owner's terms on its page"):
        load_checkpoint(REPO, token=token)
    assert load_checkpoint(REPO, token="hf_ada").settings.rdrop_alpha == 2.5


def test_a_card_that_the_hub_refuses(ada, folder):
    (folder / "README.md").write_text("---\nlicense: my own\n---\n# Mine\n")
    with pytest.raises(
        InputError, match="README.md: the Hub refuses it: .*my own.*; mend it, then push again"
    ) as error:
        push_checkpoint(folder, REPO)
    assert str(folder / "README.md") in str(error.value) and "To go on" not in str(error.value)


def test_terminal_escapes_of_the_server(there, folder, capsys, caplog):
    there.fail("*", status=403, message="\x1b[2J\x1b]0;mine\x07 no \u202e", times=None)
    assert main(["list"]) == main(["push", str(folder), REPO]) == main(["download", REPO]) == 3
    there.faults.clear()
    there.fail("info", status=503, message="\x1b[2J no", times=2)
    assert main(["download", REPO]) == 0
    there.lie("X-Any", "any", route="commit").change = lambda answer: replace(
        answer, body={**answer.body, "commitUrl": f"{there.url}/ada/model/commit/\x1b[2J"}
    )
    (folder / "chat_template.jinja").write_text("new")
    main(["push", str(folder), REPO])
    said = "".join(capsys.readouterr()) + caplog.text
    assert not [c for c in said if not c.isprintable() and c != "\n"] and "\\x1b[2J" in said


def test_a_stored_token_that_is_none(ada, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_\u00e9secret")
    for call in (lambda: push_checkpoint(folder, REPO), list_checkpoints, lambda: load_checkpoint(REPO)):
        with pytest.raises(
            InputError, match="the stored token .* is empty or holds spaces or other characters that no token has"
        ) as error:
            call()
        assert "secret" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(there, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cache.*: cannot be written: Permission denied"):
        download_checkpoint(REPO, cache_dir=tmp_path / "cache")


def test_a_cache_that_is_a_file(there, tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(InputError, match="cache.*: cannot be written: (Not a directory|File exists)"):
        download_checkpoint(REPO, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "name", ["my words.model", "m\u00f6del.spm", "model [1] of 2.safetensors", "model*.safetensors"]
)
def test_what_is_pushed_is_downloaded(ada, folder, name):
    if name.endswith("safetensors"):
        (folder / "model.safetensors").rename(folder / name)
        shards = dict.fromkeys(load_file(folder / name), name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    else:
        (folder / name).write_text("words")
    push_checkpoint(folder, REPO)
    ada.repo(REPO, {"model other.safetensors.bin": "x"})
    to = download_checkpoint(REPO)
    assert {path.name for path in to.iterdir()} == {path.name for path in folder.iterdir()}


# ---- A server that lies to the client ----


@pytest.mark.parametrize("evil", ["../../../../../evil", "/tmp/rdrop-evil", "..", "a\\..\\b"])
def test_a_listing_whose_hashes_lead_outside(there, evil, monkeypatch, tmp_path):
    """With hf_xet, the client takes them for names of files without asking again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)

    def change(answer):
        return replace(
            answer,
            body=[
                {**file, "xetHash": "a" * 64, "lfs": {**file["lfs"], "oid": evil}} if "lfs" in file else file
                for file in answer.body
            ],
        )

    before = set(Path(os.environ["HF_HOME"]).parent.glob("*evil*"))
    there.lie("X-Any", "any", route="tree").change = change
    with pytest.raises(HubError, match="which leads outside"):
        download_checkpoint(REPO, cache_dir=tmp_path / "a" / "b" / "c")
    assert set(Path(os.environ["HF_HOME"]).parent.glob("*evil*")) == before and not list(tmp_path.rglob("*evil*"))


def test_hashes_that_lead_outside_are_not_handed_to_the_client(there, tmp_path):
    """The first answer is right, the one that the client acts on is not."""
    there.lie("ETag", '"../../../../evil"', path="config.json", skip=0)
    there.lie("X-Linked-Etag", '"../../../../evil"', path="model.safetensors")
    with pytest.raises(HubError, match="states the hash '\"../../../../evil\"', which leads outside"):
        download_checkpoint(REPO, cache_dir=tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("revision", ["../../evil", "/evil", "a/../../evil", "", "a b", "C:evil", "a\\b"])
def test_revisions_that_lead_outside(there, revision):
    with pytest.raises(InputError, match="is no branch, tag or commit"):
        download_checkpoint(REPO, revision=revision)
    assert there.requests == []
