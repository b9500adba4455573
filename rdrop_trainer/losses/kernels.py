"""The kernels of the `triton` backend.

A program does both sweeps of an item, where the L2 cache can hold as many items as there are programs running. Of
larger items it does one sweep over one part: then fewer items are begun at a time, and their second sweeps find them in
the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .sweeps import LN2, base, find_label_logits, first_sweep, in_base_2, joined, origin, second_sweep, unit


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
def _value(number):
    """A number in float32 that is given as such, or by a pointer to it."""
    number = tl.core.to_tensor(number)  # Triton 3.6, which torch 2.11 brings, has it there alone
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
def _store_terms(
    task_term, divergence_term, labeled, label_logits, sums, classes, M: tl.constexpr, SMOOTHING: tl.constexpr
):
    """The task loss of an item, the mean over its passes, and its divergence."""
    top, total, spread, logit_sum, kept = sums
    task, divergence = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for k in tl.static_range(M):
        log_total = tl.log2(total[k])
        term = log_total - in_base_2(label_logits[k], base(top[k]), origin(top[k]))
        if SMOOTHING > 0:
            term = (1 - SMOOTHING) * term + SMOOTHING * (kept * log_total - logit_sum[k]) / classes
        task += term * (LN2 / M)
        if M > 1:  # of one pass there is none, though its logits be NaN
            divergence += spread[k] / total[k]
    tl.store(task_term, tl.where(labeled, task, 0.0))
    tl.store(divergence_term, divergence * LN2 * unit(M) / max(M - 1, 1))


@triton.jit
def _store_zeros(grad_rows, first, last, classes, M: tl.constexpr, BLOCK: tl.constexpr):
    for block in tl.range(first, last):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, 0.0, mask=columns < classes)


@triton.jit
def _factors(labeled, task_scale, divergence_scale, num_items, num_divergence_items, terms, M: tl.constexpr):
    """a and b, by which an item's loss and divergence are multiplied in the gradient."""
    a = _value(task_scale) * _one_over(num_items, terms)
    b = _value(divergence_scale) * _one_over(num_divergence_items, terms + 1) * unit(M) / max(M - 1, 1)
    return tl.where(labeled, a / M, 0.0), b


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
    """What `_store_sums` stored of all parts, joined."""
    here = parts + tl.arange(0, PARTS)
    tops, totals, spreads, logit_sums, label_logits = (), (), (), (), ()
    for k in tl.static_range(M):
        of_pass = here + (1 + 5 * k) * PARTS
        tops += (tl.load(of_pass),)
        totals += (tl.load(of_pass + PARTS),)
        spreads += (tl.load(of_pass + 2 * PARTS),)
        logit_sums += (tl.load(of_pass + 3 * PARTS),)
        label_logits += (tl.sum(tl.load(of_pass + 4 * PARTS), 0),)
    return joined((tops, totals, spreads, logit_sums, tl.load(here)), M), label_logits


@triton.jit(do_not_specialize=["size", "lag"])
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
    part_sums,  # these two of several parts only: room for (5 M + 1) PARTS numbers an item
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
    """Terms and, if wanted, gradient of an item; or, with several parts, one sweep over one part of it.

    Of 2 PARTS such tasks the first half are the first sweeps of an item, the others the second sweeps of the item
    `lag` before it. Programs take tasks in the order in which they start, whatever their numbers: so what a second
    sweep waits for has begun, and waits for nothing itself.
    """
    if PARTS == 1:
        item, part = tl.program_id(0), 0
        writes = True
    else:
        turn = tl.atomic_add(progress, 1, sem="relaxed")
        item, part = turn // (2 * PARTS), turn % PARTS
        writes = turn % (2 * PARTS) >= PARTS
        if writes:
            item -= lag
        if (item < 0) | (item >= size):
            return
    item = item.to(tl.int64)  # its product with a stride may exceed 32 bits
    task_term, divergence_term = terms + 2 + item, terms + 2 + size + item
    blocks = tl.cdiv(classes, BLOCK)
    first, last = part * blocks // PARTS, (part + 1) * blocks // PARTS
    rows = _rows(logits, logits_strides, item, size, M)
    grad_rows = rows
    if grad is not None:
        grad_rows = _rows(grad, grad_strides, item, size, M)

    if mask is not None:
        if not tl.load(mask + item):
            if writes:
                tl.store(task_term, 0.0)
                tl.store(divergence_term, 0.0)
                if grad is not None:
                    _store_zeros(grad_rows, first, last, classes, M, BLOCK)
            return

    label = tl.load(labels + item)
    if PARTS == 1:
        sums = first_sweep(rows, first, last, classes, M, SMOOTHING, BLOCK, LANES, WIDTH)
        label_logits = find_label_logits(rows, label, first, last, classes, BLOCK)
        tl.debug_barrier()  # every thread has it before one begins the second sweep, which may write over it
    else:
        ended = progress + 1 + item
        part_sums += item * ((5 * M + 1) * PARTS)
        if not writes:
            sums = first_sweep(rows, first, last, classes, M, SMOOTHING, BLOCK, LANES, WIDTH)
            # Here, as the second sweep of another part may write over the label's logit
            label_logits = find_label_logits(rows, label, first, last, classes, BLOCK)
            _store_sums(part_sums + part, sums, label_logits, M, PARTS)
            tl.debug_barrier()
            tl.atomic_add(ended, 1, sem="release")
            return
        while tl.atomic_add(ended, 0, sem="acquire") < PARTS:
            pass
        sums, label_logits = _load_sums(part_sums, M, PARTS)

    labeled = label != IGNORED
    if part == 0:
        _store_terms(task_term, divergence_term, labeled, label_logits, sums, classes, M, SMOOTHING)
    if grad is not None:
        a, b = _factors(labeled, task_scale, divergence_scale, num_items, num_divergence_items, terms, M)
        second_sweep(rows, grad_rows, first, last, classes, label, label_logits, a, b, sums, M, SMOOTHING, BLOCK)


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
