"""The fused backend for any device: rows in chunks that fit the cache, gradients in closed form.

With logits z_k of pass k, p_k = softmax(z_k), means over the m passes z̄ and p̄, and the one-hot target y, an item adds

    task        mean_k (logsumexp(z_k) - z_k[y])
    divergence  1/(m-1) sum_k s_k,  s_k = sum_v p_k (z_k - z̄)

to the two sums. Let w_t and w_d be the weights of the sums in the loss, a = w_t/m and b = w_d/(m-1). The gradient is

    dloss/dz_k = a (p_k - y) + b [(p_k - p̄) + p_k ((z_k - z̄) - s_k)].

Label smoothing ε replaces y by (1 - ε) y + ε/C.

Source: R-Drop paper, equations 1-4. The symmetric KL is linear in m and needs logits alone: the normalisers of the
softmax cancel in it, and its mean over pairs of passes equals a sum over passes of deviations from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from . import devices
from .fused import Number, Terms, one_over
from .reference import IGNORE_INDEX

# Logits of one pass in a chunk, per thread. More would fall out of the cache, with their exponentials and the scratch;
# with fewer, starting an operation costs as much as doing it. A GPU wants more.
CHUNK_PER_THREAD = 2**18
CHUNK_ON_DEVICE = 2**24
# A sum of exponentials of bare logits is right within these limits. Beyond them the largest logit is subtracted first,
# which costs two more rounds through memory.
SAFE_SUMS = (1e-30, 1e30)


def _chunk(
    x: torch.Tensor,
    e: torch.Tensor,
    u: torch.Tensor,
    sums: Sequence[torch.Tensor],
    own: torch.Tensor,
    share: torch.Tensor,
    per_class: torch.Tensor | None,
    with_grad: bool,
    careful: bool,
) -> bool:
    """Fill in the sums of some rows, and their gradient except for the term of the target.

    Args:
        x: (m, r, C) logits.
        e: (m, r, C), receives the gradient. Until then it holds the exponentials e_k of the logits, not divided by
            their sum.
        u: (m, r, C) scratch, for b p_k (z_k - z̄) and the other terms of the gradient.
        sums: five of (m, r, 1), to be filled: the sum of the exponentials, the logit subtracted before, b s_k, and
            with label smoothing the sum of the logits after that and the number of masked classes.
        own: (r, 1), a + b (1 - 1/m): the factor of p_k in its own gradient, s_k left out.
        share: b/m, the factor of p_k in the gradient of another pass.
        per_class: (r, 1), a ε/C; None without label smoothing.
        with_grad: False: the sums alone.
        careful: subtract the largest logit first, and leave out masked classes: those that are -inf in all passes.

    Returns:
        False: the rows need care and did not get it, so call again with `careful`.
    """
    total, top, spread, logit_sum, masked_classes = sums
    if careful:
        torch.amax(x, -1, keepdim=True, out=top)
        masked = x.isneginf().all(0)  # (r, C)
        x = x - top
        torch.exp(x, out=e)
    else:
        torch.exp(x, out=e)
    torch.sum(e, -1, keepdim=True, out=total)
    inverse = total.reciprocal()
    if len(x) > 1:
        weight = inverse * share
        minus = weight.neg()
        lse = total.log()  # subtracted from each pass: a shift common to all classes would cost the divergence digits
        if len(x) == 2:  # in the fewest rounds through memory
            torch.sub(x[0], x[1], out=u[0]).sub_(lse[0] - lse[1])
            torch.mul(u[0], minus[1], out=u[1])
            u[0].mul_(weight[0])
        else:
            torch.sub(x, x[0], out=u).sub_(lse - lse[0])  # a mean over passes of the largest numbers would overflow
            u.sub_(u.mean(0)).mul_(len(x) * weight)
        if careful:
            u.masked_fill_(masked, 0)
        u.mul_(e)
        torch.sum(u, -1, keepdim=True, out=spread)
    if per_class is not None:
        torch.sum(x.masked_fill(masked, 0) if careful else x, -1, keepdim=True, out=logit_sum)
        if careful:
            masked_classes.copy_(masked.sum(-1, keepdim=True))
    if not careful:
        low, high = torch.aminmax(total)
        numbers = spread.sum() if per_class is None else spread.sum() + logit_sum.sum()
        if not (SAFE_SUMS[0] < low.item() and high.item() < SAFE_SUMS[1] and math.isfinite(numbers.item())):
            return False
    if not with_grad:
        return True

    if len(x) == 1:
        u.zero_()
    for k in range(len(x)):
        for j in range(len(x)):
            if j != k:
                u[k].addcmul_(e[j], minus[j])
    if per_class is not None:
        u.sub_(per_class * ~masked if careful else per_class)
        own = own - per_class * masked_classes if careful else own
    torch.addcmul(u, e, (own - spread).mul_(inverse), out=e)
    return True


def _subtract_target(grad: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> None:
    """Subtract the weight of each row, (n,), from the gradient (m, n, C) at the row's target, (n,)."""
    index, value = (v.unsqueeze(-1).expand(len(grad), -1, 1) for v in (target, -weight))
    grad.scatter_add_(-1, index, value)


def loss_and_grad(
    logits: Sequence[torch.Tensor],
    task_scale: Number,
    divergence_scale: Number | None,
    with_grad: bool,
    *,
    labels: torch.Tensor,
    num_passes: int,
    num_items: Number,
    num_divergence_items: Number,
    dtype: torch.dtype,
    mask: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> tuple[Terms, Sequence[torch.Tensor] | None]:
    """Cross-entropy and categorical divergence, the loss made of both, and its gradient; a `LossAndGrad`.

    Args:
        logits: all passes in one tensor, (m·N, C), or m of (N, C).
        task_scale, divergence_scale: factors of the two in the loss.
        with_grad: False: the terms alone.
        labels: (N,) integers; -100 marks an unlabeled item.
        num_passes: m.
        num_items, num_divergence_items: what the sums over items are divided by.
        dtype: of the arithmetic.
        mask: (N,) booleans, the items that count. None: all of them.
        label_smoothing: ε.
        overwrite: write the gradient over the logits, which must then be one tensor, without a mask that can be read.

    Returns:
        Loss, task loss and divergence, and the gradient in the shapes and types of `logits`.
    """
    m, classes, device = num_passes, logits[0].shape[1], labels.device
    per_item, per_divergence_item = (one_over(n, dtype, device) for n in (num_items, num_divergence_items))
    task_weight = task_scale * per_item
    divergence_weight = per_divergence_item if divergence_scale is None else divergence_scale * per_divergence_item
    is_one = len(logits) == 1
    z: Any = split_passes(logits, m)  # (m, N, C), or m of (N, C)
    size = len(z[0])
    chosen, mask = rows_that_count(mask)
    if chosen is not None:
        labels = labels[chosen]  # (n,)
    if mask is not None:
        labels = labels.where(mask, IGNORE_INDEX)
    labeled = labels != IGNORE_INDEX
    target = labels.where(labeled, 0)
    a, b = labeled * (task_weight / m), divergence_weight / max(m - 1, 1)
    own, share = (a + b * (1 - 1 / m)).unsqueeze(-1), b / m
    per_class = (a * (label_smoothing / classes)).unsqueeze(-1) if label_smoothing else None
    at_target = torch.arange(len(labels), device=device) if chosen is None else chosen, target
    target_logit = torch.stack([z_k[at_target] for z_k in z]).to(dtype)  # (m, n)
    grad = None
    if with_grad:
        new = torch.empty if chosen is None else torch.zeros
        grad = z if overwrite else new((m, size, classes), dtype=logits[0].dtype, device=device)

    # Rows that are picked by a mask, or of another type, are copied a chunk at a time; the others are used in place
    as_they_are = chosen is None and logits[0].dtype == dtype
    reads_in_place, writes_in_place = as_they_are and is_one, as_they_are and with_grad and not overwrite
    rows = _rows_of_a_chunk(len(labels), classes, device)
    room = partial(torch.empty, (m, rows, classes), dtype=dtype, device=device)
    scratch, copy, exponentials = room(), None if reads_in_place else room(), None if writes_in_place else room()
    sums = torch.zeros((5, m, len(labels), 1), dtype=dtype, device=device)
    for start in range(0, len(labels), rows):
        here = slice(start, start + rows)
        at = here if chosen is None else chosen[here]
        sums_here = sums[:, :, here].unbind()
        used = slice(sums_here[0].shape[1])
        if reads_in_place:
            x = z[:, at]
        else:
            x = copy[:, used]
            for x_k, z_k in zip(x, z, strict=True):
                x_k.copy_(z_k[at])
        e = grad[:, at] if writes_in_place else exponentials[:, used]
        per_class_here = None if per_class is None else per_class[here]
        arguments = x, e, scratch[:, used], sums_here, own[here], share, per_class_here, with_grad
        if not devices.can_read(x) or not _chunk(*arguments, careful=False):
            _chunk(*arguments, careful=True)
        if with_grad and mask is not None:
            e.masked_fill_(~mask[here].unsqueeze(-1), 0)
        if with_grad and not writes_in_place:
            _subtract_target(e, target[here], a[here] * (1 - label_smoothing))
            grad[:, at] = e.to(grad.dtype)
    if writes_in_place:
        _subtract_target(grad, target, a * (1 - label_smoothing))

    total, top, spread, logit_sum, masked = sums.squeeze(-1)
    lse = total.log()  # of the logits after the subtraction of `top`
    task = lse + (top - target_logit)
    if label_smoothing:
        uniform = ((classes - masked) * lse - logit_sum) / classes
        task = (1 - label_smoothing) * task + label_smoothing * uniform
    task = task.where(labeled, 0).sum() / m * per_item
    spread = spread if mask is None else spread.where(mask, 0)
    divergence = spread.sum() / divergence_weight * per_divergence_item if m > 1 else torch.zeros_like(task)
    if grad is not None:
        grad = (grad.flatten(0, 1),) if is_one else grad.unbind()
    loss = task_scale * task
    return (loss if divergence_scale is None else loss + divergence_scale * divergence, task, divergence), grad


def split_passes(tensors: Sequence[torch.Tensor], num_passes: int) -> torch.Tensor | Sequence[torch.Tensor]:
    """All passes in one tensor as a view (m, N, ...); a tensor for each pass as they are."""
    if len(tensors) > 1:
        return tensors
    return tensors[0].unflatten(0, (num_passes, tensors[0].shape[0] // num_passes))


def rows_that_count(mask: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The rows to pick by a mask, (n,), so that no others are computed; None: all of them.

    Where the mask could only be read by waiting for a device, no rows are picked, and the mask is returned, too.
    """
    if mask is None or not devices.can_read(mask):
        return None, mask
    return None if bool(mask.all()) else mask.nonzero()[:, 0], None


def _rows_of_a_chunk(items: int, classes: int, device: torch.device) -> int:
    if device.type != "cpu":
        return max(1, min(items, CHUNK_ON_DEVICE // classes))
    threads = torch.get_num_threads()
    return max(1, min(items, threads * max(4, round(CHUNK_PER_THREAD / classes))))
