"""FSDP, old and new, on two processes: the update of DistributedDataParallel, to which other tests hold one process."""

import pytest
import torch
from transformers import LlamaForCausalLM

from support import distributed, tiny
from support.distributed import LAYERS, MODES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder, and per process {case: update}, {case: logs}."""
    out = tmp_path_factory.mktemp("fsdp")
    distributed.launch("fsdp_run.py", out)
    return out, [torch.load(out / f"found-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_fsdp_makes_the_update_of_ddp(name, mode, version, found):
    """Dropout, accumulation, a last window that is not full; the processes' rows have unequal numbers of tokens."""
    (updates, logs), (_, other) = found[1]
    case, ddp = f"{name}-{mode}-{version}", f"{name}-{mode}-None"
    assert updates[ddp].norm() > 0.1 and tiny.relative(updates[case], updates[ddp]) < 1e-5
    assert logs[case] == other[case] and len(logs[case]) == 2
    for entry, expected in zip(logs[case], logs[ddp], strict=True):
        assert entry == pytest.approx(expected, rel=1e-6) and entry["divergence"] > 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_in_bf16_terms_are_near_and_nothing_is_said(name, version, found):
    """As transformers turns it on: parameters are gathered in bfloat16, and updated in float32."""
    for _, logs in found[1]:
        assert logs["said"] == []
        for entry, expected in zip(logs[f"{name}-bf16-{version}"], logs[f"{name}-concat-None"], strict=True):
            assert entry == pytest.approx(expected, rel=2e-2) and entry != pytest.approx(expected, rel=1e-6)


def test_fsdp2_goes_on_from_a_checkpoint(found):
    """In the middle of the second epoch."""
    (updates, logs), _ = found[1]
    assert torch.equal(updates["resumed"], updates["whole"])


def test_what_fsdp2_saves(found):
    folder = found[0]
    model, info = LlamaForCausalLM.from_pretrained(folder / "saved", output_loading_info=True)
    assert not any(info.values()) and model.config.architectures == ["LlamaForCausalLM"]
    assert "FSDP" not in (folder / "run" / "README.md").read_text()


def test_a_sharded_output_head_is_not_fused(found):
    for _, logs in found[1]:
        assert "FSDP shards the weights of the output head" in logs["refusal"]


def test_a_loss_that_is_nan_on_one_process_stops_it_at_once(found):
    (_, other), (_, logs) = found[1]
    assert "The loss is nan at step 1" in logs["nan"] and "The weights are finite" in logs["nan"] and "nan" not in other
