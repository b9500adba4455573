"""The fused backend for CUDA devices, which launches `kernels`: one computes the terms and gradients of all items."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch

from .fused import Number, Terms
from .kernels import count_kernel, few_kernel, rdrop_kernel, scale_kernel, total_kernel
from .reference import IGNORE_INDEX

# Size of a block of all passes, and the warps that work on it: enough loads in flight to keep the memory busy. While a
# block is computed, two more are loading into shared memory, of which the smallest devices have 99 KiB.
BLOCK_BYTES = 2**15
WARPS, WARP = 16, 32  # WARP: threads of one
LOAD_BYTES = 16  # that a thread loads at once
FEW_LOGITS, FEW_AT_A_TIME = 2**15, 2**12  # up to so many, one program computes all items, so many logits at a time
FEW_PASSES = 4  # with more, that program takes many seconds to compile
PROGRAMS_AT_A_TIME = 2  # of the kernel, on a multiprocessor: at most that many have their blocks in shared memory
ITEM_BLOCK = 2**11
SCALE_BLOCK = 2**12
SCALE_PROGRAMS = 2**10
OPTIONS = {"enable_fp_fusion": True}  # of every launch. Triton 3.9 warns where nothing is said, as 3.10 will not fuse


def loss_and_grad(
    logits: Sequence[torch.Tensor],
    task_scale: Number,
    divergence_scale: Number | None,
    with_grad: bool,
    *,
    labels: torch.Tensor,
    num_passes: int,
    num_items: Number | None = None,
    num_divergence_items: Number | None = None,
    mask: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> tuple[Terms, Sequence[torch.Tensor] | None]:
    """`chunked.loss_and_grad` in float32, in a few launches, without ever waiting for the device.

    The differences: `logits` are float32, bfloat16 or float16, and their rows may lie apart. `labels` are int64, and
    one that is neither a class nor -100 makes the loss NaN. A count that is None is counted here: the labeled items,
    and all items, of those in `mask`. `overwrite` also takes a mask and a tensor per pass, but only tensors in which
    the classes of a row lie side by side.
    """
    m, size, classes = num_passes, len(labels), logits[0].shape[1]
    logits = tuple(z if z.stride(1) == 1 else z.contiguous() for z in logits)
    grad = None
    if with_grad:
        grad = logits if overwrite else tuple(torch.empty(z.shape, dtype=z.dtype, device=z.device) for z in logits)
    labels, mask = labels.contiguous(), None if mask is None else mask.contiguous()
    new = partial(torch.empty, (), dtype=torch.float32, device=labels.device)
    results = (new(), new(), new())
    strides = tuple(z.stride(0) for z in logits)
    grad_strides = None if grad is None else tuple(g.stride(0) for g in grad)
    numbers = (task_scale, divergence_scale, num_items, num_divergence_items)
    numbers = tuple(None if n is None else _argument(n, labels.device) for n in numbers)
    given = (logits, strides, grad, grad_strides, labels, mask, numbers)
    shared = {"M": m, "SMOOTHING": label_smoothing, "IGNORED": IGNORE_INDEX, **OPTIONS}
    passes, width = _power_of_2(m), _power_of_2(classes)
    with torch.cuda.device_of(labels):
        if m <= FEW_PASSES and passes * width <= FEW_AT_A_TIME and m * width * size <= FEW_LOGITS:
            items = FEW_AT_A_TIME // (passes * width)
            few_kernel[(1,)](
                *given, results, size, classes, ITEMS=items, WIDTH=width, BLOCK=ITEM_BLOCK, num_warps=WARPS, **shared
            )
        else:
            _several_launches(given, results, shared)
    return results, grad


def _several_launches(given: tuple[Any, ...], results: Sequence[torch.Tensor], shared: dict[str, Any]) -> None:
    """Many logits: the counts, then a program or more for each item, then the sums over items."""
    logits, _, grad, _, labels, mask, numbers = given
    m, size, classes = shared["M"], len(labels), logits[0].shape[1]
    aligned = all(map(_is_aligned, logits))  # otherwise every logit takes a load, and registers, of its own
    columns = (BLOCK_BYTES if aligned else BLOCK_BYTES // 2) // (logits[0].element_size() * _power_of_2(m))
    block = min(_power_of_2(classes), columns)
    warps = max(1, WARPS * block // columns)
    width = min(LOAD_BYTES // logits[0].element_size(), block) if aligned else 1
    parts, lag, part_sums, progress = 1, 0, None, None
    if grad is not None:
        parts, lag = split(labels.device, size, m * classes * logits[0].element_size(), _ceil(classes, block))
    terms = torch.empty(2 + 2 * size, dtype=torch.float32, device=labels.device)
    if parts > 1:
        part_sums = torch.empty(size * (5 * m + 1) * parts, dtype=torch.float32, device=labels.device)
        progress = torch.zeros(1 + size, dtype=torch.int32, device=labels.device)
    if any(count is None for count in numbers[2:]):
        count_kernel[(1,)](labels, mask, terms, size, IGNORED=IGNORE_INDEX, BLOCK=ITEM_BLOCK, **OPTIONS)
    rdrop_kernel[(size if parts == 1 else (size + lag) * 2 * parts,)](
        *given,
        terms,
        part_sums,
        progress,
        size,
        classes,
        lag,
        BLOCK=block,
        LANES=min(WARP * warps, block // width),
        WIDTH=width,
        PARTS=parts,
        num_warps=warps,
        **shared,
    )
    total_kernel[(1,)](terms, numbers, results, size, BLOCK=ITEM_BLOCK, **OPTIONS)


def _argument(number: Number, device: torch.device) -> float | torch.Tensor:
    """A number as the kernels take it, without waiting for a device."""
    if isinstance(number, torch.Tensor) and (number.is_cuda or number.device == device):
        return number.to(device)
    return float(number)


def _is_aligned(logits: torch.Tensor) -> bool:
    """Whether a thread can load several logits at once, as Triton sees it."""
    return logits.data_ptr() % 16 == 0 and logits.stride(0) % 16 == 0


def split(device: torch.device, size: int, item_bytes: int, blocks: int) -> tuple[int, int]:
    """In how many parts an item is computed, a power of two, and by how many items the second sweep is behind.

    Logits are read twice. The second time they are in the L2 cache, if it holds all the items that are begun, of which
    there are as many as programs that run at a time, over the parts. The second sweep is behind by as many tasks as run
    at a time, so that it finds the first sweep ended.
    """
    if device.type != "cuda":  # the interpreter
        return 1, 0
    programs, cache_bytes = _capacity(device)
    parts = _power_of_2(max(1, _ceil(min(programs, size) * item_bytes, cache_bytes)))
    parts = min(parts, 1 << blocks.bit_length() - 1)
    return parts, 1 + programs // (2 * parts)


def _ceil(size: int, of: int) -> int:
    """size / of, rounded up. Triton's own functions take longer, as they are for kernels too."""
    return -(-size // of)


def _power_of_2(number: int) -> int:
    """The least that is not less than a positive number."""
    return 1 << (number - 1).bit_length()


@cache
def _capacity(device: torch.device) -> tuple[int, int]:
    """How many programs run at a time, and the bytes of the L2 cache."""
    properties = torch.cuda.get_device_properties(device)
    return PROGRAMS_AT_A_TIME * properties.multi_processor_count, properties.L2_cache_size


def scale_(tensor: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a contiguous tensor in place by a scalar on its device, which does nothing where the scalar is 1."""
    programs = min(_ceil(tensor.numel(), SCALE_BLOCK), SCALE_PROGRAMS)
    with torch.cuda.device_of(tensor):
        scale_kernel[(programs,)](tensor, factor, tensor.numel(), BLOCK=SCALE_BLOCK, **OPTIONS)
