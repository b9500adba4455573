"""Training in several processes: how they start, and the cases that the scripts of this folder run for the tests."""

import logging
import os
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager

from torch.distributed import TCPStore

from support import ROOT, zoo

MODES = ("concat", "sequential", "recompute")

# ---- distributed_run.py ----

ROWS = 13
# Each head counts in its own way, whatever the mode: tokens are trained in every one, the other heads in one of them
OTHER_HEADS = ("single_label", *zoo.ONE_OF_A_KIND)
# Head, mode, micro-batches a step (by 3, the last window is not full), alpha
TRAINED = [("token", mode, steps, 4.0) for mode in MODES for steps in (1, 3)]
TRAINED += [("token", "concat", steps, 0.0) for steps in (1, 3)]
TRAINED += [(head, "concat", 3, 0.0) for head in ("single_label", "t5", "gpt2")]
TRAINED += [(head, MODES[i % 3], 3, 4.0) for i, head in enumerate(OTHER_HEADS)]
# The last is not known by name, so that a row of it is checked
FUSED = [("llama", "concat", 1), *(("llama", mode, 2) for mode in MODES)]
FUSED += [("t5", "sequential", 2), ("masked_lm", "concat", 2), ("masked_lm", "recompute", 2)]
# Rows without any label among 8 rows in one window: of the second process its first micro-batch, or all it has
UNLABELED = {"labeled": (), "bare-micro-batch": (2, 3), "bare-window": (2, 3, 6, 7)}
BARE = [(rows, "token", mode) for rows in ("bare-micro-batch", "bare-window") for mode in MODES]
BARE += [("bare-window", "single_label", "sequential"), ("bare-window", "t5", "recompute")]
BARE += [("bare-window", "gpt2", "concat")]
# Every process counts for itself
OWN_COUNT = [("labeled", "token", mode) for mode in MODES]
OWN_COUNT += [("bare-micro-batch", "token", "concat"), ("bare-window", "token", "concat")]
OWN_COUNT += [("labeled", "gpt2", "concat"), ("bare-micro-batch", "t5", "concat")]
OWN_COUNT += [("bare-window", "single_label", "concat")]
UNEVEN = [("token", mode) for mode in MODES] + [("single_label", "concat")]


def rows_of_rank(rank, number):
    """The rows that one of two processes sees, two a micro-batch."""
    return [i for i in range(number) if i // 2 % 2 == rank]


# ---- fsdp_run.py and deepspeed_run.py ----

LAYERS = {"token": "BertLayer", "llama": "LlamaDecoderLayer"}
# Model, forward mode, rdrop_fused_head
ZERO = [f"token-{mode}-false" for mode in MODES]
ZERO += [f"llama-{mode}-{fused}" for mode in MODES for fused in ("false", "true")]


@contextmanager
def said_by_us():
    """What the package logs, and its warnings."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("rdrop_trainer").addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said.extend(str(one.message) for one in caught if "rdrop_trainer" in one.filename)
    logging.getLogger("rdrop_trainer").removeHandler(handler)


# ---- Processes ----

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ONE_THREAD |= {"CUDA_VISIBLE_DEVICES": "", "RDROP_TEST_DEVICE": "cpu"}


def run(script, *words, **environment):
    """Run a script of this folder; what it prints."""
    command = [sys.executable, *map(str, (ROOT / "tests" / "support" / script, *words))]
    return _run(command, environment)


def launch(script, *words, **environment):
    """Run a script of this folder on two processes, by torch.distributed.run."""
    # Standalone: the launcher binds a free port itself, so none can be taken between choosing and using it
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", "2"]
    return _run([sys.executable, *launcher, *map(str, (ROOT / "tests" / "support" / script, *words))], environment)


def _run(command, environment):
    env = {**os.environ, **ONE_THREAD, **environment}
    # Against hanging; 100 trials of an interrupted run take minutes
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def meeting(world):
    """The store where the processes of one training meet, and what their environment says of it.

    The caller holds it, so the port is bound before a process learns it.
    """
    if world == 1:
        return None, {}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world)}
    return store, environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}


def join(environment, rank):
    """Become a rank of the training that meets there."""
    if environment:
        os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def split(*worlds):
    """Go on as the forks of several trainings at once, each of so many processes; this one waits for them, and ends.

    Returns:
        In each fork: the number of processes of its training, and its rank.
    """
    stores, running = [], []
    for world in worlds:
        store, environment = meeting(world)
        stores.append(store)
        for rank in range(world):
            if not (pid := os.fork()):
                join(environment, rank)
                return world, rank
            running.append(pid)
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status:  # the others may wait for it
            for other in running:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)
    sys.exit(0)
