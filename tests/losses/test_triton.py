"""The Triton kernels: tried in Triton's interpreter or on a CUDA device, and compiled for one without having it."""

import os
import subprocess
import sys

import numpy
import pytest
import torch
from packaging.version import Version

from support import ROOT

triton = pytest.importorskip("triton", reason="needs Triton, which pip installs on Linux")
HERE = ROOT / "tests/support"
FILES = "triton_kernels.py", "triton_launches.py"


def run(*command, interpret):
    """In a process of its own: Triton reads the variable as it is imported, and other tests would see it."""
    env = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=HERE, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"),
    reason="an interpreter that cannot do with NumPy 2.4",
)
def test_kernels_in_the_interpreter():
    assert " passed" in run("-m", "pytest", "-n0", "-p", "no:cacheprovider", *FILES, interpret=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_a_device():
    # The last -m counts
    assert " passed" in run("-m", "pytest", "-n0", "-p", "no:cacheprovider", "-m", "", *FILES, interpret=False)


@pytest.mark.parametrize("capability", [pytest.param("80", marks=pytest.mark.slow), "90"])
def test_kernels_compile_without_spilling_registers(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = run("-Werror", "triton_compile_run.py", capability, interpret=False).splitlines()
    assert len(compiled) == 21
    assert all(f" sm_{capability}" in line and line.endswith(" 0") for line in compiled), compiled
