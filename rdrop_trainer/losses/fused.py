"""The autograd Function around the fused backends: the gradient is computed along with the loss, not from a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TypeAlias

import torch
from torch.autograd.function import once_differentiable

from . import devices

SCALED_AT_A_TIME = 2**22  # numbers in a wider type
TRITON_SCALES_FROM = 2**17  # numbers: fewer are left to torch, which has less to do before a launch
Number: TypeAlias = int | float | torch.Tensor  # a tensor: a scalar, whose value is not waited for
Terms: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss, task loss, divergence
# loss_and_grad(tensors, task_scale, divergence_scale, with_grad) returns task loss and divergence, the loss
# task_scale * task_loss + divergence_scale * divergence, and, if wanted, the gradients of the loss for the tensors.
# A divergence_scale of None: the divergence is reported, but no part of the loss
LossAndGrad = Callable[
    [tuple[torch.Tensor | None, ...], Number, Number | None, bool],
    tuple[Terms, tuple[torch.Tensor | None, ...] | None],
]


class FusedLoss(torch.autograd.Function):
    """`(loss, task_loss, divergence)` of some tensors; loss = task_loss + divergence_scale * divergence.

    The forward pass computes the gradient of `loss`, because the logits are at hand then. It keeps this gradient and
    the tensors themselves, nothing else. The backward pass computes the gradient instead in three cases: it also comes
    through `task_loss` or `divergence`; the graph is used a second time; the tensors are float16, where the gradient
    would vanish before a gradient scaler reaches it.
    """

    @staticmethod
    def forward(ctx, loss_and_grad: LossAndGrad, divergence_scale: float | None, *tensors):
        ctx.set_materialize_grads(False)
        needed = any(ctx.needs_input_grad)
        ahead = needed and divergence_scale is not None and all(t is None or t.dtype != torch.float16 for t in tensors)
        with _without_autocast(tensors[0]):
            terms, ctx.grads = loss_and_grad(tensors, 1.0, divergence_scale, ahead)
        if needed:
            ctx.loss_and_grad, ctx.divergence_scale = loss_and_grad, divergence_scale
            ctx.save_for_backward(*tensors)
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, grad_task, grad_divergence):
        grads, ctx.grads = ctx.grads, None
        if grads is None or grad_loss is None or grad_task is not None or grad_divergence is not None:
            del grads
            through_loss = None if grad_loss is None or not ctx.divergence_scale else grad_loss * ctx.divergence_scale
            scales = _sum(grad_loss, grad_task), _sum(through_loss, grad_divergence)
            tensors = ctx.saved_tensors
            with _without_autocast(tensors[0]):
                grads = ctx.loss_and_grad(tensors, *scales, True)[1]
        else:
            for grad in grads:
                if grad is not None:
                    _scale_(grad, grad_loss)
        return None, None, *grads


def _without_autocast(tensor: torch.Tensor) -> AbstractContextManager:
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _sum(first: torch.Tensor | None, second: torch.Tensor | None) -> Number:
    """Of two gradients, of which one or both may be missing."""
    if first is None:
        return 0.0 if second is None else second
    return first if second is None else first + second


def _scale_(tensor: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply in place. A factor of 1, which is the usual one, leaves memory alone where it can be seen without
    waiting for the device."""
    if devices.can_read(factor) and factor == 1:
        return
    same_type = tensor.dtype == factor.dtype
    if (tensor.numel() >= TRITON_SCALES_FROM or not same_type) and devices.has_triton(tensor):
        import_module(".triton", __package__).scale_(tensor, factor)
    elif same_type or tensor.device.type == "cpu":
        tensor.mul_(factor)
    else:  # a device would round the factor to the type of the tensor
        for part in tensor.split(max(1, SCALED_AT_A_TIME * len(tensor) // max(1, tensor.numel()))):
            part.copy_(part.to(factor.dtype) * factor)


def one_over(count: Number, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """1 / count, and 1 where nothing was counted, as a scalar on the device; without waiting for it."""
    if isinstance(count, torch.Tensor):
        return 1 / count.where(count > 0, 1).to(device, dtype)
    return torch.full((), 1 / count if count > 0 else 1.0, dtype=dtype, device=device)
