"""Compile the kernels for some compute capabilities as their launchers would start them, on a machine without a GPU.

    python triton_compile_run.py 80 90

Prints a line for each: its name, how it was specialised, the target, and the bytes of local memory that a thread takes,
which is where registers spill to.
"""

import os
import re
import subprocess
import sys
import tempfile
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget

from rdrop_trainer.losses import triton as kernels


class Device:
    """As much of a driver as compilation asks for."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability  # Triton keeps what it compiled by this number

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


def local_memory(cubin):
    program = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))


def compile_only(run, *args, warmup, **options):
    kernel = run(*args, warmup=True, **options)
    target = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.M).group(1)
    options = {k: v for k, v in options.items() if k != "grid"}
    print(kernel.metadata.name, options, target, local_memory(kernel.asm["cubin"]))


for kernel in (
    kernels.count_kernel,
    kernels.few_kernel,
    kernels.rdrop_kernel,
    kernels.total_kernel,
    kernels.scale_kernel,
):
    kernel.run = partial(compile_only, kernel.run)
one = torch.ones(())
labels = torch.zeros(4, dtype=torch.long)
given = {"num_items": one, "num_divergence_items": 4}
for capability in map(int, sys.argv[1:]):
    triton.runtime.driver.set_active(Device(capability))
    for dtype, m, classes, parts, options in (
        (torch.bfloat16, 2, 151_936, 1, {}),
        (torch.bfloat16, 2, 151_936, 4, given),
        (torch.float32, 2, 151_936, 8, given),
        (torch.float32, 2, 32_000, 1, given),
        (torch.bfloat16, 2, 50_257, 1, {"mask": labels == 0, "label_smoothing": 0.1}),
        (torch.bfloat16, 3, 250_002, 8, {"mask": labels == 0, "label_smoothing": 0.1, **given}),
        (torch.float16, 3, 32_000, 1, given),
        (torch.float32, 1, 2, 1, given),
        (torch.bfloat16, 2, 9, 1, {"mask": labels == 0, "label_smoothing": 0.1}),
        (torch.float32, 2, 3, 1, given),
        (torch.float16, 3, 1000, 1, given),
    ):
        logits = (torch.empty(4 * m, classes, dtype=dtype),)
        kernels.split = lambda *_, parts=parts: (parts, 3)
        kernels.loss_and_grad(logits, 1.0, 0.5, True, labels=labels, num_passes=m, **options)
    kernels.scale_(torch.empty(100, 70, dtype=torch.bfloat16), one)
