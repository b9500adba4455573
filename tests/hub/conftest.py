"""What the tests of the Hub share."""

import shutil
import time

import pytest
from huggingface_hub import HfApi

from support import tiny
from support.hub_files import REPO, model_files
from support.pushing import leave_training


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that were to be waited, which pass at once."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a checkpoint with its tokenizer and card."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    model_files(folder, tiny.bert(), tiny.tokenizer())
    return folder


@pytest.fixture(scope="module")
def files(saved):
    """What is in it, by name."""
    return {path.name: path.read_bytes() for path in saved.iterdir()}


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    return leave_training(tmp_path_factory.mktemp("left") / "run")


@pytest.fixture
def trained(left, tmp_path):
    """The folder of a training, with a model of 5 MB."""
    return shutil.copytree(left, tmp_path / "run")


@pytest.fixture
def ada(hub):
    hub.user("ada")
    hub.user("eve")
    hub.login("ada")
    return hub


@pytest.fixture
def there(ada, files):
    """A Hub that has the checkpoint."""
    ada.repo(REPO, files)
    return ada


@pytest.fixture
def public(hub, files):
    """A Hub that has it, where nobody is logged in."""
    hub.user("ada")
    hub.user("eve")
    hub.repo(REPO, files)
    return hub


@pytest.fixture
def api(hub):
    """The client of ada, who is logged in; there is also bob."""
    hub.user("ada")
    hub.user("bob")
    hub.login("ada")
    return HfApi()
