"""How the tests of the Triton kernels, which run in a process of their own, set up the backend."""

import pytest


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in a row of few classes, the last of them not full, and several rounds in a block."""
    from rdrop_trainer.losses import fused, triton

    for name, value in {"BLOCK_BYTES": 256, "WARPS": 1, "WARP": 4, "ITEM_BLOCK": 2, "FEW_LOGITS": 0}.items():
        monkeypatch.setattr(triton, name, value)
    monkeypatch.setattr(fused, "TRITON_SCALES_FROM", 0)


@pytest.fixture(params=["whole items", "split items", "few logits"])
def way(request, monkeypatch):
    """A program for each item; two for each, if it has several blocks; or one for all, several at a time."""
    from rdrop_trainer.losses import fused, triton

    parts = 2 if request.param == "split items" else 1
    monkeypatch.setattr(triton, "split", lambda device, size, item_bytes, blocks: (min(parts, blocks), 1))
    if request.param == "few logits":
        monkeypatch.setattr(triton, "FEW_LOGITS", 2**15)
        monkeypatch.setattr(triton, "FEW_AT_A_TIME", 2**10)
        monkeypatch.setattr(fused, "TRITON_SCALES_FROM", 2**17)
    return request.param
