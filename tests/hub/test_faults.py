"""What goes wrong on the way: servers that never answer, folders that change, and what must not get out."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForSequenceClassification, TrainerCallback

from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import (
    client,
    download_checkpoint,
    list_checkpoints,
    load_checkpoint,
    push_checkpoint,
    show_checkpoint,
)
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.folder import read_checkpoint
from rdrop_trainer.hub.model_card import NO_REPO
from support import tiny

REPO = "ada/model"
CARD = "---\ntags: [r-drop]\npipeline_tag: text-classification\nr_drop: {alpha: 2.5, version: 1.0}\n---\n# A model\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    tiny.bert().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def ada(hub):
    hub.user("ada")
    hub.user("eve")
    hub.login("ada")
    return hub


@pytest.fixture
def there(ada, saved):
    """A Hub that has the checkpoint."""
    ada.repo(REPO, {path.name: path.read_bytes() for path in saved.iterdir()})
    return ada


def trainer_of(folder, **arguments):
    arguments = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "epoch", **arguments}
    return tiny.trainer(tiny.bert(), tiny.dataset(), folder / "run", eval_dataset=tiny.dataset(seed=3), **arguments)


def written(hub, revision="main"):
    return {name: content for name, content in hub.files(REPO, revision).items() if name != ".gitattributes"}


# ---- 1: nothing about a card or a push ends a training ----


def per_class(predictions):
    """Metrics as seqeval gives them, and a list of one a class."""
    return {"LOC": {"f1": 0.25, "number": 3}, "overall_f1": 0.5, "f1_each": [0.5, 1.0], "note": "fine"}


def test_metrics_that_are_no_numbers(ada, tmp_path):
    trainer = trainer_of(tmp_path, eval_strategy="epoch", compute_metrics=per_class)
    trainer.train()
    trainer.push_to_hub()
    card = written(ada)["README.md"].decode()
    for name, value in (("LOC_f1", "0.2500"), ("overall_f1", "0.5000"), ("f1_each_1", "1.0000")):
        assert f"| {name} | {value} |" in card
    (result,) = ada.card(REPO)["model-index"][0]["results"]
    scores = {metric["name"] for metric in result["metrics"]}
    assert scores == {"LOC_f1", "LOC_number", "overall_f1", "f1_each_0", "f1_each_1"}


@pytest.mark.parametrize("error", [TypeError("no card"), OSError("no room"), KeyError("name")])
def test_a_card_that_cannot_be_made(ada, tmp_path, monkeypatch, caplog, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("rdrop_trainer.hub.publishing.trainer_card", fails)
    trainer = trainer_of(tmp_path, hub_strategy="every_save")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "README.md").write_text("# Of another run")
    trainer.train()
    trainer.push_to_hub()
    assert trainer.state.global_step > 0 and "model.safetensors" in written(ada)
    assert b"Of another run" not in written(ada)["README.md"]
    assert f"README.md could not be written: {type(error).__name__}" in caplog.text


@pytest.mark.parametrize("where", ["push_checkpoint", "read_checkpoint"])
def test_errors_of_every_kind_while_pushing(ada, tmp_path, monkeypatch, caplog, where):
    def fails(*args, **kwargs):
        raise RuntimeError("of the client's own")

    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(f"rdrop_trainer.hub.publishing.{where}", fails)
    trainer.train()
    trainer.save_model()
    trainer._finish_current_push()
    assert trainer.state.global_step > 0 and "of the client's own" in caplog.text


# ---- 2: a server that takes a request and never answers ----


@pytest.fixture
def soon(monkeypatch):
    """Limits of fractions of a second."""
    monkeypatch.setattr(client, "SILENCE", 0.2)
    for name in ("DOWNLOAD", "ETAG"):
        monkeypatch.setattr(f"huggingface_hub.constants.HF_HUB_{name}_TIMEOUT", 0.2)


@pytest.mark.parametrize("route", ["info", "list", "create", "validate", "preupload", "batch", "upload", "commit"])
def test_a_silent_server(there, folder, soon, route):
    there.hang(route, times=None)
    calls = {
        "info": [lambda: show_checkpoint(REPO), lambda: load_checkpoint(REPO)],
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
    monkeypatch.setattr(client, "SILENCE", 0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 5)
    there.delay("info", 0.3)
    assert show_checkpoint(REPO).alpha == 2.5 and len(there.seen("info")) == 1


def test_a_new_session_has_limits_too(there, soon, monkeypatch):
    """The client makes a new one after a connection that failed, and a user may set another."""
    import huggingface_hub

    client.connect()
    huggingface_hub.close_session()
    there.hang("info", times=None)
    with pytest.raises(HubError, match="did not answer in time"):
        show_checkpoint(REPO)


# ---- 3: pushes in order, each from its own copy ----


def test_always_pushing_pushes_each_step_in_order(ada, tmp_path):
    weights = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model, **kwargs):
            weights[state.global_step] = tiny.weights(model)

    ada.delay("preupload", 0.2, times=None)
    trainer = trainer_of(
        tmp_path, save_strategy="steps", save_steps=1, max_steps=4, save_total_limit=1, learning_rate=0.01,
        hub_always_push=True, callbacks=[Keep()],
    )  # fmt: skip
    trainer.train()
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(7.0)
    trainer.push_to_hub()
    commits = ada.commits(REPO)[:-1]
    titles = [f"Training in progress, step {step}" for step in (1, 2, 3, 4)]
    assert [commit.title for commit in reversed(commits)] == [*titles, "End of training"]
    for commit, (step, expected) in zip(list(reversed(commits))[:-1], weights.items(), strict=True):
        assert tiny.identical(load(ada.files(REPO, commit.sha)["model.safetensors"]), expected), step
    assert (load(written(ada)["model.safetensors"])["classifier.bias"] == 7).all()
    assert not list((tmp_path / "run").glob(".push-*"))


def test_what_a_killed_run_left_goes(ada, tmp_path):
    left = tmp_path / "run" / ".push-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("x")
    trainer_of(tmp_path)
    assert not left.exists()


# ---- 4: without the Hub ----


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


AWAY = {
    "offline": lambda hub, patch: offline(patch),
    "503": lambda hub, patch: hub.fail("*", status=503, times=None),
    "dropped": lambda hub, patch: hub.drop("*", times=None),
}


@pytest.mark.parametrize("case", AWAY)
@pytest.mark.parametrize("revision", [None, "main", "v1", "commit"])
def test_what_was_downloaded_is_loaded_without_the_hub(there, monkeypatch, waits, case, revision, tmp_path):
    there.repos["model", REPO].branches["v1"] = commit = there.commits(REPO)[0].sha
    revision = commit if revision == "commit" else revision
    expected = tiny.weights(load_checkpoint(REPO, revision=revision).model)
    AWAY[case](there, monkeypatch)
    loaded = load_checkpoint(REPO, revision=revision)
    assert tiny.identical(tiny.weights(loaded.model), expected) and loaded.settings.rdrop_alpha == 2.5
    assert waits == [], "it is there already"
    assert (download_checkpoint(REPO, revision=revision, local_dir=tmp_path / "to") / "config.json").is_file()
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
    assert there.requests == []


# ---- 5: the commit holds what was meant ----


def test_a_gitignore_that_names_files_of_the_checkpoint(ada, folder):
    ada.repo(REPO, {".gitignore": "*.json\n"})
    with pytest.raises(InputError, match="ada/model: its .gitignore names .*config.json.*, which would be left out"):
        push_checkpoint(folder, REPO)
    assert set(written(ada)) == {".gitignore"}


def test_a_commit_that_lacks_a_file(ada, folder):
    def without_config(answer):
        listed = [file for file in answer.body.get("siblings", []) if file["rfilename"] != "config.json"]
        return replace(answer, body={**answer.body, "siblings": listed})

    ada.lie("X-Any", "any", route="info").change = without_config
    with pytest.raises(HubError, match="is not whole in http.*/commit/.*: config.json differ from what was sent"):
        push_checkpoint(folder, REPO)


def test_a_commit_with_other_content(ada, folder, monkeypatch):
    put = ada.repo

    def other(answer):
        put(REPO, {"config.json": "{}"})
        return replace(answer, body={**answer.body, "commitOid": ada.commits(REPO)[0].sha})

    ada.lie("X-Any", "any", route="commit").change = other
    with pytest.raises(HubError, match="config.json differ"):
        push_checkpoint(folder, REPO)


# ---- 6: what was checked is what is sent ----


def test_small_files_that_change_meanwhile(ada, folder):
    """What was read is sent, whatever comes to the folder."""
    before = read_checkpoint(folder).contents(REPO)
    before = {name: content if isinstance(content, bytes) else content.read_bytes() for name, content in before.items()}

    def change(answer):
        (folder / "README.md").write_text("---\ntags: [x]\n---\nhf_abcdefghijklmnopqrstuvwx")
        (folder / "tokenizer_config.json").write_text('{"token": "hf_abcdefghijklmnopqrstuvwx"}')
        return answer

    ada.lie("X-Any", "any", route="create", times=1).change = change
    push_checkpoint(folder, REPO)
    assert written(ada) == before


@pytest.mark.parametrize("route", ["create", "upload"])
@pytest.mark.parametrize("in_place", [True, False])
def test_weights_that_change_meanwhile(ada, folder, route, in_place):
    path = folder / "model.safetensors"
    others = {name: value + 1 for name, value in load_file(path).items()}

    def change(answer):
        save_file(others, path if in_place else folder / "new", metadata={"format": "pt"})
        if not in_place:
            os.replace(folder / "new", path)
        return answer

    ada.lie("X-Any", "any", route=route, times=1).change = change
    with pytest.raises(InputError, match="model.safetensors: was changed while it was being pushed"):
        push_checkpoint(folder, REPO)
    assert written(ada) == {}


# ---- 7: tokens ----

TOKENS = [
    "hf_abcdefghijklmnopqrstuvwx",
    "api_org_abcdefghijklmnopqrstuvwx",
    "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2In0.abc-d_ef",
    "hf_jwt_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2In0.abc-d_ef",
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("around", ["{}", '"{}"', "my_{}", "https://user:{}@huggingface.co/"])
def test_tokens_of_every_kind(ada, folder, token, around):
    (folder / "chat_template.jinja").write_text(around.format(token))
    with pytest.raises(InputError, match="chat_template.jinja: holds what looks like a token") as error:
        push_checkpoint(folder, REPO)
    assert token not in str(error.value) and ada.requests == []
    (folder / "chat_template.jinja").unlink()
    ada.fail("commit", status=403, message=f"no rights for {token} there", times=None)
    with pytest.raises(HubError, match=r"no rights for \(a token\) there"):
        push_checkpoint(folder, REPO)


@pytest.mark.parametrize("text", ["hf_internal-testing/tiny", "hf_transformers", "shf_abcdefghijklmnopqrstuvwx"])
def test_what_is_no_token(ada, folder, text):
    (folder / "chat_template.jinja").write_text(text)
    push_checkpoint(folder, REPO)


# ---- 8: local paths ----


def test_local_paths_in_every_configuration(ada, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    gone, here = "/home/me/gone/model", str(tmp_path)
    parts = {"encoder": {"_name_or_path": here}, "decoder": {"_name_or_path": gone, "parts": [{"name_or_path": gone}]}}
    (folder / "config.json").write_text(json.dumps({**config, **parts, "_name_or_path": "google-bert/bert-base-cased"}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    files = {"special_tokens_map_file": gone, "tokenizer_file": "C:\\Users\\me\\t.json", "cache_dir": "~/cache"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **files, "sep_token": "/"}))
    push_checkpoint(folder, REPO)
    sent = written(ada)
    assert json.loads(sent["config.json"]) == {
        **config, "encoder": {}, "decoder": {"parts": [{}]}, "_name_or_path": "google-bert/bert-base-cased"
    }  # fmt: skip
    assert json.loads(sent["tokenizer_config.json"]) == {**tokenizer, "sep_token": "/"}


def test_an_adapter_whose_base_is_gone(ada, folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/gone/model"}')
    with pytest.raises(InputError, match="is an adapter of the model in /home/me/gone/model, which others do not have"):
        push_checkpoint(folder, REPO)
    assert ada.requests == []


# ---- 9: the base model of what was loaded ----


def test_the_base_of_a_loaded_checkpoint_is_in_the_next_card(there, tmp_path):
    model = load_checkpoint(REPO).model
    assert model.config._name_or_path == model.name_or_path == REPO
    trainer = tiny.trainer(
        model, tiny.dataset(), tmp_path / "next", push_to_hub=True, hub_model_id="ada/next", hub_strategy="end"
    )
    trainer.train()
    trainer.push_to_hub()
    assert there.card("ada/next")["base_model"] == REPO
    assert f"[{REPO}](https://huggingface.co/{REPO})" in there.files("ada/next")["README.md"].decode()


def test_the_base_of_an_adapter_is_its_base(there, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load_checkpoint(REPO).model, peft.LoraConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    there.repo("ada/adapter", {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()})
    loaded = load_checkpoint("ada/adapter").model
    assert loaded.get_base_model().config._name_or_path == loaded.peft_config["default"].base_model_name_or_path == REPO


# ---- 10: pull requests ----


def requests_of(hub):
    return [(one.title, one.status) for one in hub.repos["model", REPO].discussions]


def test_a_pull_request_is_opened_with_its_commit_or_not_at_all(there, folder):
    (folder / "chat_template.jinja").write_text("new")
    there.fail("commit", status=403)
    with pytest.raises(HubError, match="push .* ada/model --create_pr"):
        push_checkpoint(folder, REPO, create_pr=True)
    assert requests_of(there) == []
    push_checkpoint(folder, REPO, create_pr=True)
    assert requests_of(there) == [("Upload R-Drop checkpoint", "open")]


def test_two_pull_requests_at_once(there, folder):
    """The other has the same title and other content, and is opened while an answer is lost."""
    (folder / "chat_template.jinja").write_text("new")
    other = there.repos["model", REPO]

    def lost(answer):
        one = other.open("Upload R-Drop checkpoint", "", "eve", pull=True, status="open")
        other.advance(f"refs/pr/{one.num}", other.record({}, (other.branches["main"],), "eve", "theirs"))
        raise ConnectionError

    there.lose_answer("commit")
    there.lie("X-Any", "any", route="commit", times=1).change = lambda answer: lost(answer)
    commit = push_checkpoint(folder, REPO, create_pr=True)
    assert "chat_template.jinja" in there.files(REPO, f"refs/pr/{commit.pr_num}")
    assert commit.pr_revision == f"refs/pr/{commit.pr_num}"


def test_a_pull_request_without_a_change_is_none(there, folder):
    commit = push_checkpoint(folder, REPO, create_pr=True)
    push_checkpoint(folder, REPO)
    commit = push_checkpoint(folder, REPO, create_pr=True)
    assert commit.pr_url is None and len(requests_of(there)) <= 1


# ---- 11: unsound folders ----


def deep(levels):
    return "[" * levels + "]" * levels


UNSOUND = {
    "a cut tokenizer": ({"tokenizer.json": '{"version": "1.0", '}, "tokenizer.json:1: not valid JSON"),
    "a cut vocabulary": ({"vocab.json": '{"a": '}, "vocab.json:1: not valid JSON"),
    "a tokenizer of bytes": ({"tokenizer.json": b"\xff\xfe"}, "tokenizer.json: cannot be read as UTF-8 text"),
    "a deep configuration": ({"config.json": f'{{"a": {deep(100_000)}}}'}, "is nested deeper than 100 levels"),
    "a less deep one": ({"config.json": f'{{"a": {deep(300)}}}'}, "is nested deeper than 100 levels"),
    "a deep tokenizer": ({"tokenizer.json": f'{{"a": {deep(100_000)}}}'}, "is nested deeper than 100 levels"),
    "shards that are not downloaded": (
        {"model.safetensors": None, "model.safetensors.index.json": '{"weight_map": {"a": "part 1.safetensors"}}'},
        "part 1.safetensors: would not be downloaded",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_folders_are_refused_before_anything_is_made(ada, folder, case):
    files, said = UNSOUND[case]
    shutil.copyfile(folder / "model.safetensors", folder / "part 1.safetensors")
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said):
        push_checkpoint(folder, REPO)
    assert ada.requests == []


@pytest.mark.parametrize("architectures", [{}, {"0": "a"}, 7, "Bert", [7], [None], [[]], None])
def test_odd_architectures(ada, folder, architectures):
    (folder / "README.md").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    push_checkpoint(folder, REPO)
    assert ada.card(REPO)["tags"] == ["r-drop"]


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/tmp/other.safetensors", "a/b.safetensors", "..\\o.safetensors"]
)
def test_an_index_that_points_outside(hub, folder, tmp_path, name):
    shutil.copyfile(folder / "model.safetensors", tmp_path / "other.safetensors")
    (folder / "model.safetensors").unlink()
    shards = dict.fromkeys(load_file(tmp_path / "other.safetensors"), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    with pytest.raises(
        InputError, match="other.safetensors: is missing|b.safetensors: is missing|o.safetensors: is mis"
    ):
        load_checkpoint(folder)
    hub.repo(REPO, {**{p.name: p.read_bytes() for p in folder.iterdir()}, "model-1.safetensors": b"x"})
    with pytest.raises(InputError, match="is missing, although the index names it"):
        load_checkpoint(REPO)


def test_a_deep_configuration_is_not_loaded(hub, folder):
    (folder / "config.json").write_text(f'{{"a": {deep(100_000)}}}')
    with pytest.raises(InputError, match="is nested deeper than 100 levels"):
        load_checkpoint(folder)


# ---- 12: messages ----


@pytest.mark.parametrize("token", ["hf_eve", False])
def test_a_gated_repository(ada, saved, token):
    ada.repo(REPO, {path.name: path.read_bytes() for path in saved.iterdir()}, gated=True)
    with pytest.raises(HubError, match="it is gated .HTTP 40[13].: agree to its owner's terms on its page"):
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
    assert main(["show", REPO]) == main(["push", str(folder), REPO]) == main(["download", REPO]) == 3
    there.faults.clear()
    there.fail("info", status=503, message="\x1b[2J no", times=2)
    assert main(["show", REPO]) == 0
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
        download_checkpoint(REPO, cache_dir=tmp_path / "cache", local_dir=tmp_path / "to")


def test_a_cache_that_is_a_file(there, tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(InputError, match="cache.*: cannot be written: (Not a directory|File exists)") as error:
        download_checkpoint(REPO, cache_dir=tmp_path / "cache", local_dir=tmp_path / "to")
    assert str(tmp_path / "to") not in str(error.value)


@pytest.mark.parametrize(
    "name", ["my words.model", "m\u00f6del.spm", "model [1] of 2.safetensors", "model*.safetensors"]
)
def test_what_is_pushed_is_downloaded(ada, folder, tmp_path, name):
    if name.endswith("safetensors"):
        (folder / "model.safetensors").rename(folder / name)
        shards = dict.fromkeys(load_file(folder / name), name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    else:
        (folder / name).write_text("words")
    push_checkpoint(folder, REPO)
    ada.repo(REPO, {"model other.safetensors.bin": "x"})
    to = download_checkpoint(REPO, local_dir=tmp_path / "to")
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


# ---- Folders that are none ----


@pytest.mark.parametrize("name", ["runs/none/here", "./none", "/no/such/folder", "~/none", ""])
def test_a_folder_that_is_not_there(hub, here, name):
    with pytest.raises(InputError, match="there is no such folder, and it is no repository's name"):
        load_checkpoint(name)
    assert hub.requests == []


@pytest.mark.parametrize("call", [load_checkpoint, read_checkpoint])
def test_the_folder_of_a_comparison(hub, here, folder, call):
    for name in ("baseline-seed1", "rdrop-seed1"):
        shutil.copytree(folder, here / "runs" / name)
    with pytest.raises(InputError) as error:
        call("runs")
    assert str(error.value) == (
        "runs: holds no config.json, so no saved model; saved models are in runs/baseline-seed1, runs/rdrop-seed1"
    )


# ---- The command line ----


def test_out_of_reach(folder):
    """Every warning is printed once, and ten seconds are not waited for."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_ada"}
    code = (
        "import sys, time\n"
        "waits = []\n"
        "time.sleep = waits.append\n"
        "from rdrop_trainer.hub.__main__ import main\n"
        f"codes = [main(['list']), main(['push', {str(folder)!r}, 'ada/model'])]\n"
        "print(codes, waits)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[3, 3] [1.0, 2.0, 4.0, 1.0, 2.0, 4.0]\n"
    again = [f"the connection failed (ConnectError); trying again in {wait} s" for wait in (1, 2, 4)]
    lines = done.stderr.splitlines()
    assert lines[:3] == lines[4:7] == again and len(lines) == 8
    assert lines[3] == (
        "rdrop_trainer.hub: error: the Hub's list could not be read: the connection failed (ConnectError)"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["push", "--help"], ["list", "--limit", "x"]])
def test_parsing_needs_neither_torch_nor_transformers(arguments):
    heavy = "torch transformers huggingface_hub datasets accelerate numpy safetensors jinja2 peft".split()
    code = (
        "import sys\n"
        f"sys.argv[1:] = {arguments!r}\n"
        f"sys.modules.update(dict.fromkeys({heavy!r}))\n"  # importing one of them fails
        "from rdrop_trainer.hub.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "usage: python -m rdrop_trainer.hub" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_push_is_described_without_the_hub(hub, folder, capsys, monkeypatch):
    offline(monkeypatch)
    (folder / "optimizer.pt").write_text("x")
    assert main(["push", str(folder), REPO, "--dry_run"]) == 0
    out = capsys.readouterr().out
    size = f"{(folder / 'model.safetensors').stat().st_size:,}"
    assert any(line.split() == [size, "model.safetensors"] for line in out.splitlines())
    assert "alpha 2.5" in out and "stays here: optimizer.pt" in out and NO_REPO not in out
    assert hub.requests == []
    (folder / "config.json").write_text("{")
    assert main(["push", str(folder), REPO, "--dry_run"]) == 2
    assert "not valid JSON" in capsys.readouterr().err
