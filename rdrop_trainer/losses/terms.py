"""What the kernels share: pointers to items, and what is made of the sums over an item's logits."""

from __future__ import annotations

import triton
import triton.language as tl

from .sweeps import LN2, base, in_base_2, origin, unit


@triton.jit
def rows_of(tensors, strides, item, size, M: tl.constexpr):
    """Pointers to an item in every pass: in one tensor of all passes, or in m tensors."""
    rows = ()
    for k in tl.static_range(M):
        if len(tensors) == M:
            rows += (tensors[k] + item * strides[k],)
        else:
            rows += (tensors[0] + (item + k * size) * strides[0],)
    return rows


@triton.jit
def _value(number):
    """A number in float32 that is given as such, or by a pointer to it."""
    number = tl.core.to_tensor(number)  # Triton 3.6, which torch 2.11 brings, has it there alone
    if number.dtype.is_ptr():
        number = tl.load(number)
    return number.to(tl.float32)


@triton.jit
def _one_over(count, counted):
    """1 / count, and 1 where nothing was counted. A count of None: what was counted here, or a pointer to it."""
    if count is None:
        count = counted
    number = _value(count)
    return 1 / tl.where(number > 0, number, 1.0)


@triton.jit
def count(labels, mask, size, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    """How many of the items that count have a label, and how many count, in float32."""
    labeled, items = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        counts = here < size
        if mask is not None:
            counts = counts & (tl.load(mask + here, mask=here < size, other=0) != 0)
        items += counts.to(tl.int32)
        labeled += (counts & (tl.load(labels + here, mask=here < size, other=IGNORED) != IGNORED)).to(tl.int32)
    return tl.sum(labeled, 0).to(tl.float32), tl.sum(items, 0).to(tl.float32)


@triton.jit
def terms_of(labeled, label_logits, sums, classes, M: tl.constexpr, SMOOTHING: tl.constexpr):
    """The task loss of an item, the mean over its passes, and its divergence; of one item, or of several."""
    top, total, spread, logit_sum, kept = sums
    task, divergence = tl.zeros_like(kept), tl.zeros_like(kept)
    for k in tl.static_range(M):
        log_total = tl.log2(total[k])
        term = log_total - in_base_2(label_logits[k], base(top[k]), origin(top[k]))
        if SMOOTHING > 0:
            term = (1 - SMOOTHING) * term + SMOOTHING * (kept * log_total - logit_sum[k]) / classes
        task += term * (LN2 / M)
        if M > 1:  # of one pass there is none, though its logits be NaN
            divergence += spread[k] / total[k]
    return tl.where(labeled, task, 0.0), divergence * LN2 * unit(M) / max(M - 1, 1)


@triton.jit
def store_results(task_sum, divergence_sum, numbers, counted, results):
    """Loss, task loss and divergence by the sums over items; a divergence scale of None: it is no part of the loss."""
    task_scale, divergence_scale, num_items, num_divergence_items = numbers
    loss, task_loss, divergence = results
    task_mean = task_sum * _one_over(num_items, counted[0])
    divergence_mean = divergence_sum * _one_over(num_divergence_items, counted[1])
    total = _value(task_scale) * task_mean
    if divergence_scale is not None:
        total += _value(divergence_scale) * divergence_mean
    tl.store(loss, total)
    tl.store(task_loss, task_mean)
    tl.store(divergence, divergence_mean)


@triton.jit
def factors(labeled, numbers, counted, M: tl.constexpr):
    """a and b, by which an item's loss and divergence are multiplied in the gradient."""
    task_scale, divergence_scale, num_items, num_divergence_items = numbers
    a = _value(task_scale) * _one_over(num_items, counted[0])
    b = _value(divergence_scale) * _one_over(num_divergence_items, counted[1]) * unit(M) / max(M - 1, 1)
    return tl.where(labeled, a / M, 0.0), b
