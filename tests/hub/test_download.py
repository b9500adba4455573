"""download_checkpoint with the real client against a local Hub: nothing damaged, nothing false, nothing outside."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import download_checkpoint, load_checkpoint
from rdrop_trainer.hub.__main__ import main
from support.hub_files import REPO, below, whole, without

# ---- What is downloaded ----


def test_a_checkpoint_and_nothing_else_is_downloaded(public, files):
    others = (
        "optimizer.pt pytorch_model.bin training_args.bin train.py .env checkpoint-5/model.safetensors pictures/a.png"
    )
    public.repo(REPO, {**dict.fromkeys(others.split(), "x"), "logs/a.json": "{}"})
    assert below(download_checkpoint(REPO)) == whole(files)
    assert {one.path.split("/")[-1] for one in public.seen("resolve")} == set(files)


def test_what_is_there_is_not_fetched_again(public, files, tmp_path):
    folder = download_checkpoint(REPO)
    assert below(folder) == whole(files) and folder.is_relative_to(os.environ["HF_HOME"])
    public.requests.clear()
    assert download_checkpoint(REPO) == folder and not public.seen("resolve")
    (folder / "config.json").write_text("{}")  # damaged on the disk
    assert below(download_checkpoint(REPO)) == whole(files)
    assert download_checkpoint(REPO, cache_dir=tmp_path).is_relative_to(tmp_path)


def test_revisions_and_tokens(public, files):
    old = public.repos["model", REPO].resolve("main").sha
    public.repo(REPO, {"config.json": json.dumps({**json.loads(files["config.json"]), "x": 1})})
    assert "x" in json.loads((download_checkpoint(REPO) / "config.json").read_text())
    assert below(download_checkpoint(REPO, revision=old)) == whole(files)
    public.repo("ada/secret", files, private=True)
    assert below(download_checkpoint("ada/secret", token="hf_ada")) == whole(files)
    for name, options, said in (
        (REPO, {"revision": "v9"}, "ada/model at v9 was not downloaded: no such repository, revision or file"),
        ("ada/none", {}, "no such repository"),
        ("ada/secret", {}, "hf auth login"),
        ("ada/secret", {"token": "hf_eve"}, "no such repository"),
        ("ada/secret", {"token": "hf_wrong"}, "the token is missing, wrong"),
    ):
        with pytest.raises(HubError, match=said) as error:
            load_checkpoint(name, **options)
        assert "\n" not in str(error.value) and "hf_" not in str(error.value)


@pytest.mark.parametrize("name", ["../x", "/no/such/folder", ""])
def test_names_that_are_none(hub, name):
    with pytest.raises(InputError, match="is no repository's name"):
        download_checkpoint(name)
    assert hub.requests == []


def test_push_and_download_again(hub, files, tmp_path, capsys):
    hub.user("ada")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["push", str(tmp_path), "ada/new", "--private", "--token", "hf_ada"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/ada/new/commit/")
    assert main(["download", "ada/new", "--token", "hf_ada"]) == 0
    assert below(Path(capsys.readouterr().out.strip())) == whole(without(hub.files("ada/new"), ".gitattributes"))


# ---- Damage on the way ----


ONCE = {
    "a wrong byte": ("corrupt", "model.safetensors", {}),
    "a wrong byte in a small file": ("corrupt", "/config.json", {}),
    "cut short": ("truncate", "model.safetensors", {}),
    "a small file cut short": ("truncate", "tokenizer.json", {}),
    "a reset": ("drop", "resolve", {"after": 1000, "method": "GET", "path": "model.safetensors"}),
    "an early end": ("drop", "resolve", {"after": 1000, "method": "GET", "path": "model.safetensors", "hard": False}),
    "a fault of the server": ("fail", "resolve", {"status": 503, "method": "GET"}),
    "a limit": ("fail", "info", {"status": 429, "headers": {"Retry-After": "7"}}),
}


@pytest.mark.parametrize("case", ONCE)
def test_damage_that_passes(public, files, case):
    fault, where, options = ONCE[case]
    getattr(public, fault)(where, **options)
    assert below(download_checkpoint(REPO)) == whole(files)


@pytest.mark.parametrize(
    ("fault", "where", "said"),
    [
        ("corrupt", "model.safetensors", "has another hash than the server states. Nothing of it was kept"),
        ("corrupt", "/config.json", "config.json has another hash"),
        ("truncate", "model.safetensors", "model.safetensors has another hash than the server states"),
    ],
)
def test_damage_that_stays(public, files, fault, where, said, caplog):
    getattr(public, fault)(where, times=None)
    with pytest.raises(HubError, match=said):
        load_checkpoint(REPO)
    assert "it is fetched once more" in caplog.text
    kept = list(Path(os.environ["HF_HOME"]).rglob("snapshots/*/*"))
    assert all(path.read_bytes() == files[path.name] for path in kept), "what is damaged does not stay in the cache"
    assert where.strip("/") not in {path.name for path in kept}


def test_a_broken_connection_is_gone_on_with(public, files):
    public.drop("resolve", method="GET", path="model.safetensors", times=None)
    with pytest.raises(HubError, match="at main was not downloaded: the connection.*The same command goes on"):
        download_checkpoint(REPO)
    public.faults.clear()
    public.requests.clear()
    assert below(download_checkpoint(REPO)) == whole(files)
    assert "README.md" not in {one.path.split("/")[-1] for one in public.seen("resolve")}, "that one is there already"


# ---- A server that lies ----


@pytest.mark.parametrize(
    "name",
    ["/evil.json", "x/../../evil.json", "..\\evil.json", "\\evil.json", "C:evil.json", "a\x00.json", "\x1b[2J.json"],
)
def test_names_that_lead_outside(public, tmp_path, name):
    public.rename("tokenizer.json", name)
    with pytest.raises(HubError, match="which leads outside") as error:
        download_checkpoint(REPO, cache_dir=tmp_path)
    assert below(tmp_path) == {} and public.seen("resolve") == [] and str(error.value).isprintable()


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
@pytest.mark.parametrize("value", ["../../../../evil", "/evil", "0" * 40])
def test_headers_that_lead_outside(public, files, tmp_path, header, value):
    """The client makes paths of them."""
    home = Path(os.environ["HF_HOME"])

    def outside():
        return {*home.parent.glob("*evil*"), *home.rglob("*evil*"), *tmp_path.rglob("*evil*")}

    before = outside()
    public.lie(header, value)
    try:
        assert below(download_checkpoint(REPO, cache_dir=tmp_path / "a" / "b" / "c")) == whole(files)
    except HubError as error:
        assert "was not downloaded" in str(error)
    assert outside() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"a"}


def change_facts(**changes):
    """The listing of the files, with other facts of the weights."""

    def change(answer):
        weights = [file["rfilename"] == "model.safetensors" for file in answer.body["siblings"]]
        files = zip(answer.body["siblings"], weights, strict=True)
        return replace(answer, body={**answer.body, "siblings": [{**f, **changes} if w else f for f, w in files]})

    return change


def change_commit(sha):
    return lambda answer: replace(answer, body={**answer.body, "sha": sha})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_commit("../../evil"), "the server calls its commit '../../evil', which is none"),
        (change_commit(None), "which is none"),
        (change_facts(lfs=None, blobId=None), "states no hash of model.safetensors"),
        (change_facts(lfs=None, blobId="../evil"), "states no hash of model.safetensors"),
        (change_facts(lfs=None, blobId="0" * 40), "model.safetensors has another hash than the server states"),
        (change_facts(rfilename=7), "no safetensors|no weights"),
    ],
)
def test_facts_that_are_none(public, change, said):
    public.lie("X-Any", "any", route="info").change = change
    with pytest.raises((HubError, InputError), match=said):
        download_checkpoint(REPO)
