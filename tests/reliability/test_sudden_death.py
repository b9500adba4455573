"""A training killed with SIGKILL at random steps or while it writes a checkpoint ends with the very same weights."""

import json
import os

import pytest
import transformers
from packaging.version import Version

from support import distributed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks")
# Older versions cannot load the state of an optimizer that several processes saved on the CPU
RANKS = Version(transformers.__version__) >= Version("5.23")
FEW = {"unlabeled": 2} | ({"ranks": 2} if RANKS else {})
MANY = {"unlabeled": 100, "fused": 100} | ({"ranks": 50, "ranks-unlabeled": 50} if RANKS else {})


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_killed_and_resumed_equals_uninterrupted(cases, tmp_path):
    """All with warm-up, R-Drop on every second step and accumulation. The cases add unlabeled rows in recompute mode, a
    fused output head, or a second process, which follows the one that is killed.
    """
    words = [f"{case}:{trials}" for case, trials in cases.items()]
    found = json.loads(distributed.run("interrupted_run.py", tmp_path, 0, *words).splitlines()[-1])
    print(found)
    for case, trials in cases.items():
        of_case = found[f"{case}:{trials}"]
        assert of_case["kills"] >= trials and of_case["kills while writing"] >= trials / 2, case
        assert of_case["different"] == [], case
