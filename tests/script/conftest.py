"""What the tests of the script share."""

import sys
import time

import pytest

from support import SCRIPT
from support.device import USE_CPU
from support.runs import make_model, words, write_csv


@pytest.fixture(autouse=True)
def started_by_its_file(monkeypatch):
    """The commands that the script prints begin as it was started."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny BERT without a head; not to be changed."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def flags(model, here):
    """A run of 12 steps with a checkpoint every second one; its last word is the output folder."""
    write_csv(here / "train.csv")
    quiet = f"--max_seq_length 16 --use_cpu {USE_CPU} --disable_tqdm True --train_file train.csv"
    training = "--per_device_train_batch_size 4 --num_train_epochs 2 --save_steps 2"
    return words("--model_name_or_path", model, quiet, training, "--output_dir out")


@pytest.fixture
def ada(hub, monkeypatch):
    """The Hub with a user who is logged in, and no waits between tries."""
    hub.user("ada")
    hub.login("ada")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return hub
