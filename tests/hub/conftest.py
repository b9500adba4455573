"""What the tests of the Hub share."""

import shutil
import time

import pytest

from support import tiny

REPO = "ada/model"
CARD = "---\ntags: [r-drop]\npipeline_tag: text-classification\nr_drop: {alpha: 2.5, version: 1.0}\n---\n# A model\n"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that were to be waited, which pass at once."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


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
