"""What the tests of the Hub share."""

import time

import pytest


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that were to be waited, which pass at once."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited
