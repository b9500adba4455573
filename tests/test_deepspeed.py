"""DeepSpeed's ZeRO on two processes: the update of DistributedDataParallel, to which other tests hold one process."""

import os
import subprocess
import sys

import pytest
import torch

from support import ROOT, tiny

pytestmark = pytest.mark.interop
WORKER = ROOT / "tests/support/deepspeed_run.py"
STAGES = (1, 2)
# Model, forward mode, rdrop_fused_head
CASES = [f"token-{mode}-false" for mode in ("concat", "sequential", "recompute")] + [
    f"llama-{mode}-{fused}" for mode in ("concat", "sequential", "recompute") for fused in ("false", "true")
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{stage, None for DistributedDataParallel: (updates, logs) per process}"""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("deepspeed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    for stage in (None, *STAGES):
        words = [*launch, "--nproc_per_node", "2", str(WORKER), str(out), *([str(stage)] if stage else [])]
        done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return {stage: [torch.load(out / f"{stage}-{rank}.pt") for rank in range(2)] for stage in (None, *STAGES)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES)
def test_zero_makes_the_update_of_ddp(case, stage, found):
    """Dropout, accumulation, a last window that is not full; the processes' rows have unequal numbers of tokens."""
    (expected, expected_logs), _ = found[None]
    (updates, logs), (_, other) = found[stage]
    assert expected[case].norm() > 0.1 and tiny.relative(updates[case], expected[case]) < 1e-5
    assert logs[case] == other[case] and len(logs[case]) == 2
    for entry, wanted in zip(logs[case], expected_logs[case], strict=True):
        assert entry == pytest.approx(wanted, rel=1e-5) and entry["divergence"] > 0
