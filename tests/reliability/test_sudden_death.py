"""A training killed with SIGKILL at random steps or while it writes a checkpoint ends with the very same weights."""

import json
import os
import subprocess
import sys

import pytest
import transformers
from packaging.version import Version

from support import ROOT

RUNNER = ROOT / "tests/support/interrupted_run.py"
LONG = pytest.mark.slow
# Older versions cannot load the state of an optimizer that several processes saved on the CPU
RANKS = pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="Trainer cannot resume them")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks")
@pytest.mark.parametrize(
    "case, trials",
    [
        ("unlabeled", 4),
        ("fused", 4),
        pytest.param("ranks", 2, marks=RANKS),
        pytest.param("unlabeled", 100, marks=LONG),
        pytest.param("fused", 100, marks=LONG),
        pytest.param("ranks", 50, marks=[LONG, RANKS]),
        pytest.param("ranks-unlabeled", 50, marks=[LONG, RANKS]),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(case, trials, tmp_path):
    """All with warm-up, R-Drop on every second step and accumulation. The cases add unlabeled rows in recompute mode, a
    fused output head, or a second process, which follows the one that is killed.
    """
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, str(RUNNER), str(tmp_path / "runs"), case, str(trials), "0"]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(case, found)
    assert found["kills"] >= trials and found["kills while writing"] >= trials / 2
    assert found["different"] == []
