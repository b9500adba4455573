"""`python -m rdrop_trainer.hub release`: what it trains and pushes, its cards and collection, and what it repeats."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rdrop_trainer.hub import load_checkpoint
from rdrop_trainer.hub.__main__ import main as hub_command
from rdrop_trainer.script import release
from rdrop_trainer.script.release_pair import Pair
from support.runs import FAST, InProcess, launched_by, make_place, results

NAMES = ("ada/tiny-rdrop", "ada/tiny-plain")
RELEASE = ["--namespace", "ada", "--seeds", "1", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, data, a recipe, and its finished comparison of two seeds, the second of which is the better one."""
    folder = tmp_path_factory.mktemp("release")
    make_place(folder, rows=16)
    recipe = dict(zip((flag.removeprefix("--") for flag in FAST[::2]), FAST[1::2], strict=True))
    recipe |= {"train_file": "train.csv", "validation_file": "dev.csv", "learning_rate": 1e-3}
    recipe["model_name_or_path"] = str(folder / "model")  # a path, which no card and no report shows
    (folder / "tiny.yaml").write_text("\n".join(f"{name}: {value}" for name, value in recipe.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch = in_process(patch)
        command = release.parse_arguments(
            ["tiny.yaml", "--compare_baseline", "--seeds", "1", "2", "--output_dir", "runs/release/tiny"]
        )
        assert release.compare_baseline(command) == 0 and len(launch.started) == 4
    for seed, accuracy in ((1, 0.5), (2, 0.75)):
        set_accuracy(folder / f"runs/release/tiny/rdrop-seed{seed}", accuracy)
        set_accuracy(folder / f"runs/release/tiny/plain-seed{seed}", 0.25)
    return folder


def set_accuracy(folder, value):
    found = results(folder)
    found["headline"]["eval_accuracy"] = found["metrics"]["eval_accuracy"] = value
    (folder / "all_results.json").write_text(json.dumps(found))


@pytest.fixture
def here(place, here):
    """A copy of it, as the current folder."""
    return Path(shutil.copytree(place, here, dirs_exist_ok=True))


def in_process(patch):
    """Runs in this process, and pictures that are not drawn: other tests look at them."""
    patch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: Path(path).write_bytes(b"\x89PNG"))
    return launched_by(InProcess(), patch)


@pytest.fixture
def launch(monkeypatch):
    return in_process(monkeypatch)


def notes(hub):
    (collection,) = hub.collections.values()
    return {item["id"]: item["note"]["text"] for item in collection["items"]}


def writes(hub):
    return [seen for seen in hub.requests if seen.route in ("commit", "upload", "create", "collection-item")]


def test_a_finished_comparison_is_released(here, ada, launch, capsys):
    assert release.main(["tiny.yaml", *RELEASE]) == 0
    assert not launch.started
    weights = {name: ada.files(name)["model.safetensors"] for name in NAMES}
    for name, arm in zip(NAMES, ("rdrop", "plain"), strict=True):
        run = here / "runs/release/tiny" / f"{arm}-seed2"
        assert weights[name] == (run / "model.safetensors").read_bytes()
        files = ada.files(name)
        card = ModelCard(files["README.md"].decode())
        assert all(f"https://huggingface.co/{other}" in card.text for other in NAMES)
        assert "# " + name.split("/")[1] in card.text and "# rdrop-seed2" not in card.text
        assert card.data.eval_results and ada.card(name)["model-index"][0]["name"] == name.split("/")[1]
        assert card.text.count("## R-Drop and its baseline") == 1
        assert card.text.index("## R-Drop and its baseline") < card.text.index("\n## R-Drop\n")
        assert "| these two, seed 2 | 75.00 | 25.00 |" in card.text and "62.50 ± 17.68" in card.text
        report = files["report/report.md"].decode()
        pictures = {path for path in files if path.endswith(".png")}
        assert "](report/report.md)" in card.text and "report/scores.png" in pictures
        assert all(f"]({path})" in card.text for path in pictures)
        assert all(f"]({path.removeprefix('report/')})" in report for path in pictures if path.startswith("report/"))
        assert str(here.parent).encode() not in b"".join(files.values())
        assert str(Path(results(run)["settings"]["model_name_or_path"])).encode() not in b"".join(files.values())
    assert "r-drop" in ada.card(NAMES[0])["tags"] and "r-drop" not in ada.card(NAMES[1])["tags"]
    assert load_checkpoint(NAMES[0]).settings.rdrop_alpha == 4
    (collection,) = ada.collections.values()
    assert (collection["title"], collection["owner"]["name"]) == ("R-Drop checkpoints", "ada")
    table = (here / "runs/release/results.md").read_text()
    row = "R-Drop: 62.50 ± 17.68; difference: +37.50"
    assert list(notes(ada)) == list(NAMES) and all(row in note for note in notes(ada).values())
    names = f"| ada/tiny-rdrop | ada/tiny-plain | {here.name} | a local model |"
    assert f"{names} 4 | 2 | accuracy (%) | 25.00 ± 0.00 |" in table
    assert table in capsys.readouterr().out


def test_what_is_there_is_not_repeated(here, ada, launch, capsys):
    assert release.main(["tiny.yaml", *RELEASE]) == 0
    before = {name: ada.commits(name)[0].sha for name in NAMES}
    ada.requests.clear()
    assert release.main(["tiny.yaml", *RELEASE]) == 0
    assert not launch.started and not writes(ada) and {n: ada.commits(n)[0].sha for n in NAMES} == before
    out = capsys.readouterr().out
    assert all(f"{name}: {ada.url}/{name}/commit/{sha}" in out for name, sha in before.items())
    set_accuracy(here / "runs/release/tiny/plain-seed2", 0.5)
    assert release.main(["tiny.yaml", *RELEASE]) == 0
    assert len(ada.commits(NAMES[0])) == 3 and all("baseline: 37.50 ± 17.68" in note for note in notes(ada).values())


def test_a_release_goes_on_where_it_ended(here, ada, launch, capsys):
    (here / "runs/release/tiny/plain-seed2/all_results.json").unlink()
    launch.codes["plain_seed2"] = KeyboardInterrupt
    assert release.main(["tiny.yaml", *RELEASE]) == 130
    launch.codes["plain_seed2"] = 1
    assert release.main(["tiny.yaml", *RELEASE]) == 1
    assert not ada.repos and "because runs failed: runs/release/tiny" in capsys.readouterr().out
    launch.codes.clear()
    ada.fail("commit", status=503, times=None, path="tiny-plain")
    assert release.main(["tiny.yaml", *RELEASE]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "rdrop_trainer.hub release: error: " in line and "runs/release/tiny/hub/tiny-plain" in line
    ada.faults.clear()
    ada.requests.clear()
    assert release.main(["tiny.yaml", *RELEASE]) == 0
    assert launch.started == ["plain-seed2"] * 3
    assert [seen.path.split("/")[4] for seen in ada.seen("commit")] == ["tiny-plain"] and set(notes(ada)) == set(NAMES)


def test_a_baseline_that_broke_down_is_not_released(here):
    """The best model with R-Drop is of its seed; the next best pair is whole, and counts as the only one."""
    set_accuracy(here / "runs/release/tiny/plain-seed2", None)
    pair = Pair.best(here / "runs/release/tiny", NAMES)
    assert pair.seed == 1
    assert [pair.row()[column] for column in ("seeds", "baseline", "R-Drop")] == ["1", "25.00", "50.00"]


def test_folders_of_comparisons_are_taken_as_they_are(here, ada, launch):
    shutil.copytree("runs/release/tiny", "runs/other")
    assert release.main(["runs/other", "tiny.yaml", *RELEASE, "--private", "--collection", "Two of them"]) == 0
    names = ["ada/other-rdrop", "ada/other-plain", *NAMES]
    assert not launch.started and list(notes(ada)) == names
    assert all(ada.repos["model", name].private for name in names)
    (collection,) = ada.collections.values()
    assert collection["private"] and collection["title"] == "Two of them"


def test_a_dry_run_says_what_it_costs_and_asks_no_hub(here, ada, launch, capsys):
    (here / "rte.yaml").write_text("model_name_or_path: bert-base-cased\ntask_name: rte\nmax_steps: 2036\n")
    shutil.copytree("runs/release/tiny", "runs/other")
    shutil.rmtree("runs/release/tiny/rdrop-seed2")
    files = sorted(here.rglob("*"))
    assert release.main(["tiny.yaml", "rte.yaml", "runs/other", *RELEASE, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "rdrop, seed 2: runs/release/tiny/rdrop-seed2, to come" in said and "time      about" in said
    assert "2 runs of 2,036 steps for each of plain and rdrop" in said and "not known without a network" in said
    assert "best      seed 2 of 2, by accuracy" in said and "'R-Drop checkpoints' of ada: 6 models" in said
    assert "pushes    ada/tiny-rdrop and ada/tiny-plain" in said
    assert not ada.requests and not launch.started and sorted(here.rglob("*")) == files


def test_what_cannot_be_released_is_said_before_training(here, ada, launch, capsys):
    (here / "zero.yaml").write_text((here / "tiny.yaml").read_text() + "\nrdrop_alpha: 0")
    (here / "b").mkdir()
    shutil.copy("tiny.yaml", "b/Tiny.yaml")
    for words, said in (
        (["tiny.yaml", "zero.yaml"], "zero.yaml: --compare_baseline compares R-Drop with alpha 0"),
        (["none.yaml"], "no such recipe"),
        (["b"], "b: holds no comparison (arms.json)"),
        (["tiny.yaml", "b/Tiny.yaml"], "two recipes would be pushed to ada/tiny-rdrop"),
    ):
        assert release.main([*words, *RELEASE]) == 2
        assert said in capsys.readouterr().err
    assert release.main(["tiny.yaml", "--namespace", "a/b"]) == 2
    assert "is no repository's name" in capsys.readouterr().err
    assert not ada.requests and not launch.started
    (here / "runs/release/tiny/plain-seed2/all_results.json").unlink()
    assert release.main(["tiny.yaml", "--namespace", "eve", "--seeds", "1", "2"]) == 3
    assert "the collection 'R-Drop checkpoints' of eve is not complete" in capsys.readouterr().err
    assert not launch.started


def test_the_hubs_command_line_starts_it(here, ada, launch, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "rdrop_trainer.script.release")  # of which a process would have no other copy
    assert hub_command(["release", "tiny.yaml", *RELEASE, "--dry_run"]) == 0
    assert "left      nothing: all runs are finished" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "rdrop_trainer.script.release", raising=False)
    assert hub_command(["release", "none.yaml", *RELEASE]) == 2 and "no such recipe" in capsys.readouterr().err
