"""SIGKILL at random steps and while checkpoints are written: the resumed training ends with the very same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("interrupted_run.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks")
@pytest.mark.parametrize("case", ["unlabelled", "fused"])
@pytest.mark.parametrize("trials", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(case, trials, tmp_path):
    """Warm-up, every-2-steps and accumulation on; unlabelled rows in recompute mode, or a fused output head."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, str(RUNNER), str(tmp_path / "runs"), case, str(trials), "0"]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(case, found)
    assert found["kills"] >= trials and found["kills while writing"] >= trials / 2
    assert found["different"] == []
