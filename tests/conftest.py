"""The tests' own Hub stands in for huggingface.co, so that no test reaches for a network: see hub_server.py."""

import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from support import ROOT
from support.hub_server import Hub

# Before anything imports huggingface_hub, which reads these once; child processes inherit them.
HUB = Hub()
HF_HOME = Path(tempfile.mkdtemp(prefix="rdrop-tests-hf-"))
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": str(HF_HOME),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # a Space of its own address
    "NO_PROXY": "127.0.0.1",
}

# Tiny models gain nothing from a second thread, and wait long for it where something else runs
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without it cuBLAS may not be deterministic; read when the GPU is first used
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if os.environ.get("RDROP_TEST_DEVICE") == "cuda":
    # With two in sight `Trainer` would choose DataParallel, and R-Drop say that it takes one of them
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

# Scripts that tests start as processes import from tests/ as the tests do
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

look_up = socket.getaddrinfo


def look_up_this_machine(host, *args, **kwargs):
    """Some clients ask huggingface.co whatever HF_ENDPOINT says."""
    if host not in (None, "", "127.0.0.1", "localhost", "::1", "0.0.0.0", socket.gethostname()):
        raise socket.gaierror(socket.EAI_FAIL, f"no test reaches for {host}")
    return look_up(host, *args, **kwargs)


socket.getaddrinfo = look_up_this_machine


@pytest.fixture(scope="module", autouse=True)
def little_to_collect():
    """At every start of a training accelerate collects garbage, among all that was imported and made until now."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    shutil.rmtree(HF_HOME, ignore_errors=True)


@pytest.fixture
def hub():
    """The Hub without users, repositories, faults or requests, and nothing downloaded yet."""
    HUB.reset()
    for folder in ("hub", "datasets"):
        shutil.rmtree(HF_HOME / folder, ignore_errors=True)
    if "huggingface_hub" in sys.modules:
        sys.modules["huggingface_hub"].HfFileSystem.clear_instance_cache()  # it remembers listings
    yield HUB
    HUB.reset()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run the script in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
