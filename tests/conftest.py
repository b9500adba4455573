"""No test reaches for a network: a model or data set that is not on disk fails at once."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run the script in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
