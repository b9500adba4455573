"""The two sweeps of a kernel over an item: its m rows of C logits, in blocks of columns.

The formulas are those of `chunked`. Powers of 2 are what devices compute: of logits z' = z log2(e), the first sweep
sums up for every pass k, over the columns so far, of which it keeps the largest z,

    M = max_v z',    S = sum_v 2^(z' - M),    T = sum_v 2^(z' - M) d,    d = (z' - z̄') - (M - M̄),

with means over passes. Where M rises to M', and M - M̄ by c, S becomes r S and T becomes r (T - c S), r = 2^(M - M').
T/S is s_k but for the M - M̄. That subtracts what all classes of a pass have in common, so that close passes keep
their digits. It cancels in d - s_k, and in the sum of the s_k. Label smoothing also needs L = sum_v (z' - M) and the
number of classes in that sum: those that are not -inf in all passes.

The second sweep writes a (p - y) + b [(p - p̄) + p (d - s)] with p = 2^(z' - M) / S. d, s and L are in units of log2(e),
by whose inverse b and the terms are multiplied.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950216293335)  # in float32: the interpreter, too, computes with this
LN2 = tl.constexpr(0.6931471805599453)
LARGE = tl.constexpr(2.0**29)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _exp2(x):
    """2^x, where results below 1e-38 are 0: to keep them would cost three more operations on every logit."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def base(top):
    """What logits are multiplied by: log2(e), or 1 where the largest is so large that the next is at least 32 below it.

    Then only those that equal it have a probability, by any base; and log2(e) times it would be rounded by so much that
    the logits less that would not be near 0.
    """
    return tl.where(tl.abs(top) < LARGE, LOG2E, 1.0)


@triton.jit
def origin(top):
    """What is subtracted from the logits in this base: the largest, or 0 where all are -inf."""
    return tl.where(top == -float("inf"), 0.0, top * base(top))


@triton.jit
def in_base_2(z, base, origin):
    """z base - origin, rounded once, so that large logits lose no digits."""
    if INTERPRETED:  # which knows no fused product
        return (z.to(tl.float64) * base - origin).to(tl.float32)
    else:
        return tl.fma(z, base, -origin)


@triton.jit
def _difference(x, y, MAY_BE_INFINITE: tl.constexpr):
    """x - y; of two that are -inf 0."""
    if MAY_BE_INFINITE:
        return tl.where(x == y, 0.0, x - y)
    else:
        return x - y


@triton.jit
def _deviations(x, M: tl.constexpr, MAY_BE_INFINITE: tl.constexpr):
    """Deviations of m tensors, one per pass, from their mean, over `unit(M)`; exactly 0 where all are equal."""
    if M == 2:
        difference = _difference(x[0], x[1], MAY_BE_INFINITE)
        return [difference, difference * -1.0]  # a sign costs nothing, where -difference is subtracted from 0
    from_first, mean = (tl.zeros_like(x[0]),), tl.zeros_like(x[0])
    for k in tl.static_range(1, M):
        difference = _difference(x[k], x[0], MAY_BE_INFINITE)
        from_first += (difference,)
        mean += difference * (1 / M)
    return [difference - mean for difference in from_first]


@triton.jit
def unit(M: tl.constexpr):
    """Of deviations: of two passes their difference does, without a product for every logit."""
    if M == 2:
        return 0.5
    else:
        return 1.0


@triton.jit
def load(rows, columns, classes, MASKED: tl.constexpr, POLICY: tl.constexpr):
    """Columns of every pass in float32; if masked, -inf beyond the last class, which adds nothing to any sum."""
    z = ()
    for k in tl.static_range(len(rows)):
        if MASKED:
            loaded = tl.load(rows[k] + columns, columns < classes, -float("inf"), eviction_policy=POLICY)
        else:
            loaded = tl.load(rows[k] + columns, eviction_policy=POLICY)
        z += (loaded.to(tl.float32),)
    return z


@triton.jit
def _unmasked(z, M: tl.constexpr):
    """Which classes are not -inf in all passes."""
    unmasked = z[0] != -float("inf")
    for k in tl.static_range(1, M):
        unmasked = unmasked | (z[k] != -float("inf"))
    return unmasked


@triton.jit
def _rescale(top, rise):
    """The factor of sums whose origin rises: of none, where all logits were -inf."""
    return tl.where(top == -float("inf"), 0.0, _exp2(-rise))


@triton.jit
def no_sums(LANES: tl.constexpr, M: tl.constexpr):
    """M, S, T and L of every pass for every lane, and the number of classes in L, before the first block."""
    kept = tl.zeros((LANES,), tl.float32)
    top, zeros = (), ()
    for _ in tl.static_range(M):
        top += (kept - float("inf"),)
        zeros += (kept,)
    return top, zeros, zeros, zeros, kept


@triton.jit
def add_block(sums, z, M: tl.constexpr, SMOOTHING: tl.constexpr):
    """Add a block of the logits of every pass, (rounds, lanes, width), to the sums of every lane."""
    top, total, spread, logit_sum, kept = sums
    new_top, rise, x = (), (), ()
    for k in tl.static_range(M):
        new_top += (tl.maximum(top[k], tl.max(tl.max(z[k], 2), 0)),)
        new_origin = origin(new_top[k])
        rise += (new_origin - origin(top[k]),)
        x += (in_base_2(z[k], base(new_top[k])[None, :, None], new_origin[None, :, None]),)
    deviation = _deviations(x, M, True)
    c = _deviations(rise, M, False)
    new_total, new_spread, new_logit_sum = (), (), ()
    for k in tl.static_range(M):
        e = _exp2(x[k])
        rescale = _rescale(top[k], rise[k])
        new_spread += ((spread[k] - c[k] * total[k]) * rescale + tl.sum(tl.sum(e * deviation[k], 2), 0),)
        new_total += (total[k] * rescale + tl.sum(tl.sum(e, 2), 0),)
        if SMOOTHING > 0:
            x_kept = tl.where(_unmasked(z, M), x[k], 0.0)
            new_logit_sum += (logit_sum[k] - rise[k] * kept + tl.sum(tl.sum(x_kept, 2), 0),)
    if SMOOTHING > 0:
        kept += tl.sum(tl.sum(_unmasked(z, M).to(tl.float32), 2), 0)
        logit_sum = new_logit_sum
    return new_top, new_total, new_spread, logit_sum, kept


@triton.jit
def joined(sums, M: tl.constexpr):
    """The sums of several lanes or parts, as of one."""
    tops, totals, spreads, logit_sums, kepts = sums
    top, rises = (), ()
    for k in tl.static_range(M):
        top += (tl.max(tops[k], 0),)
        rises += (origin(top[k]) - origin(tops[k]),)
    c = _deviations(rises, M, False)
    total, spread, logit_sum = (), (), ()
    for k in tl.static_range(M):
        rescale = _rescale(tops[k], rises[k])
        total += (tl.sum(totals[k] * rescale, 0),)
        spread += (tl.sum((spreads[k] - c[k] * totals[k]) * rescale, 0),)
        logit_sum += (tl.sum(logit_sums[k] - rises[k] * kepts, 0),)
    return top, total, spread, logit_sum, tl.sum(kepts, 0)


@triton.jit
def first_sweep(
    rows,
    first,
    last,
    classes,
    M: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """M, S, T and L of every pass over these blocks, and the number of classes in L.

    Every lane has sums of its own until the end. It is a thread where there are enough columns: threads need not wait
    for each other.
    """
    ROUNDS: tl.constexpr = BLOCK // (LANES * WIDTH)
    lanes = tl.arange(0, LANES)[None, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    columns = tl.arange(0, ROUNDS)[:, None, None] * (LANES * WIDTH) + lanes
    sums = no_sums(LANES, M)
    full = tl.minimum(last, classes // BLOCK)
    for block in tl.range(first, full, num_stages=3):
        z = load(rows, block * BLOCK + columns, classes, False, "evict_last")
        sums = add_block(sums, z, M, SMOOTHING)
    for block in tl.range(tl.maximum(first, full), last):
        z = load(rows, block * BLOCK + columns, classes, True, "evict_last")
        sums = add_block(sums, z, M, SMOOTHING)
    return joined(sums, M)


@triton.jit
def gradient_of(z, sums, a, b, classes, M: tl.constexpr, SMOOTHING: tl.constexpr):
    """The gradient for logits, without what the label's alone has: its share of a y."""
    top, total, spread, _, kept = sums
    own = a
    if SMOOTHING > 0:
        own = a * (1 - SMOOTHING + SMOOTHING * kept / classes)
    x, p = (), ()
    for k in tl.static_range(M):
        x += (in_base_2(z[k], base(top[k]), origin(top[k])),)
        p += (_exp2(x[k] - tl.log2(total[k])),)
    deviation = _deviations(x, M, True)
    p_deviation = _deviations(p, M, False)
    weighted = b * p_deviation[0]
    gradient = ()
    for k in tl.static_range(M):
        if k > 0:  # of two passes the same, but for the sign
            weighted = weighted * -1.0 if M == 2 else b * p_deviation[k]
        weight = own - b * LN2 * (spread[k] / total[k]) + b * LN2 * deviation[k]
        value = tl.fma(p[k], weight, weighted)
        if SMOOTHING > 0:
            value -= tl.where(_unmasked(z, M), a * SMOOTHING / classes, 0.0)
        gradient += (value,)
    return gradient


@triton.jit
def second_sweep(
    rows,
    grad_rows,
    first,
    last,
    classes,
    label,
    label_logits,
    a,
    b,
    sums,
    M: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of these blocks, from the last to the first: what was read last is still in the cache."""
    full = tl.minimum(last, classes // BLOCK)
    for block in tl.range(tl.maximum(first, full), last):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        gradient = gradient_of(load(rows, columns, classes, True, "evict_first"), sums, a, b, classes, M, SMOOTHING)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, gradient[k], mask=columns < classes, eviction_policy="evict_first")
    for i in tl.range(first, full):
        columns = (first + full - 1 - i) * BLOCK + tl.arange(0, BLOCK)
        gradient = gradient_of(load(rows, columns, classes, False, "evict_first"), sums, a, b, classes, M, SMOOTHING)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, gradient[k], eviction_policy="evict_first")
    if (label >= first * BLOCK) & (label < tl.minimum(last * BLOCK, classes)):  # else every column would be compared
        gradient = gradient_of(label_logits, sums, a, b, classes, M, SMOOTHING)
        tl.debug_barrier()
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + label, gradient[k] - a * (1 - SMOOTHING))


@triton.jit
def find_label_logits(rows, label, first, last, classes, BLOCK: tl.constexpr):
    """The label's logit in every pass: 0 where it is in none of these blocks, NaN where the label is no class."""
    inside = (label >= 0) & (label < classes)
    here = inside & (label >= first * BLOCK) & (label < last * BLOCK)
    other = tl.where(inside, 0.0, float("nan"))
    return [tl.load(row + label, mask=here, other=other).to(tl.float32) for row in rows]
