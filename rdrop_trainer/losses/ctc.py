"""`rdrop_ctc_loss`: the loss of speech recognition by CTC, whose divergence compares the passes frame by frame.

CTC leaves open which frame says which character, and sums over all the ways. But frame t of every pass is of the same
sound, so its distributions over characters can be compared, as CR-CTC does (Yao et al., 2024, arXiv 2410.05101).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from .fused import Number, one_over
from .rdrop import RDropLoss, rdrop_loss
from .reference import IGNORE_INDEX


def rdrop_ctc_loss(
    logits: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor | None,
    lengths: torch.Tensor,
    *,
    alpha: float,
    num_passes: int = 2,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
    num_items: Number | None = None,
    num_divergence_items: Number | None = None,
) -> RDropLoss:
    """CTC loss plus the weighted symmetric KL between several passes over the same frames.

        loss = task_loss + alpha / 2 * divergence

    With `reduction="mean"` the task loss is the mean over rows and passes of a row's CTC loss divided by the length of
    its transcript, as in `torch.nn.functional.ctc_loss`; the divergence is the mean over valid frames. With "sum" both
    are sums, over rows and over valid frames, and the task loss is still the mean over passes: CR-CTC's loss, whose
    alpha is half of this one (but its targets get no gradient, and here every pass does).

    Args:
        logits: (m·B, T, C), any floating type: all B rows of the first pass, then all of the second, and so on; or a
            sequence of m tensors (B, T, C).
        labels: (B, U) integers, once and not repeated; -100 and `blank` are padding, and a row of padding alone is an
            empty transcript. None: no row has a transcript, and the task loss is 0.
        lengths: (B,) integers, the valid frames of each row. Frames behind them count nowhere.
        alpha: weight of the divergence, at least 0.
        num_passes: m, the number of passes. 1 gives the plain task loss and a divergence of 0.
        blank: the class that stands for no character.
        zero_infinity: a row with fewer frames than its transcript needs has a loss of 0, not infinity.
        reduction: of task loss and divergence, "mean" or "sum".
        num_items: what the sum of the rows' task losses is divided by. Default: B for "mean", 1 for "sum".
        num_divergence_items: what the divergence summed over frames is divided by. Default: all valid frames for
            "mean", 1 for "sum". With gradient accumulation or several processes, pass the counts of the whole batch.

    Returns:
        `RDropLoss(loss, task_loss, divergence)`; scalars in float32 (float64 for float64 logits). Call `backward` on
        `loss`.

    Raises:
        ValueError: shapes that do not fit, or a setting that `rdrop_loss` does not take either.

    Examples:
        >>> import torch
        >>> logits = torch.zeros(2, 5, 3)  # one row of 5 frames, two passes that agree
        >>> loss, task_loss, divergence = rdrop_ctc_loss(logits, torch.tensor([[1, 2]]), torch.tensor([4]), alpha=0.4)
        >>> round(task_loss.item(), 4), divergence.item(), bool(loss == task_loss)
        (0.8432, 0.0, True)
    """
    logits = (logits,) if isinstance(logits, torch.Tensor) else tuple(logits)
    _check(logits, labels, lengths, num_passes)
    size, frames = len(lengths), logits[0].shape[1]
    is_valid = torch.arange(frames, device=lengths.device) < lengths[:, None]  # (B, T)
    terms = rdrop_loss(
        [z.flatten(0, 1) for z in logits],
        None,
        alpha=alpha,
        num_passes=num_passes,
        mask=is_valid.to(logits[0].device).flatten(),
        num_divergence_items=num_divergence_items,
        reduction=reduction,
    )
    if labels is None:
        return terms
    losses = [_losses(z, labels, lengths, blank, zero_infinity) for z in logits]
    task = torch.cat(losses).unflatten(0, (num_passes, size))  # (m, B)
    if reduction == "mean":
        task = task / _is_target(labels, blank).sum(-1).clamp(min=1)
    if num_items is None:
        num_items = size if reduction == "mean" else 1
    task_loss = one_over(num_items, task.dtype, task.device) * task.mean(0).sum()
    return RDropLoss(task_loss + terms.loss, task_loss, terms.divergence)


def _losses(
    logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor, blank: int, zero_infinity: bool
) -> torch.Tensor:
    """The CTC loss of every row of some passes, (m·B,)."""
    times = len(logits) // len(labels)
    labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)  # one column at least
    is_target = _is_target(labels, blank)
    # To pick the characters would wait for the device; padding behind them is not read
    targets = labels.gather(1, is_target.int().argsort(dim=1, descending=True, stable=True)).clamp(min=0)
    dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
    with torch.backends.cudnn.flags(enabled=False):  # it knows fewer shapes, and its gradient is not deterministic
        return F.ctc_loss(
            logits.log_softmax(-1, dtype=dtype).transpose(0, 1),
            targets.repeat(times, 1),
            lengths.repeat(times),
            is_target.sum(-1).repeat(times),
            blank=blank,
            reduction="none",
            zero_infinity=zero_infinity,
        )


def _is_target(labels: torch.Tensor, blank: int) -> torch.Tensor:
    return (labels != IGNORE_INDEX) & (labels != blank)


def _check(logits, labels, lengths, num_passes) -> None:
    size, shapes = lengths.numel(), [tuple(z.shape) for z in logits]
    rows = num_passes * size if len(logits) == 1 else size
    is_like_passes = len(logits) in (1, num_passes) and len(set(shapes)) == 1
    if lengths.dim() != 1 or not is_like_passes or len(shapes[0]) != 3 or shapes[0][0] != rows:
        raise ValueError(
            f"logits must be one tensor of shape (num_passes * B, T, C) or {num_passes} of (B, T, C), and lengths "
            f"(B,), with num_passes={num_passes}; got {', '.join(map(str, shapes))} and {tuple(lengths.shape)}."
        )
    if labels is not None and (labels.dim() != 2 or len(labels) != size or labels.is_floating_point()):
        raise ValueError(
            f"labels must be integers of shape (B, U) for {size} rows, got {labels.dtype} of {tuple(labels.shape)}."
        )
