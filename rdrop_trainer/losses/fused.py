"""The autograd Function behind the fused backends: the gradient is made along with the loss, not from a graph."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch.autograd.function import once_differentiable

# walk(tensors, task_weight, divergence_weight, with_gradient) returns the sums over items of task loss and divergence
# and, if wanted, the gradients of task_weight * task + divergence_weight * divergence for the tensors
Walk = Callable[
    [tuple[torch.Tensor | None, ...], torch.Tensor, torch.Tensor, bool],
    tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...] | None],
]


class FusedLoss(torch.autograd.Function):
    """`(loss, task, divergence)` of some tensors; loss = task_weight * task + divergence_weight * divergence.

    `task` and `divergence` are sums over items. The gradient of `loss` is made in the forward pass, while the logits
    are at hand, and is all that is kept beside the tensors themselves. It is made in the backward pass instead where it
    cannot be known before: when it also comes through `task` or `divergence`, or a second time, and in float16, where
    it would vanish before a gradient scaler reaches it.
    """

    @staticmethod
    def forward(ctx, walk: Walk, task_weight: torch.Tensor, divergence_weight: torch.Tensor | None, *tensors):
        """`divergence_weight` None: the divergence is reported, but no part of the loss."""
        ctx.set_materialize_grads(False)
        needed = any(ctx.needs_input_grad)
        ahead = needed and divergence_weight is not None and all(t is None or t.dtype != torch.float16 for t in tensors)
        weight = torch.ones_like(task_weight) if divergence_weight is None else divergence_weight
        task, divergence, ctx.gradients = walk(tensors, task_weight, weight, ahead)
        if needed:
            ctx.walk, ctx.task_weight, ctx.divergence_weight = walk, task_weight, divergence_weight
            ctx.save_for_backward(*tensors)
        loss = task_weight * task
        return loss if divergence_weight is None else loss + divergence_weight * divergence, task, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss, of_task, of_divergence):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or of_loss is None or of_task is not None or of_divergence is not None:
            del gradients
            zero = torch.zeros_like(ctx.task_weight)
            weights = [
                (zero if own is None or of_loss is None else own * of_loss) + (zero if direct is None else direct)
                for own, direct in ((ctx.task_weight, of_task), (ctx.divergence_weight, of_divergence))
            ]
            with torch.autocast(ctx.task_weight.device.type, enabled=False):
                gradients = ctx.walk(ctx.saved_tensors, *weights, True)[2]
        else:
            for gradient in gradients:
                if gradient is not None:
                    _scale_(gradient, of_loss)
        return None, None, None, *gradients


def _scale_(tensor: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply in place, leaving memory alone where the factor is 1, as it nearly always is, if that can be found out
    without waiting for the device."""
    if tensor.is_cuda and find_spec("triton") is not None:
        import_module(".triton", __package__).scale_(tensor, factor)
    elif tensor.device.type != "cpu" or factor != 1:
        tensor.mul_(factor)
