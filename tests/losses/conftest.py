"""What the tests of the losses share."""

import pytest

from rdrop_trainer.losses import backends, chunked


@pytest.fixture
def many_chunks(monkeypatch):
    """Float32 arithmetic in chunks of 4 rows, whatever their number."""
    monkeypatch.setattr(chunked, "CHUNK_PER_THREAD", 1)
    monkeypatch.setattr(chunked, "_rows_of_a_chunk", lambda *_: 4)
    monkeypatch.setattr(backends, "FLOAT64_UP_TO", 0)
