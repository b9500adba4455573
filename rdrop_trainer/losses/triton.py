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

import os
from collections.abc import Sequence
from functools import partial

import torch
import triton
import triton.language as tl

from .fused import Number, Terms
from .reference import IGNORE_INDEX

# Size of a block of all passes, and the warps that work on it: enough loads in flight to keep the memory busy. While a
# block is computed, two more are loading into shared memory, of which the smallest devices have 99 KiB.
BLOCK_BYTES = 2**15
WARPS = 16
ITEM_BLOCK = 2**11
SCALE_BLOCK = 2**12
SCALE_PROGRAMS = 2**10


LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _exp2(x):
    """2^x, where results below 1e-38 are 0: to keep them would cost three more operations on every logit."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _deviations(x, M: tl.constexpr):
    """Deviations of m tensors, one per pass, from their mean; exactly 0 where all are equal, -inf included."""
    if M == 2:  # in fewer operations
        half = tl.where(x[1] == x[0], 0.0, x[0] - x[1]) * 0.5
        return [half, -half]
    from_first, mean = (tl.zeros_like(x[0]),), tl.zeros_like(x[0])
    for k in tl.static_range(1, M):
        difference = tl.where(x[k] == x[0], 0.0, x[k] - x[0])
        from_first += (difference,)
        mean += difference * (1 / M)
    return [difference - mean for difference in from_first]


@triton.jit
def _rows(tensors, strides, item, size, M: tl.constexpr):
    """Pointers to an item in every pass: in one tensor of all passes, or in m tensors."""
    rows = ()
    for k in tl.static_range(M):
        if len(tensors) == M:
            rows += (tensors[k] + item * strides[k],)
        else:
            rows += (tensors[0] + (item + k * size) * strides[0],)
    return rows


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
def _value(number):
    """A number in float32 that is given as such, or by a pointer to it."""
    number = tl.core.to_tensor(number)  # Triton 3.6, which torch 2.11 brings, has it there alone
    if number.dtype.is_ptr():
        number = tl.load(number)
    return number.to(tl.float32)


@triton.jit
def _one_over(count, counted):
    """1 / count, and 1 where nothing was counted. A count of None was made by `_count_kernel`."""
    if count is None:
        count = counted
    number = _value(count)
    return 1 / tl.where(number > 0, number, 1.0)


@triton.jit(do_not_specialize=["size"])  # which changes from batch to batch
def _count_kernel(labels, mask, counted, size, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    """Of the items that count, those that have a label, and all."""
    labeled, items = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        counts = here < size
        if mask is not None:
            counts = counts & (tl.load(mask + here, mask=here < size, other=0) != 0)
        items += counts.to(tl.int32)
        labeled += (counts & (tl.load(labels + here, mask=here < size, other=IGNORED) != IGNORED)).to(tl.int32)
    tl.store(counted, tl.sum(labeled, 0).to(tl.float32))
    tl.store(counted + 1, tl.sum(items, 0).to(tl.float32))


@triton.jit(do_not_specialize=["size"])
def _rdrop_kernel(
    logits,  # pointers to all passes, or to each; the same for the gradient, or None
    logits_strides,
    grad,
    grad_strides,
    labels,
    mask,  # a pointer or None
    task_scale,  # these four: a number, or a pointer to one; a count may be None
    divergence_scale,
    num_items,
    num_divergence_items,
    terms,  # two counts, the task losses of all items, their divergences
    size,
    classes,
    M: tl.constexpr,
    SMOOTHING: tl.constexpr,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)  # its product with a stride may exceed 32 bits
    task_term, divergence_term = terms + 2 + item, terms + 2 + size + item
    blocks = tl.cdiv(classes, BLOCK)
    rows = _rows(logits, logits_strides, item, size, M)
    grad_rows = rows
    if grad is not None:
        grad_rows = _rows(grad, grad_strides, item, size, M)

    if mask is not None:
        if not tl.load(mask + item):
            tl.store(task_term, 0.0)
            tl.store(divergence_term, 0.0)
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
            e = _exp2(x[k] * LOG2E)
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
    tl.store(task_term, tl.where(labeled, task, 0.0))
    tl.store(divergence_term, divergence / max(M - 1, 1))

    if grad is not None:
        a = _value(task_scale) * _one_over(num_items, terms)
        a = tl.where(labeled, a / M, 0.0)
        b = _value(divergence_scale) * _one_over(num_divergence_items, terms + 1) / max(M - 1, 1)
        own = a
        if SMOOTHING > 0:
            own = a * (1 - SMOOTHING + SMOOTHING * kept / classes)
        log2_total, without_deviation = (), ()
        for k in tl.static_range(M):
            log2_total += (tl.log2(total[k]),)
            without_deviation += (own - b * (spread[k] / total[k]),)
        for i in tl.range(blocks):
            columns = (blocks - 1 - i) * BLOCK + tl.arange(0, BLOCK)
            z = _load(rows, columns, classes, "evict_first")
            x, p = (), ()
            for k in tl.static_range(M):
                x += (z[k] - origin[k],)
                p += (_exp2(x[k] * LOG2E - log2_total[k]),)
            deviation = _deviations(x, M)
            p_deviation = _deviations(p, M)
            target = tl.where(columns == label, a * (1 - SMOOTHING), 0.0)
            if SMOOTHING > 0:
                target += tl.where(_unmasked(z, M), a * SMOOTHING / classes, 0.0)
            for k in tl.static_range(M):
                weight = without_deviation[k] + b * deviation[k]
                value = p[k] * weight + (b * p_deviation[k] - target)
                tl.store(grad_rows[k] + columns, value, mask=columns < classes, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["size"])
def _total_kernel(
    terms,  # these five as in `_rdrop_kernel`, but a scale of None: the divergence is no part of the loss
    task_scale,
    divergence_scale,
    num_items,
    num_divergence_items,
    loss,  # the three results
    task_loss,
    divergence,
    size,
    BLOCK: tl.constexpr,
):
    """The sums over items, in one program and so always in one order."""
    task_sum, divergence_sum = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        task_sum += tl.load(terms + 2 + here, mask=here < size, other=0.0)
        divergence_sum += tl.load(terms + 2 + size + here, mask=here < size, other=0.0)
    task_mean = tl.sum(task_sum, 0) * _one_over(num_items, terms)
    divergence_mean = tl.sum(divergence_sum, 0) * _one_over(num_divergence_items, terms + 1)
    total = _value(task_scale) * task_mean
    if divergence_scale is not None:
        total += _value(divergence_scale) * divergence_mean
    tl.store(loss, total)
    tl.store(task_loss, task_mean)
    tl.store(divergence, divergence_mean)


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
    new = partial(torch.empty, dtype=torch.float32, device=labels.device)
    terms, results = new(2 + 2 * size), (new(()), new(()), new(()))
    numbers = tuple(
        n if n is None or (isinstance(n, torch.Tensor) and n.device == labels.device) else float(n)
        for n in (task_scale, divergence_scale, num_items, num_divergence_items)
    )

    columns = BLOCK_BYTES // (logits[0].element_size() * triton.next_power_of_2(m))
    block = min(triton.next_power_of_2(classes), columns)
    with torch.cuda.device_of(labels):
        if num_items is None or num_divergence_items is None:
            _count_kernel[(1,)](labels, mask, terms, size, IGNORED=IGNORE_INDEX, BLOCK=ITEM_BLOCK)
        _rdrop_kernel[(size,)](
            logits,
            tuple(z.stride(0) for z in logits),
            grad,
            None if grad is None else tuple(g.stride(0) for g in grad),
            labels,
            mask,
            *numbers,
            terms,
            size,
            classes,
            M=m,
            SMOOTHING=label_smoothing,
            IGNORED=IGNORE_INDEX,
            BLOCK=block,
            num_warps=max(1, WARPS * block // columns),
        )
        _total_kernel[(1,)](terms, *numbers, *results, size, BLOCK=ITEM_BLOCK)
    return results, grad


def scale_(tensor: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a contiguous tensor in place by a scalar on its device, which does nothing where the scalar is 1."""
    programs = min(triton.cdiv(tensor.numel(), SCALE_BLOCK), SCALE_PROGRAMS)
    with torch.cuda.device_of(tensor):
        _scale_kernel[(programs,)](tensor, factor, tensor.numel(), BLOCK=SCALE_BLOCK)
