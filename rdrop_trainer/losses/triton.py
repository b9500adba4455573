"""The fused backend for CUDA devices: one kernel computes both sums and the gradient of every pass.

The formulas are those of `chunked`. A program computes one item: its m rows of C logits, in blocks of columns, in two
sweeps.

The first sweep keeps for every pass k, over the columns so far,

    M = max_v z,    S = sum_v exp(z - M),    T = sum_v exp(z - M) d,    d = (z - z̄) - (M - M̄),

with means over passes. Where M rises to M', and M - M̄ by c, S becomes r S and T becomes r (T - c S), r = exp(M - M').
T/S is s_k but for the M - M̄. That subtracts what all classes of a pass have in common, so that close passes keep
their digits. It cancels in d - s_k, and in the sum of the s_k. Label smoothing also needs L = sum_v (z - M) and the
number of classes in that sum: those that are not -inf in all passes.

The second sweep writes a (p - y) + b [(p - p̄) + p (d - s)] with p = exp(z - M) / S. It goes from the last block to the
first: of a row too large for the L2 cache, the blocks read last are still in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .chunked import split_passes
from .reference import IGNORE_INDEX

# Size of a block of all passes, and the warps that work on it: enough loads in flight to keep the memory busy. While a
# block is computed, two more are loading into shared memory, of which the smallest devices have 99 KiB.
BLOCK_BYTES = 2**15
WARPS = 16
SCALE_BLOCK = 2**12
SCALE_PROGRAMS = 2**10


@triton.jit
def _deviations(x, M: tl.constexpr):
    """Deviations of m tensors, one per pass, from their mean; exactly 0 where all are equal, -inf included."""
    from_first, mean = (tl.zeros_like(x[0]),), tl.zeros_like(x[0])
    for k in tl.static_range(1, M):
        difference = tl.where(x[k] == x[0], 0.0, x[k] - x[0])
        from_first += (difference,)
        mean += difference * (1 / M)
    return [difference - mean for difference in from_first]


@triton.jit
def _load(rows, columns, classes, POLICY: tl.constexpr):
    """A block of every pass in float32; -inf beyond the last class, which adds nothing to any sum."""
    return [
        tl.load(row + columns, mask=columns < classes, other=-float("inf"), eviction_policy=POLICY).to(tl.float32)
        for row in rows
    ]


@triton.jit
def _unmasked(z, M: tl.constexpr):
    """Which classes are not -inf in all passes."""
    unmasked = z[0] != -float("inf")
    for k in tl.static_range(1, M):
        unmasked = unmasked | (z[k] != -float("inf"))
    return unmasked


@triton.jit
def _rdrop_kernel(
    logits,  # a pointer for every pass, to its first item; the same for the gradient, or None
    logits_strides,
    grad,
    grad_strides,
    labels,
    mask,  # a pointer or None
    task_weight,
    divergence_weight,
    tasks,  # the terms of every item
    divergences,
    classes,
    M: tl.constexpr,
    SMOOTHING: tl.constexpr,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)  # its product with a stride may exceed 32 bits
    blocks = tl.cdiv(classes, BLOCK)
    rows, grad_rows = (), ()
    for k in tl.static_range(M):
        rows += (logits[k] + item * logits_strides[k],)
        if grad is not None:
            grad_rows += (grad[k] + item * grad_strides[k],)

    if mask is not None:
        if not tl.load(mask + item):
            tl.store(tasks + item, 0.0)
            tl.store(divergences + item, 0.0)
            if grad is not None:
                for block in tl.range(blocks):
                    columns = block * BLOCK + tl.arange(0, BLOCK)
                    for k in tl.static_range(M):
                        tl.store(grad_rows[k] + columns, 0.0, mask=columns < classes)
            return

    zero = tl.zeros((), tl.float32)
    top = [zero - float("inf") for _ in rows]  # M
    origin = [zero for _ in rows]  # M, or 0 while M is -inf
    total = [zero for _ in rows]  # S
    spread = [zero for _ in rows]  # T
    logit_sum = [zero for _ in rows]  # L
    kept = zero
    for block in tl.range(blocks, num_stages=3):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        z = _load(rows, columns, classes, "evict_last")
        new_top, new_origin, rise, x = (), (), (), ()
        for k in tl.static_range(M):
            highest = tl.maximum(top[k], tl.max(z[k], 0))
            new_top += (highest,)
            new_origin += (tl.where(highest == -float("inf"), 0.0, highest),)
            rise += (new_origin[k] - origin[k],)
            x += (z[k] - new_origin[k],)
        deviation = _deviations(x, M)
        c = _deviations(rise, M)
        new_total, new_spread, new_logit_sum = (), (), ()
        for k in tl.static_range(M):
            e = tl.exp(x[k])
            rescale = tl.exp(top[k] - new_origin[k])
            new_spread += ((spread[k] - c[k] * total[k]) * rescale + tl.sum(e * deviation[k], 0),)
            new_total += (total[k] * rescale + tl.sum(e, 0),)
            if SMOOTHING > 0:
                new_logit_sum += (logit_sum[k] - rise[k] * kept + tl.sum(tl.where(_unmasked(z, M), x[k], 0.0), 0),)
        top, origin, total, spread = new_top, new_origin, new_total, new_spread
        if SMOOTHING > 0:
            logit_sum = new_logit_sum
            kept += tl.sum(_unmasked(z, M).to(tl.float32), 0)

    label = tl.load(labels + item)
    labeled = label != IGNORED
    inside = (label >= 0) & (label < classes)
    task, divergence = zero, zero
    for k in tl.static_range(M):
        # A label that is no class makes the loss NaN
        label_logit = tl.load(rows[k] + label, mask=inside, other=float("nan")).to(tl.float32)
        log_total = tl.log(total[k])
        term = log_total - (label_logit - origin[k])
        if SMOOTHING > 0:
            term = (1 - SMOOTHING) * term + SMOOTHING * (kept * log_total - logit_sum[k]) / classes
        task += term / M
        divergence += spread[k] / total[k]
    tl.store(tasks + item, tl.where(labeled, task, 0.0))
    tl.store(divergences + item, divergence / max(M - 1, 1))

    if grad is not None:
        a = tl.where(labeled, tl.load(task_weight) / M, 0.0)
        b = tl.load(divergence_weight) / max(M - 1, 1)
        own = a
        if SMOOTHING > 0:
            own = a * (1 - SMOOTHING + SMOOTHING * kept / classes)
        for i in tl.range(blocks):
            columns = (blocks - 1 - i) * BLOCK + tl.arange(0, BLOCK)
            z = _load(rows, columns, classes, "evict_first")
            x, p = (), ()
            for k in tl.static_range(M):
                x += (z[k] - origin[k],)
                p += (tl.exp(x[k]) * (1 / total[k]),)
            deviation = _deviations(x, M)
            p_deviation = _deviations(p, M)
            target = tl.where(columns == label, a * (1 - SMOOTHING), 0.0)
            if SMOOTHING > 0:
                target += tl.where(_unmasked(z, M), a * SMOOTHING / classes, 0.0)
            for k in tl.static_range(M):
                weight = own + b * (deviation[k] - spread[k] / total[k])
                value = p[k] * weight + (b * p_deviation[k] - target)
                tl.store(grad_rows[k] + columns, value, mask=columns < classes, eviction_policy="evict_first")


@triton.jit
def _scale_kernel(tensor, factor, size, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1:
        for start in tl.range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
            here = start + tl.arange(0, BLOCK)
            value = tl.load(tensor + here, mask=here < size).to(by.dtype)
            tl.store(tensor + here, value * by, mask=here < size)


def loss_and_grad(
    logits: Sequence[torch.Tensor],
    task_weight: torch.Tensor,
    divergence_weight: torch.Tensor,
    with_grad: bool,
    *,
    labels: torch.Tensor,
    num_passes: int,
    mask: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor] | None]:
    """`chunked.loss_and_grad` in float32, without ever waiting for the device.

    The differences: `logits` are float32, bfloat16 or float16, and their rows may lie apart. `labels` are int64, and
    one that is neither a class nor -100 makes the loss NaN. `overwrite` also takes a mask and a tensor per pass, but
    only tensors in which the classes of a row lie side by side.
    """
    m, classes = num_passes, logits[0].shape[1]
    logits = [z if z.stride(1) == 1 else z.contiguous() for z in logits]
    grad = None
    if with_grad:
        grad = logits if overwrite else [torch.empty(z.shape, dtype=z.dtype, device=z.device) for z in logits]

    z, g = (None if tensors is None else tuple(split_passes(tensors, m)) for tensors in (logits, grad))
    columns = BLOCK_BYTES // (logits[0].element_size() * triton.next_power_of_2(m))
    block = min(triton.next_power_of_2(classes), columns)
    terms = torch.empty((2, len(labels)), dtype=torch.float32, device=labels.device)
    with torch.cuda.device_of(labels):
        _rdrop_kernel[(len(labels),)](
            z,
            tuple(z_k.stride(0) for z_k in z),
            g,
            None if g is None else tuple(g_k.stride(0) for g_k in g),
            labels.contiguous(),
            mask if mask is None else mask.contiguous(),
            task_weight,
            divergence_weight,
            *terms,
            classes,
            M=m,
            SMOOTHING=label_smoothing,
            IGNORED=IGNORE_INDEX,
            BLOCK=block,
            num_warps=max(1, WARPS * block // columns),
        )
    return *terms.sum(1), grad


def scale_(tensor: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a contiguous tensor in place by a scalar on its device, which does nothing where the scalar is 1."""
    programs = min(triton.cdiv(tensor.numel(), SCALE_BLOCK), SCALE_PROGRAMS)
    with torch.cuda.device_of(tensor):
        _scale_kernel[(programs,)](tensor.view(-1), factor, tensor.numel(), BLOCK=SCALE_BLOCK)
