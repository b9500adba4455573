"""The kernels of the `triton` backend.

A program does both sweeps of an item, where the L2 cache can hold as many items as there are programs running. Of
larger items it does one sweep over one part: then fewer items are begun at a time, and their second sweeps find them in
the cache. Few logits are computed by one program in one launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .sweeps import add_block, find_label_logits, first_sweep, gradient_of, joined, load, no_sums, second_sweep
from .terms import count, factors, rows_of, store_results, terms_of


@triton.jit(do_not_specialize=["size"])  # which changes from batch to batch
def count_kernel(labels, mask, counted, size, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    labeled, items = count(labels, mask, size, IGNORED, BLOCK)
    tl.store(counted, labeled)
    tl.store(counted + 1, items)


@triton.jit
def _store_zeros(grad_rows, first, last, classes, M: tl.constexpr, BLOCK: tl.constexpr):
    for block in tl.range(first, last):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        for k in tl.static_range(M):
            tl.store(grad_rows[k] + columns, 0.0, mask=columns < classes)


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
    numbers,  # scales of task loss and divergence, counts of items for both; pointers or values, a count may be None
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
    rows = rows_of(logits, logits_strides, item, size, M)
    grad_rows = rows
    if grad is not None:
        grad_rows = rows_of(grad, grad_strides, item, size, M)

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
        task, divergence = terms_of(labeled, label_logits, sums, classes, M, SMOOTHING)
        tl.store(task_term, task)
        tl.store(divergence_term, divergence)
    if grad is not None:
        a, b = factors(labeled, numbers, (terms, terms + 1), M)
        second_sweep(rows, grad_rows, first, last, classes, label, label_logits, a, b, sums, M, SMOOTHING, BLOCK)


@triton.jit(do_not_specialize=["size"])
def total_kernel(
    terms,  # these two as in `rdrop_kernel`, but a scale of None: the divergence is no part of the loss
    numbers,
    results,  # loss, task loss, divergence
    size,
    BLOCK: tl.constexpr,
):
    """The sums over items, in one program and so always in one order."""
    task_sum, divergence_sum = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        task_sum += tl.load(terms + 2 + here, mask=here < size, other=0.0)
        divergence_sum += tl.load(terms + 2 + size + here, mask=here < size, other=0.0)
    store_results(tl.sum(task_sum, 0), tl.sum(divergence_sum, 0), numbers, (terms, terms + 1), results)


@triton.jit
def _wide(sums, M: tl.constexpr):
    """The sums of several items, each beside all its logits, (1, items, 1)."""
    top, total, spread, logit_sum, kept = sums
    tops, totals, spreads, logit_sums = (), (), (), ()
    for k in tl.static_range(M):
        tops += (top[k][None, :, None],)
        totals += (total[k][None, :, None],)
        spreads += (spread[k][None, :, None],)
        logit_sums += (logit_sum[k][None, :, None],)
    return tops, totals, spreads, logit_sums, kept[None, :, None]


@triton.jit(do_not_specialize=["size"])
def few_kernel(
    logits,  # this and the rest as in those
    logits_strides,
    grad,
    grad_strides,
    labels,
    mask,
    numbers,
    results,
    size,
    classes,
    M: tl.constexpr,
    SMOOTHING: tl.constexpr,
    IGNORED: tl.constexpr,
    ITEMS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`count_kernel`, `rdrop_kernel` and `total_kernel` in one, for few logits.

    One program computes ITEMS items at a time, each with all its classes: the lanes of `add_block` are items here.
    """
    counted = (None, None)
    if numbers[2] is None or numbers[3] is None:
        counted = count(labels, mask, size, IGNORED, BLOCK)
    columns = tl.arange(0, WIDTH)[None, None, :]
    task_sum, divergence_sum = tl.zeros((ITEMS,), tl.float32), tl.zeros((ITEMS,), tl.float32)
    for start in tl.range(0, size, ITEMS):
        item = start + tl.arange(0, ITEMS).to(tl.int64)
        counts = item < size
        if mask is not None:
            counts = counts & (tl.load(mask + item, mask=counts, other=0) != 0)
        label = tl.load(labels + item, mask=counts, other=IGNORED)
        labeled = label != IGNORED
        # Of an item that does not count no logit is read
        ends = tl.where(counts, classes, 0)[None, :, None]
        z = load(rows_of(logits, logits_strides, item[None, :, None], size, M), columns, ends, True, "evict_first")
        sums = add_block(no_sums(ITEMS, M), z, M, SMOOTHING)
        is_label = columns == label[None, :, None]
        no_class = tl.where((label >= 0) & (label < classes), 0.0, float("nan"))
        label_logits = [tl.sum(tl.sum(tl.where(is_label, logit, 0.0), 2), 0) + no_class for logit in z]
        task, spread = terms_of(labeled, label_logits, sums, classes, M, SMOOTHING)
        task_sum += task
        divergence_sum += tl.where(counts, spread, 0.0)
        if grad is not None:
            a, b = factors(labeled, numbers, counted, M)
            gradient = gradient_of(z, _wide(sums, M), a[None, :, None], b, classes, M, SMOOTHING)
            of_label = tl.where(is_label, (a * (1 - SMOOTHING))[None, :, None], 0.0)
            grad_rows = rows_of(grad, grad_strides, item[None, :, None], size, M)
            inside = (item < size)[None, :, None] & (columns < classes)
            for k in tl.static_range(M):
                value = tl.where(counts[None, :, None], gradient[k] - of_label, 0.0)
                tl.store(grad_rows[k] + columns, value, mask=inside)
    store_results(tl.sum(task_sum, 0), tl.sum(divergence_sum, 0), numbers, counted, results)


@triton.jit
def scale_kernel(tensor, factor, size, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1:
        for start in tl.range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
            here = start + tl.arange(0, BLOCK)
            value = tl.load(tensor + here, mask=here < size).to(by.dtype)
            tl.store(tensor + here, value * by, mask=here < size)
