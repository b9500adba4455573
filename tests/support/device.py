"""The device that the tests train on: the CPU or, with RDROP_TEST_DEVICE=cuda, the GPU.

With RDROP_TEST_DEVICE=simulated the group `gpu` trains on a device in software; see simulated.py.

Some tests stay on the CPU whatever it says: trainings of several processes (gloo, DDP, FSDP, DeepSpeed), trainings that
are killed and resumed in processes of their own, the memory of a process, and what calls losses or the objective
without a trainer.
"""

import os

import torch

NAME = os.environ.get("RDROP_TEST_DEVICE", "cpu")
if NAME not in ("cpu", "cuda", "simulated"):
    raise ValueError(f"RDROP_TEST_DEVICE must be cpu, cuda or simulated, got {NAME!r}.")
if NAME == "cuda" and not torch.cuda.is_available():
    raise RuntimeError("RDROP_TEST_DEVICE=cuda, but torch sees no GPU here.")
if NAME == "simulated":
    from support import simulated

    simulated.start()
DEVICE = torch.device(simulated.NAME if NAME == "simulated" else NAME)
USE_CPU = NAME == "cpu"
if not USE_CPU:
    # Many tests compare runs bit for bit. Where an operation has no deterministic kernel, torch says so
    torch.use_deterministic_algorithms(True, warn_only=True)


def on_device(batch):
    """A batch where a trainer puts its model."""
    return {key: value.to(DEVICE) if torch.is_tensor(value) else value for key, value in batch.items()}
