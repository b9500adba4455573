"""The project as a repository: its README is a valid card of the Hub, and pip installs it from a git address."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions

import pytest
from huggingface_hub import ModelCard, get_session

import rdrop_trainer
from rdrop_trainer.hub.card_data import TAG
from support import ROOT


def test_the_readme_is_a_valid_card(hub):
    card = ModelCard.load(ROOT / "README.md")
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"repoType": "model", "content": str(card)})
    assert answer.status_code == 200 and answer.json()["errors"] == []
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["language"] == ["en", "zh"]
    assert TAG not in data["tags"]  # by that models trained with R-Drop are found, and this is none
    assert not {"base_model", "pipeline_tag", "model-index"} & data.keys()
    assert card.text.lstrip().startswith("# rdrop-trainer\n")


def git(*words):
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def test_pip_installs_it_from_a_git_address(tmp_path):
    if not (ROOT / ".git").exists() or shutil.which("git") is None or git("rev-parse", "HEAD") is None:
        pytest.skip("no git repository here")
    found = {package.name.lower(): package.version for package in distributions()}
    if "pip" not in found or int(found.get("setuptools", "0").split(".")[0]) < 77:
        pytest.skip("no pip, or no setuptools of 77 or later to build with")
    address = f"git+{ROOT.as_uri()}@{git('rev-parse', 'HEAD')}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", tmp_path / "site", address], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (information,) = (tmp_path / "site").glob("*.dist-info")
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"rdrop_trainer", "bin", information.name}
    assert [path.name for path in (tmp_path / "site" / "bin").iterdir()] == ["rdrop-glue"]
    installed = (tmp_path / "site" / "rdrop_trainer").rglob("*.[pm][yd]")
    committed = git("ls-tree", "-r", "--name-only", "HEAD", "rdrop_trainer").splitlines()
    assert sorted(path.relative_to(tmp_path / "site").as_posix() for path in installed) == sorted(committed)

    code = (
        "import importlib.metadata, rdrop_trainer\n"
        "from rdrop_trainer.errors import InputError\n"
        "print(rdrop_trainer.__file__, rdrop_trainer.__version__, importlib.metadata.version('rdrop-trainer'))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    version = re.search(r'^version = "(.+)"', git("show", "HEAD:pyproject.toml"), re.M)[1]
    assert done.stdout.split() == [str(tmp_path / "site/rdrop_trainer/__init__.py"), version, version], done.stderr
    # the metadata that PyPI shows
    metadata = (information / "METADATA").read_text(encoding="utf-8")
    assert "Description-Content-Type: text/markdown" in metadata and "# rdrop-trainer" in metadata


def test_one_version_of_each_tool():
    pinned = dict(re.findall(r"(?m)^(\S+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8")))
    hooks = set(re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")))
    assert hooks == {pinned["ruff"]}
    # the torch for CPUs that the README installs first must be the one that the constraints let stay
    assert re.findall(r"(?m)^pip install torch==(\S+) ", (ROOT / "README.md").read_text("utf-8")) == [pinned["torch"]]


def test_the_changelog_begins_with_this_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert first == version == rdrop_trainer.__version__


def test_what_is_tracked_is_in_the_source_archive_or_left_out_on_purpose():
    """`nox -s build` looks into the archive itself, at a release."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None or (tracked := git("ls-files")) is None:
        pytest.skip("no clone")
    left_out = re.search(r"^NOT_DISTRIBUTED = ({.*})$", (ROOT / "noxfile.py").read_text("utf-8"), re.M)[1]
    packed = set((ROOT / "MANIFEST.in").read_text("utf-8").split())
    of_itself = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "rdrop_trainer"}
    assert {name.split("/")[0] for name in tracked.splitlines()} <= packed | of_itself | ast.literal_eval(left_out)
