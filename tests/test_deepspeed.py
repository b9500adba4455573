"""DeepSpeed's ZeRO on two processes: the update of DistributedDataParallel, to which other tests hold one process."""

import pytest
import torch

from support import distributed, tiny
from support.distributed import ZERO

pytestmark = pytest.mark.interop
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{stage, None for DistributedDataParallel: (updates, logs, weights of the resumed training) per process}"""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("deepspeed")
    for stage in (None, *STAGES):
        distributed.launch("deepspeed_run.py", out, *([stage] if stage else []), DS_ACCELERATOR="cpu")
    return {stage: [torch.load(out / f"{stage}-{rank}.pt") for rank in range(2)] for stage in (None, *STAGES)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", ZERO)
def test_zero_makes_the_update_of_ddp(case, stage, found):
    """Dropout, accumulation, a last window that is not full; the processes' rows have unequal numbers of tokens."""
    (expected, expected_logs, _), _ = found[None]
    (updates, logs, _), (_, other, _) = found[stage]
    if stage == 3 and case.endswith("true"):
        assert "the weights of the output head are sharded" in logs[case] and logs[case] == other[case]
        return
    assert expected[case].norm() > 0.1 and tiny.relative(updates[case], expected[case]) < 1e-5
    assert logs[case] == other[case] and len(logs[case]) == 2
    for entry, wanted in zip(logs[case], expected_logs[case], strict=True):
        assert entry == pytest.approx(wanted, rel=1e-5) and entry["divergence"] > 0


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_training_goes_on_bit_for_bit(stage, found):
    """Without `stage3_gather_16bit_weights_on_model_save` too, where a checkpoint has DeepSpeed's parts alone."""
    for _, _, (whole, cut, resumed) in found[stage]:
        assert tiny.identical(resumed, whole) and not tiny.identical(cut, whole)


@pytest.mark.parametrize("stage", STAGES)
def test_in_bf16_nothing_is_said(stage, found):
    """Its weights are in bfloat16 then, but those that it updates are not; and losses are rounded to it."""
    assert [logs["said"] for _, logs, _ in found[stage]] == [[], []]
