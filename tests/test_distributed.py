"""Two processes equal one with twice the rows: every forward mode, with and without accumulation (gloo, CPU)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import zoo

WORKER = Path(__file__).with_name("distributed_run.py")
HEADS = ("single_label", "token")
MODES = ("concat", "sequential", "recompute")
FUSED = ("llama", "t5", "masked_lm")  # the last is not known by name, so that a row of it is looked at


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All runs in one launch each: {processes: {case: (update, logs per rank)}}."""
    found = {}
    for processes in (1, 2):
        out = tmp_path_factory.mktemp(f"{processes}_processes")
        # Standalone: the launcher binds a free port itself, so none can be taken between choosing and using it
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
        launch += ["--nproc_per_node", str(processes)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*launch, str(WORKER), str(out)], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        logs = [json.loads((out / f"logs-{rank}.json").read_text()) for rank in range(processes)]
        found[processes] = (torch.load(out / "updates.pt"), logs)
    return found


def cases():
    modes = (("concat", 0), ("concat", 4), ("sequential", 4), ("recompute", 4))
    return [f"{name}-{mode}-2-{alpha}" for name in zoo.ONE_OF_A_KIND for mode, alpha in modes] + [
        f"{head}-{mode}-{steps}-{alpha:g}"
        for head in HEADS
        for mode in MODES
        for steps in (1, 2)
        for alpha in ((0.0, 4.0) if mode == "concat" else (4.0,))
    ]


def fused_cases():
    runs = (("concat", 1), ("concat", 2), ("sequential", 2), ("recompute", 2))
    return [f"fused-{name}-{mode}-{steps}" for name in FUSED for mode, steps in runs] + ["fused-auto"]


@pytest.mark.parametrize("case", [*cases(), *fused_cases(), "multi_label", "regression", "loss_func", "own_loss"])
def test_two_processes_equal_one(case, results):
    one, two = (results[p][0][case] for p in (1, 2))
    assert tiny.relative(two, one) < 1e-5


@pytest.mark.parametrize("case", [*cases(), *fused_cases()])
def test_logged_terms_are_equal_on_all_ranks(case, results):
    (one,), (first, second) = results[1][1], results[2][1]
    assert first[case] == second[case]
    assert first[case] == pytest.approx(one[case], rel=1e-5)


@pytest.mark.parametrize("head", tiny.HEADS)
def test_sequential_and_recompute_agree_under_dropout(head, results):
    """Real dropout on two processes: the recomputed passes draw it again, through DistributedDataParallel."""
    sequential, recompute = (results[2][0][f"dropout-{mode}-{head}"] for mode in MODES[1:])
    assert sequential.norm() > 0 and tiny.relative(recompute, sequential) < 1e-6


def test_one_process_may_fuse_its_micro_batch_and_the_other_not(results):
    first, second = (logs["chosen"] for logs in results[2][1])
    assert len(first) == len(second) and first != second
