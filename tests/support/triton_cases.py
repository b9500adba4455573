"""What the tests of the Triton kernels share: the device they run on, examples, and what a backend makes of them."""

import os
from functools import partial
from types import SimpleNamespace

import torch

from rdrop_trainer.losses import chunked, rdrop_loss, triton
from support.formulas import make

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
if DEVICE == "cpu":
    from triton.runtime import interpreter

    # It prepares Triton's language anew for each call of a function, and puts it back: once will do in this process
    prepared, prepare = set(), interpreter._patch_lang

    def prepare_once(function):
        if (module := function.__module__) not in prepared:
            prepared.add(module)
            prepare(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = prepare_once
CLASSES = 77
by_triton = partial(rdrop_loss, implementation="triton")


def example(n, m=2, dtype=torch.float32, **options):
    logits, labels = make("single_label", n, CLASSES, m, dtype, **options)
    return logits.to(DEVICE).requires_grad_(), labels.to(DEVICE)


def computed(logits, labels, m=2, backend=triton, weights=(0.3, 0.7), **options):
    """Task loss, divergence and gradient of sums with these weights."""
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    scales = (torch.tensor(w, dtype=dtype, device=DEVICE) for w in weights)
    options = {"labels": labels, "num_passes": m, "num_items": 1, "num_divergence_items": 1.0, **options}
    if backend is chunked:
        options["dtype"] = dtype
    (_, task, divergence), gradient = backend.loss_and_grad(logits, *scales, True, **options)
    return task, divergence, gradient
