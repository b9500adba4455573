"""Compile the kernels for an H100 as their launchers would start them, on a machine that need not have one.

Prints a line for each: its name, how it was specialised and the target.
"""

import re
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget

from rdrop_trainer.losses import triton as kernels


class Hopper:
    """As much of a driver as compilation asks for."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def compile_only(run, *args, warmup, **options):
    kernel = run(*args, warmup=True, **options)
    target = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.M).group(1)
    print(kernel.metadata.name, {k: v for k, v in options.items() if k != "grid"}, len(kernel.asm["cubin"]), target)


triton.runtime.driver.set_active(Hopper())
for kernel in (kernels._rdrop_kernel, kernels._scale_kernel):
    kernel.run = partial(compile_only, kernel.run)
one = torch.ones(())
labels = torch.zeros(4, dtype=torch.long)
for dtype, m, classes, options in (
    (torch.bfloat16, 2, 151_936, {}),
    (torch.float32, 2, 151_936, {}),
    (torch.bfloat16, 2, 50_257, {"mask": labels == 0, "label_smoothing": 0.1}),
    (torch.float16, 3, 32_000, {}),
    (torch.float32, 1, 2, {}),
):
    kernels.loss_and_grad(
        (torch.empty(4 * m, classes, dtype=dtype),), one, one, True, labels=labels, num_passes=m, **options
    )
kernels.scale_(torch.empty(100, 70, dtype=torch.bfloat16), one)
