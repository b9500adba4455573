"""The kernels of the `triton` backend, which launches them. The formulas are those of `chunked`.

An item is its m rows of C logits, which are read in blocks of columns, in two sweeps. Of logits z' = z log2(e), powers
of 2 of which are exponentials, the first sweep keeps for every pass k, over the columns so far,

    M = max_v z',    S = sum_v 2^(z' - M),    T = sum_v 2^(z' - M) d,    d = (z' - z̄') - (M - M̄),

with means over passes. Where M rises to M', and M - M̄ by c, S becomes r S and T becomes r (T - c S), r = 2^(M - M').
T/S is s_k but for the M - M̄. That subtracts what all classes of a pass have in common, so that close passes keep
their digits. It cancels in d - s_k, and in the sum of the s_k. Label smoothing also needs L = sum_v (z' - M) and the
number of classes in that sum: those that are not -inf in all passes.

The second sweep writes a (p - y) + b [(p - p̄) + p (d - s)] with p = 2^(z' - M) / S. d, s and L are in units of log2(e),
by whose inverse b and the terms are multiplied.

`rdrop_kernel` does both sweeps of an item in one program. `split_rdrop_kernel` is for rows of which the L2 cache cannot
hold as many as there are programs running: several programs share an item, so that fewer items are begun at a time, and
the second sweep finds them in the cache.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950216293335)  # in float32: the interpreter, too, computes with this
LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _exp2(x):
    """2^x, where results below 1e-38 are 0: to keep them would cost three more operations on every logit."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _in_base_2(z, origin):
    """z log2(e) - origin, rounded once, so that large logits lose no digits."""
    if INTERPRETED:  # which knows no fused product
        return (z.to(tl.float64) * LOG2E - origin).to(tl.float32)
    else:
        return tl.fma(z, LOG2E, -origin)


@triton.jit
def _difference(x, y, MAY_BE_INFINITE: tl.constexpr):
    """x - y; of two that are -inf 0."""
    if MAY_BE_INFINITE:
        return tl.where(x == y, 0.0, x - y)
    else:
        return x - y


@triton.jit
def _deviations(x, M: tl.constexpr, MAY_BE_INFINITE: tl.constexpr):
    """Deviations of m tensors, one per pass, from their mean, over `_unit(M)`; exactly 0 where all are equal."""
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
def _unit(M: tl.constexpr):
    """Of deviations: of two passes their difference does, without a product for every logit."""
    if M == 2:
        return 0.5
    else:
        return 1.0


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
def _load(rows, columns, classes, MASKED: tl.constexpr, POLICY: tl.constexpr):
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
def _origin(top):
    """What is subtracted from the logits in base 2: their maximum, or 0 where all are -inf."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def _value(number):
    """A number in float32 that is given as such, or by a pointer to it."""
    number = tl.to_tensor(number)
    if number.dtype.is_ptr():
        number = tl.load(number)
    return number.to(tl.float32)


@triton.jit
def _one_over(count, counted):
    """1 / count, and 1 where nothing was counted. A count of None was made by `count_kernel`."""
    if count is None:
        count = counted
    number = _value(count)
    return 1 / tl.where(number > 0, number, 1.0)


@triton.jit(do_not_specialize=["size"])  # which changes from batch to batch
def count_kernel(labels, mask, counted, size, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
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


@triton.jit
def _add_block(sums, rows, columns, classes, MASKED: tl.constexpr, M: tl.constexpr, SMOOTHING: tl.constexpr):
    """Add a block of columns, (rounds, lanes, width), to the sums of every lane."""
    top, total, spread, logit_sum, kept = sums
    z = _load(rows, columns, classes, MASKED, "evict_last")
    new_top, rise, x = (), (), ()
    for k in tl.static_range(M):
        new_top += (tl.maximum(top[k], tl.max(tl.max(z[k], 2), 0) * LOG2E),)
        origin = _origin(new_top[k])
        rise += (origin - _origin(top[k]),)
        x += (_in_base_2(z[k], origin[None, :, None]),)
    deviation = _deviations(x, M, True)
    c = _deviations(rise, M, False)
    new_total, new_spread, new_logit_sum = (), (), ()
    for k in tl.static_range(M):
        e = _exp2(x[k])
        rescale = _exp2(top[k] - _origin(new_top[k]))
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
def _joined(sums, M: tl.constexpr):
    """The sums of several lanes or parts, as of one."""
    tops, totals, spreads, logit_sums, kepts = sums
    top, rises = (), ()
    for k in tl.static_range(M):
        top += (tl.max(tops[k], 0),)
        rises += (_origin(top[k]) - _origin(tops[k]),)
    c = _deviations(rises, M, False)
    total, spread, logit_sum = (), (), ()
    for k in tl.static_range(M):
        rescale = _exp2(tops[k] - _origin(top[k]))
        total += (tl.sum(totals[k] * rescale, 0),)
        spread += (tl.sum((spreads[k] - c[k] * totals[k]) * rescale, 0),)
        logit_sum += (tl.sum(logit_sums[k] - rises[k] * kepts, 0),)
    return top, total, spread, logit_sum, tl.sum(kepts, 0)


@triton.jit
def _first_sweep(
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
    kept = tl.zeros((LANES,), tl.float32)
    top, zeros = (), ()
    for _ in tl.static_range(M):
        top += (kept - float("inf"),)
        zeros += (kept,)
    sums = (top, zeros, zeros, zeros, kept)
    full = tl.minimum(last, classes // BLOCK)
    for block in tl.range(first, full, num_stages=3):
        sums = _add_block(sums, rows, block * BLOCK + columns, classes, False, M, SMOOTHING)
    for block in tl.range(tl.maximum(first, full), last):
        sums = _add_block(sums, rows, block * BLOCK + columns, classes, True, M, SMOOTHING)
    return _joined(sums, M)


@triton.jit
def _store_terms(
    task_term, divergence_term, labeled, label_logits, sums, classes, M: tl.constexpr, SMOOTHING: tl.constexpr
):
    """The task loss of an item, the mean over its passes, and its divergence."""
    top, total, spread, logit_sum, kept = sums
    task, divergence = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for k in tl.static_range(M):
        log_total = tl.log2(total[k])
        term = log_total - _in_base_2(label_logits[k], _origin(top[k]))
        if SMOOTHING > 0:
            term = (1 - SMOOTHING) * term + SMOOTHING * (kept * log_total - logit_sum[k]) / classes
        task += term * (LN2 / M)
        divergence += spread[k] / total[k]
    tl.store(task_term, tl.where(labeled, task, 0.0))
    tl.store(divergence_term, divergence * LN2 * _unit(M) / max(M - 1, 1))


@triton.jit
def _gradient(z, sums, a, b, classes, M: tl.constexpr, SMOOTHING: tl.constexpr):
    """The gradient for logits, without what the label's alone has: its share of a y."""
    top, total, spread, _, kept = sums
    own = a
    if SMOOTHING > 0:
        own = a * (1 - SMOOTHING + SMOOTHING * kept / classes)
    x, p = (), ()
    for k in tl.static_range(M):
        x += (_in_base_2(z[k], _origin(top[k])),)
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
def _second_sweep(
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
        gradient = _gradient(_load(rows, columns, classes, True, "evict_first"), sums, a, b, classes, M, SMOOTHING)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, gradient[k], mask=columns < classes, eviction_policy="evict_first")
    for i in tl.range(first, full):
        columns = (first + full - 1 - i) * BLOCK + tl.arange(0, BLOCK)
        gradient = _gradient(_load(rows, columns, classes, False, "evict_first"), sums, a, b, classes, M, SMOOTHING)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, gradient[k], eviction_policy="evict_first")
    if (label >= first * BLOCK) & (label < tl.minimum(last * BLOCK, classes)):  # else every column would be compared
        gradient = _gradient(label_logits, sums, a, b, classes, M, SMOOTHING)
        tl.debug_barrier()
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + label, gradient[k] - a * (1 - SMOOTHING))


@triton.jit
def _store_zeros(grad_rows, first, last, classes, M: tl.constexpr, BLOCK: tl.constexpr):
    for block in tl.range(first, last):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, 0.0, mask=columns < classes)


@triton.jit
def _label_logits(rows, label, start, end, other):
    """The label's logit in every pass, `other` where the label is none of the columns from start to end."""
    return [tl.load(row + label, mask=(label >= start) & (label < end), other=other).to(tl.float32) for row in rows]


@triton.jit
def _factors(labeled, task_scale, divergence_scale, num_items, num_divergence_items, terms, M: tl.constexpr):
    """a and b, by which an item's loss and divergence are multiplied in the gradient."""
    a = _value(task_scale) * _one_over(num_items, terms)
    b = _value(divergence_scale) * _one_over(num_divergence_items, terms + 1) * _unit(M) / max(M - 1, 1)
    return tl.where(labeled, a / M, 0.0), b


@triton.jit(do_not_specialize=["size"])
def rdrop_kernel(
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
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Terms and, if wanted, gradient of one item."""
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
                _store_zeros(grad_rows, 0, blocks, classes, M, BLOCK)
            return

    label = tl.load(labels + item)
    labeled = label != IGNORED
    sums = _first_sweep(rows, 0, blocks, classes, M, SMOOTHING, BLOCK, LANES, WIDTH)
    # A label that is no class makes the loss NaN
    label_logits = _label_logits(rows, label, 0, classes, float("nan"))
    _store_terms(task_term, divergence_term, labeled, label_logits, sums, classes, M, SMOOTHING)
    if grad is not None:
        a, b = _factors(labeled, task_scale, divergence_scale, num_items, num_divergence_items, terms, M)
        _second_sweep(rows, grad_rows, 0, blocks, classes, label, label_logits, a, b, sums, M, SMOOTHING, BLOCK)


@triton.jit
def _store_sums(here, sums, label_logits, M: tl.constexpr, PARTS: tl.constexpr):
    """The sums of a part of an item; each beside those of the other parts."""
    top, total, spread, logit_sum, kept = sums
    tl.store(here, kept)
    for k in tl.static_range(M):
        of_pass = here + (1 + 5 * k) * PARTS
        tl.store(of_pass, top[k])
        tl.store(of_pass + PARTS, total[k])
        tl.store(of_pass + 2 * PARTS, spread[k])
        tl.store(of_pass + 3 * PARTS, logit_sum[k])
        tl.store(of_pass + 4 * PARTS, label_logits[k])


@triton.jit
def _load_sums(parts, M: tl.constexpr, PARTS: tl.constexpr):
    """What `_store_sums` stored of all parts; of the label's logits, which one part has, the others 0."""
    here = parts + tl.arange(0, PARTS)
    tops, totals, spreads, logit_sums, label_logits = (), (), (), (), ()
    for k in tl.static_range(M):
        of_pass = here + (1 + 5 * k) * PARTS
        tops += (tl.load(of_pass),)
        totals += (tl.load(of_pass + PARTS),)
        spreads += (tl.load(of_pass + 2 * PARTS),)
        logit_sums += (tl.load(of_pass + 3 * PARTS),)
        label_logits += (tl.sum(tl.load(of_pass + 4 * PARTS), 0),)
    return (tops, totals, spreads, logit_sums, tl.load(here)), label_logits


@triton.jit(do_not_specialize=["size", "lag"])
def split_rdrop_kernel(
    logits,  # these as in `rdrop_kernel`, but a gradient is always wanted
    logits_strides,
    grad,
    grad_strides,
    labels,
    mask,
    task_scale,
    divergence_scale,
    num_items,
    num_divergence_items,
    terms,
    part_sums,  # room for (5 M + 1) PARTS numbers an item
    progress,  # zeros: the tasks begun; for every item, the parts whose first sweep has ended
    size,
    classes,
    lag,
    M: tl.constexpr,
    SMOOTHING: tl.constexpr,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One sweep over one part of an item. Of 2 PARTS tasks, the first half are the first sweeps of an item, the others
    the second sweeps of the item `lag` before it. Programs take tasks in the order in which they start, whatever their
    numbers: so what a second sweep waits for has begun, and waits for nothing itself."""
    turn = tl.atomic_add(progress, 1, sem="relaxed")
    is_second = turn % (2 * PARTS) >= PARTS
    part = turn % PARTS
    item = turn // (2 * PARTS)
    if is_second:
        item -= lag
    if (item < 0) | (item >= size):
        return

    item = item.to(tl.int64)
    task_term, divergence_term = terms + 2 + item, terms + 2 + size + item
    ended = progress + 1 + item
    part_sums += item * ((5 * M + 1) * PARTS)
    blocks = tl.cdiv(classes, BLOCK)
    first, last = part * blocks // PARTS, (part + 1) * blocks // PARTS
    rows = _rows(logits, logits_strides, item, size, M)
    grad_rows = _rows(grad, grad_strides, item, size, M)

    if mask is not None:
        if not tl.load(mask + item):
            if is_second:
                tl.store(task_term, 0.0)
                tl.store(divergence_term, 0.0)
                _store_zeros(grad_rows, first, last, classes, M, BLOCK)
            return

    label = tl.load(labels + item)
    if is_second:
        while tl.atomic_add(ended, 0, sem="acquire") < PARTS:
            pass
        sums, label_logits = _load_sums(part_sums, M, PARTS)
        sums = _joined(sums, M)
        labeled = label != IGNORED
        if part == 0:
            _store_terms(task_term, divergence_term, labeled, label_logits, sums, classes, M, SMOOTHING)
        a, b = _factors(labeled, task_scale, divergence_scale, num_items, num_divergence_items, terms, M)
        _second_sweep(rows, grad_rows, first, last, classes, label, label_logits, a, b, sums, M, SMOOTHING, BLOCK)
    else:
        sums = _first_sweep(rows, first, last, classes, M, SMOOTHING, BLOCK, LANES, WIDTH)
        # Here, as the second sweep of another part may write over it. A label that is no class makes the loss NaN
        inside = (label >= 0) & (label < classes)
        other = tl.where(inside, 0.0, float("nan"))
        label_logits = _label_logits(rows, label, first * BLOCK, tl.minimum(last * BLOCK, classes), other)
        _store_sums(part_sums + part, sums, label_logits, M, PARTS)
        tl.debug_barrier()
        tl.atomic_add(ended, 1, sem="release")


@triton.jit(do_not_specialize=["size"])
def total_kernel(
    terms,  # these five as in `rdrop_kernel`, but a scale of None: the divergence is no part of the loss
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
def scale_kernel(tensor, factor, size, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1:
        for start in tl.range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
            here = start + tl.arange(0, BLOCK)
            value = tl.load(tensor + here, mask=here < size).to(by.dtype)
            tl.store(tensor + here, value * by, mask=here < size)
