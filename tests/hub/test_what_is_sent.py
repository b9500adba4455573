"""What is pushed: what was checked, without secrets and local paths, from folders that are sound."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import load_checkpoint, push_checkpoint
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.folder import read_checkpoint
from rdrop_trainer.hub.model_card import NO_REPO
from support.pushing import REPO, written

# ---- The commit holds what was meant ----


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


# ---- What was checked is what is sent ----


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


# ---- Tokens ----

TOKENS = [
    "hf_abcdefghijklmnopqrstuvwx",
    "api_org_abcdefghijklmnopqrstuvwx",
    "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2In0.abc-d_ef",
    "hf_jwt_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2In0.abc-d_ef",
]


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_of_every_kind(ada, folder, token):
    for around in ("{}", '"{}"', "my_{}", "https://user:{}@huggingface.co/"):
        (folder / "chat_template.jinja").write_text(around.format(token))
        with pytest.raises(InputError, match="chat_template.jinja: holds what looks like a token") as error:
            push_checkpoint(folder, REPO)
        assert token not in str(error.value) and ada.requests == []
    (folder / "chat_template.jinja").unlink()
    ada.fail("commit", status=403, message=f"no rights for {token} there", times=None)
    with pytest.raises(HubError, match=r"no rights for \(a token\) there"):
        push_checkpoint(folder, REPO)


def test_what_is_no_token(folder):
    (folder / "chat_template.jinja").write_text("hf_internal-testing/tiny hf_transformers shf_abcdefghijklmnopqrstuvwx")
    assert "chat_template.jinja" in read_checkpoint(folder).files


# ---- Local paths ----


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


def test_a_card_names_no_folder_of_an_adapters_base(folder):
    """PEFT names it in a tag, and a user may have set its name on the Hub in adapter_config.json alone."""
    text = "---\ntags: [lora, 'base_model:adapter:{0}', 'base_model:adapter:me/base', 3]\n---\nOf {0}.\n"
    for local in ("/home/me/model", "C:\\me\\model"):
        (folder / "README.md").write_text(text.format(local))
        card = ModelCard(read_checkpoint(folder).files["README.md"].decode())
        assert card.data.tags == ["lora", "base_model:adapter:me/base", 3] and card.text == "Of a local model.\n"


# ---- Pull requests ----


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
    push_checkpoint(folder, REPO, create_pr=True)
    push_checkpoint(folder, REPO)
    push_checkpoint(folder, REPO, create_pr=True)
    assert len(requests_of(there)) <= 1


# ---- Unsound folders ----


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


# ---- Folders that are none ----


@pytest.mark.parametrize("name", ["runs/none/here", "./none", "/no/such/folder", "~/none", ""])
def test_a_folder_that_is_not_there(hub, here, name):
    with pytest.raises(InputError, match="there is no such folder, and it is no repository's name"):
        load_checkpoint(name)
    assert hub.requests == []


@pytest.mark.parametrize("call", [load_checkpoint, read_checkpoint])
@pytest.mark.parametrize("finished", [True, False])
def test_the_folder_of_a_comparison(hub, here, folder, call, finished):
    """The best with R-Drop comes first: that is what its user looks for."""
    scores = {"plain-seed1": 0.9, "rdrop-seed1": 0.7, "rdrop-seed2": 0.8, "rdrop-seed3": None}
    for name, score in scores.items():
        shutil.copytree(folder, here / "runs" / name)
        results = {"settings": {"rdrop_alpha": 4.0 * ("rdrop" in name)}, "headline": {"eval_accuracy": score}}
        (here / "runs" / name / "all_results.json").write_text(json.dumps(results) if finished else "{")
    with pytest.raises(InputError) as error:
        call("runs")
    names = ["rdrop-seed2", "rdrop-seed1", "rdrop-seed3", "plain-seed1"] if finished else scores
    order = ", the best with R-Drop first, are" if finished else " are"
    listed = ", ".join(f"runs/{name}" for name in names)
    assert str(error.value) == f"runs: holds no config.json, so no saved model; saved models{order} in {listed}"


# ---- The command line ----


def test_out_of_reach(folder, waits, monkeypatch, capsys, caplog):
    """Every warning is given once, and ten seconds are not waited for."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for command in (["list"], ["push", str(folder), REPO, "--token", "hf_ada"]):
        waits.clear()
        caplog.clear()
        assert main(command) == 3 and waits == [1, 2, 4]
        again = [f"the connection failed (ConnectError); trying again in {wait} s" for wait in (1, 2, 4)]
        assert caplog.messages == again
        assert ": the connection failed (ConnectError)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["push", "--help"], ["list", "--alpha", "x"]])
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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
