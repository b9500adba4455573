"""What is looked at once, at the start of a training: does the model have noise, and whose loss is its loss?"""

from __future__ import annotations

import torch
from torch import nn

from .dropout import ActiveDropout, dropout_settings


def passes_are_identical(logits: torch.Tensor, num_passes: int, has_dropout: bool) -> bool | None:
    """Whether all passes gave the same logits, (m·n, C); None when there are no items to compare.

    Without any active dropout, differences that rounding explains count as none: one forward over all rows may round
    the same row differently at another place in the batch.
    """
    passes = logits.detach().unflatten(0, (num_passes, -1)) if len(logits) else logits  # (m, n, C)
    if passes.numel() == 0:
        return None
    # `where` and not a plain difference: two masked classes (-inf) are equal
    spread = torch.where(passes == passes[0], 0, passes - passes[0]).abs().max().item()
    finite = passes[passes.isfinite()].abs()
    rounding = 0.0
    if not has_dropout and finite.numel():
        rounding = torch.finfo(passes.dtype).eps ** 0.5 * finite.max().item()
    return spread <= rounding


def no_noise_message(model: nn.Module, num_passes: int, active: list[ActiveDropout]) -> str:
    """Why R-Drop does nothing on this model, and what to do."""
    name = type(model).__name__
    if active:
        places = ", ".join(map(str, active[:3]))
        return (
            f"The {num_passes} passes of {name} are still identical on the second R-Drop step, although it has active "
            f"dropout ({places}): it does not reach the predictions. R-Drop has no effect; set dropout where it does "
            "(rdrop_trainer.dropout.set_dropout(model, 0.1)), or pass rdrop_allow_deterministic=True to go on."
        )
    zeros = [key for key, p in dropout_settings(model.config).items() if p == 0] if hasattr(model, "config") else []
    reason = f"these of its settings are 0: {', '.join(zeros)}" if zeros else "its configuration has no dropout setting"
    example = f", or {zeros[0]}=0.1 in the configuration it is built from" if zeros else ""
    return (
        f"The {num_passes} passes of {name} are identical on the first R-Drop step: the model has no active dropout "
        f"({reason}), so R-Drop has no effect. Set dropout before training with "
        f"rdrop_trainer.dropout.set_dropout(model, 0.1){example}, or pass rdrop_allow_deterministic=True to go on."
    )


def is_another_loss(own: torch.Tensor, stock: torch.Tensor, half: bool) -> torch.Tensor:
    """Whether a model's own loss is another than the stock loss of its head, as two flags: (decided, differs).

    A batch without a label has a loss of NaN and decides nothing. `half`: computed in half precision somewhere.
    """
    tolerance = (2e-2 if half else 1e-4) * stock.abs() + 1e-6
    return torch.stack([own.isfinite(), own.isfinite() & ((own - stock).abs() > tolerance)])
