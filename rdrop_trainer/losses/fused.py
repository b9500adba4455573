"""The autograd Function around the fused backends: the gradient is computed along with the loss, not from a graph."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch.autograd.function import once_differentiable

# loss_and_grad(tensors, task_weight, divergence_weight, with_grad) returns the sums over items of task loss and
# divergence and, if wanted, the gradients of task_weight * task + divergence_weight * divergence for the tensors
LossAndGrad = Callable[
    [tuple[torch.Tensor | None, ...], torch.Tensor, torch.Tensor, bool],
    tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...] | None],
]


class FusedLoss(torch.autograd.Function):
    """`(loss, task, divergence)` of some tensors; loss = task_weight * task + divergence_weight * divergence.

    `task` and `divergence` are sums over items. The forward pass computes the gradient of `loss`, because the logits
    are at hand then. It keeps this gradient and the tensors themselves, nothing else. The backward pass computes the
    gradient instead in three cases: it also comes through `task` or `divergence`; the graph is used a second time; the
    tensors are float16, where the gradient would vanish before a gradient scaler reaches it.
    """

    @staticmethod
    def forward(
        ctx, loss_and_grad: LossAndGrad, task_weight: torch.Tensor, divergence_weight: torch.Tensor | None, *tensors
    ):
        """`divergence_weight` None: the divergence is reported, but no part of the loss."""
        ctx.set_materialize_grads(False)
        needed = any(ctx.needs_input_grad)
        ahead = needed and divergence_weight is not None and all(t is None or t.dtype != torch.float16 for t in tensors)
        weight = torch.ones_like(task_weight) if divergence_weight is None else divergence_weight
        task, divergence, ctx.grads = loss_and_grad(tensors, task_weight, weight, ahead)
        if needed:
            ctx.loss_and_grad, ctx.task_weight, ctx.divergence_weight = loss_and_grad, task_weight, divergence_weight
            ctx.save_for_backward(*tensors)
        loss = task_weight * task
        return loss if divergence_weight is None else loss + divergence_weight * divergence, task, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, grad_task, grad_divergence):
        grads, ctx.grads = ctx.grads, None
        if grads is None or grad_loss is None or grad_task is not None or grad_divergence is not None:
            del grads
            zero = torch.zeros_like(ctx.task_weight)
            weights = [
                (zero if own is None or grad_loss is None else own * grad_loss) + (zero if direct is None else direct)
                for own, direct in ((ctx.task_weight, grad_task), (ctx.divergence_weight, grad_divergence))
            ]
            with torch.autocast(ctx.task_weight.device.type, enabled=False):
                grads = ctx.loss_and_grad(ctx.saved_tensors, *weights, True)[2]
        else:
            for grad in grads:
                if grad is not None:
                    _scale_(grad, grad_loss)
        return None, None, None, *grads


def _scale_(tensor: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply in place. A factor of 1, which is the usual one, leaves memory alone where it can be seen without
    waiting for the device."""
    if tensor.is_cuda and find_spec("triton") is not None:
        import_module(".triton", __package__).scale_(tensor, factor)
    elif tensor.device.type != "cpu" or factor != 1:
        tensor.mul_(factor)
