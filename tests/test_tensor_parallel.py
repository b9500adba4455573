"""Tensor parallelism on two processes, which see the same rows: the training of one process."""

import pytest
import torch

from support import distributed, zoo
from support.distributed import MODES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Logs of one process, and of the two."""
    out = tmp_path_factory.mktemp("tensor_parallel")
    zoo.build("llama", dropout=0.0).save_pretrained(out / "model")
    distributed.run("tp_run.py", out)
    distributed.launch("tp_run.py", out)
    return [torch.load(out / f"{rank}.pt") for rank in (-1, 0, 1)]


@pytest.mark.parametrize("mode", [*MODES, "compute_loss_func"])
def test_terms_are_those_of_one_process(mode, found):
    """With accumulation; rows that both see are counted once. The terms of later steps show the updates."""
    alone, *both = found
    assert len(alone[mode]) == 3
    for logs in both:
        assert logs["said"] == alone["said"] == []
        for entry, expected in zip(logs[mode], alone[mode], strict=True):
            for key in ("loss", "task_loss", "divergence"):
                assert entry[key] == pytest.approx(expected[key], rel=1e-5) and entry["divergence"] > 0


def test_a_sharded_output_head_is_not_fused(found):
    alone, *both = found
    assert "refusal" not in alone
    assert all("the weights of the output head are sharded over processes" in logs["refusal"] for logs in both)
