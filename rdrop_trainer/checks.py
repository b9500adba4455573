"""What is looked at once, at the start of a training: does the model have noise, and is its loss the stock loss?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.utils import logging

from .dropout import ActiveDropout, active_dropout, dropout_settings

logger = logging.get_logger(__name__)


class NoiseCheck:
    """Stops a training whose passes are all alike: without noise R-Drop does nothing."""

    def __init__(self):
        self.done = False
        self._alike_before = False

    def look(self, model: nn.Module, logits: torch.Tensor, num_passes: int, allowed: bool) -> None:
        """Compare the passes of one R-Drop step.

        Args:
            model: to name its dropout in the message.
            logits: of the step's items, (m·n, C); a step without items decides nothing.
            num_passes: m.
            allowed: warn instead of raising.

        Raises:
            ValueError: the passes are identical.
        """
        active = active_dropout(model)
        alike = passes_are_identical(logits, num_passes, has_dropout=bool(active))
        if alike is None:
            return
        if alike and active and not self._alike_before:
            # Dropout in front of a matrix of zeros (LoRA at its start) shows an effect from the second step on
            self._alike_before = True
            return
        self.done = True
        if alike and not allowed:
            raise ValueError(_no_noise(model, num_passes, active))
        if alike:
            logger.warning(_no_noise(model, num_passes, active))


class LossCheck:
    """Finds out whether a model returns the stock loss of its head, which R-Drop may then compute itself."""

    def __init__(self):
        self.done = False
        self.differs = False

    def look(
        self, own: torch.Tensor, stock: torch.Tensor, half: bool, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Compare the losses of one batch; a batch without labels, whose own loss is NaN, decides nothing.

        Args:
            own: the model's loss.
            stock: the stock loss of its head on the same logits.
            half: whether half precision had a part in either.
            reduce: sums a tensor over processes, which must all come to one verdict.
        """
        tolerance = (2e-2 if half else 1e-4) * stock.abs() + 1e-6
        known = own.isfinite()
        verdict = reduce(torch.stack([known, known & ((own - stock).abs() > tolerance)]).float())
        self.done, self.differs = verdict.bool().tolist()
        if self.differs:
            logger.warning(
                f"The model returns a loss of {own.item():.6g} where the stock loss of its head would be "
                f"{stock.item():.6g}; its own loss is kept for the task part, and R-Drop adds the divergence to it."
            )


def passes_are_identical(logits: torch.Tensor, num_passes: int, has_dropout: bool) -> bool | None:
    """Whether all passes gave the same logits, (m·n, C); None when there are no items to compare.

    Without any active dropout, differences that rounding explains count as none: one forward over all rows may round
    the same row differently at another place in the batch.
    """
    if logits.numel() == 0:
        return None
    passes = logits.detach().unflatten(0, (num_passes, -1))  # (m, n, C)
    # `where` and not a plain difference: two masked classes (-inf) are equal
    spread = torch.where(passes == passes[0], 0, passes - passes[0]).abs().max().item()
    finite = passes[passes.isfinite()].abs()
    rounding = 0.0
    if not has_dropout and finite.numel():
        rounding = torch.finfo(passes.dtype).eps ** 0.5 * finite.max().item()
    return spread <= rounding


def _no_noise(model: nn.Module, num_passes: int, active: list[ActiveDropout]) -> str:
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
