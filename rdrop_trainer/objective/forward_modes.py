"""Does a forward mode fit a model: may its rows be repeated, and may its passes run again?

`model` is what `compute_loss` gets, without `DistributedDataParallel`; `batch` a micro-batch. All processes make the
same checks in the same micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from .passes import run_passes
from .plan import Plan
from .rows import doubtful_entries, find_batch_size, repeat_rows
from .training import Training
from .window import StepSettings

# Where there is noise, the means over so many runs are compared
_RUNS = 16


def check_repeated_rows(
    training: Training, plan: Plan, model: nn.Module, batch: Mapping[str, Any], num_passes: int
) -> Plan:
    """Is a loss that R-Drop does not compute itself the same for a batch and for its rows several times over?

    The model is in training mode, but without dropout. The same passes show which entries of the batch have a value for
    each row, where their form does not: with the wrong ones repeated the loss fails, or differs.

    Raises:
        ValueError: it depends on the number of rows, as a sum does, or negatives within the batch; or an entry fits
            neither way.
    """
    source, head, size = plan.task_loss, plan.head, find_batch_size(model, batch)
    main = getattr(model, "main_input_name", "input_ids")
    doubtful = doubtful_entries(batch, size, {main, *head.labels, *plan.follows})

    def losses(rows: Mapping[str, Any], times: int) -> torch.Tensor | None:
        """Of runs one after the other, with noise of their own; each is read at once: CUDA graphs use memory again."""
        with training.aside(source.takes_gradients):
            inputs = [source.inputs(rows, head) for _ in range(times)]
            found = [_detached(run_passes(model, one, 1, "sequential", source.call).loss()) for one in inputs]
        return None if found[0] is None else torch.stack(found).cpu().double()  # MPS has no float64

    tried = []
    with training.without_dropout():
        once = losses(batch, 2)
        if once is None:
            return replace(plan, rows_checked=True)
        # What noise is left is no dropout module's, but that of `F.dropout(x, 0.3)` or NumPy, say
        is_noisy = (once - once[0]).abs().max() > 1e-6 * once[0].abs()
        times = _RUNS if training.on_any_process(is_noisy) else 1
        once = losses(batch, times) if times > 1 else once[:1]
        for flipped in product((False, True), repeat=len(doubtful)):
            follows = {key: taken != flip for (key, taken), flip in zip(doubtful.items(), flipped, strict=True)}
            try:
                again = losses(repeat_rows(batch, num_passes, size, follows), times)
            except Exception as error:
                if not doubtful or should_reduce_batch_size(error):
                    raise
                continue
            if _are_alike(once, again):
                # A batch of one row does not tell: one value broadcasts to any number of rows
                is_open = training.on_any_process(size == 1 and bool(doubtful))
                known = {} if is_open else follows
                return replace(plan, rows_checked=not is_open, follows={**plan.follows, **known})
            tried.append(again)
    if not tried:
        names = ", ".join(map(repr, doubtful))
        raise ValueError(
            f"It is not clear whether {names} of the batch of {size} rows has a value for each row: the loss of "
            f"{source.computed_by} fails for the same rows {num_passes} times over, with {names} repeated or not. Give "
            "values of rows the shape (B, 1) and others the shape (1, ...), or use "
            'rdrop_forward_mode="sequential".'
        )
    raise ValueError(
        f"The loss of {source.computed_by} depends on the number of rows: {once.mean().item():.6g} for a batch, "
        f"{tried[0].mean().item():.6g} for the same rows {num_passes} times over, as R-Drop's single forward would see "
        'them. Use rdrop_forward_mode="sequential", and let it be a mean over the batch.'
    )


def _detached(loss: torch.Tensor | None) -> torch.Tensor | None:
    return None if loss is None else loss.detach()


def _are_alike(once: torch.Tensor, again: torch.Tensor) -> bool:
    """Whether two samples of losses, of as many runs, may have one mean; a loss that is not finite does not tell."""
    noise = ((once.var(correction=0) + again.var(correction=0)) / len(once)) ** 0.5
    margin = 2e-2 * again.mean().abs() + 1e-6 + 4 * noise
    return bool((once.mean() - again.mean()).abs() <= margin) or not bool(once.mean().isfinite())


def check_repeats(
    training: Training, plan: Plan, model: nn.Module, batch: Mapping[str, Any], settings: StepSettings
) -> Plan:
    """Is a pass the same when it runs again from the same random states and buffers, as recomputing needs it?

    Raises:
        ValueError: it is not.
    """
    lm_head, once = plan.fused(batch, settings), replace(settings, num_passes=1)

    def outputs() -> torch.Tensor:
        with training.aside(plan.task_loss.takes_gradients):
            [items] = plan.items(plan.run(model, batch, once, lm_head), batch)
        return items[0].outputs[0].detach().float().clone()  # CUDA graphs use its memory for the next run

    first, again = outputs(), outputs()
    tolerance = training.tolerance(first, by_products=True)
    margin = tolerance * first.abs().nan_to_num(posinf=0).max() + 1e-6 if first.numel() else 0.0
    if training.on_any_process(not torch.allclose(first, again, rtol=tolerance, atol=float(margin), equal_nan=True)):
        raise ValueError(
            f"{training.model_name} makes other predictions of the same rows when it runs again, although "
            'random states and buffers are the same: it has state of its own that rdrop_forward_mode="recompute" '
            'cannot put back. Use "concat" or "sequential".'
        )
    return replace(plan, repeats=True)
