"""What is looked at once, at the start of a training: does the model have noise, and is its loss the stock loss?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.utils import logging

from ..dropout import ActiveDropout, active_dropout, dropout_settings, has_other_noise

logger = logging.get_logger(__name__)


class NoiseCheck:
    """Stops a training whose passes are all alike: without noise R-Drop does nothing."""

    # Where there is dropout, so many R-Drop steps may pass before it shows: LoRA starts with a matrix of zeros behind
    # its dropout, and a learning-rate warm-up keeps it there for a while
    PATIENCE = 20
    # So many items of a micro-batch are compared: each has gone through every dropout of the model
    ITEMS = 256

    def __init__(self):
        self.done = False
        self._steps_alike: set[int] = set()

    def look(
        self,
        model: nn.Module,
        passes: torch.Tensor,
        step: int,
        allowed: bool,
        reduce: Callable[[torch.Tensor], torch.Tensor],
        again: Callable[[], torch.Tensor] | None,
    ) -> None:
        """Compare the passes over one micro-batch.

        Args:
            model: to name its dropout in the message.
            passes: the outputs of some of its items, (m, n, C); a micro-batch without items decides nothing.
            step: the optimizer step.
            allowed: warn instead of raising.
            reduce: sums a tensor over processes, which must all come to one verdict.
            again: computes the outputs once more, with other dropout, and gives the random state back; given where all
                passes ran in one forward, which may round the same row differently at another place in the batch.

        Raises:
            ValueError: the model has no noise.
        """
        active = active_dropout(model)
        alike = bool((passes == passes[:1]).all())
        if again is not None:
            may_be_rounding = not alike and _is_rounding(passes)
            # All processes compute again, or none: a model that is sharded runs on all of them at once
            if reduce(torch.tensor(float(may_be_rounding), device=passes.device)) > 0:
                repeated = again()
                alike = alike or (may_be_rounding and torch.equal(repeated, passes))
        verdict = torch.tensor([passes.numel() > 0, passes.numel() > 0 and not alike], device=passes.device).float()
        compared, differ = reduce(verdict).bool().tolist()
        if not compared:
            return
        if differ:
            self.done = True
            return
        self._steps_alike.add(step)
        if (active or has_other_noise(model)) and len(self._steps_alike) < self.PATIENCE:
            return
        message = _no_noise(model, len(passes), active)
        if not allowed:  # again at the next step, where a trainer catches errors and goes on
            raise ValueError(message + " To go on nevertheless, pass rdrop_allow_deterministic=True.")
        self.done = True
        logger.warning(message)


class LossCheck:
    """Finds out whether a model returns the stock loss of its head, which R-Drop may then compute itself."""

    # One batch may not tell: class weights, for instance, cancel where all rows have one class
    BATCHES = 8

    def __init__(self):
        self.done = False
        self.differs = False
        self._batches = 0

    def look(
        self, own: torch.Tensor, stock: torch.Tensor, dtype: torch.dtype, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Compare the losses of one batch; a batch without labels, whose own loss is NaN, decides nothing.

        Args:
            own: the model's loss.
            stock: the stock loss of its head on the same logits.
            dtype: of the logits.
            reduce: sums a tensor over processes, which must all come to one verdict.
        """
        half = not {own.dtype, dtype}.isdisjoint({torch.float16, torch.bfloat16})
        tolerance = (2e-2 if half else 1e-4) * stock.abs() + 1e-6
        known = own.isfinite()
        verdict = reduce(torch.stack([known, known & ((own - stock).abs() > tolerance)]).float())
        compared, self.differs = verdict.bool().tolist()
        self._batches += compared
        self.done = self.differs or self._batches == self.BATCHES
        if self.differs:
            logger.warning(
                f"The model returns a loss of {own.item():.6g} where the stock loss of its head would be "
                f"{stock.item():.6g}; its own loss is kept for the task part, and R-Drop adds the divergence to it."
            )


def _is_rounding(passes: torch.Tensor) -> bool:
    """Whether the differences between passes, (m, n, C), are so small that rounding may explain them."""
    finite = passes.isfinite().all(0)
    if not finite.any():
        return False
    spread = (passes - passes[0])[:, finite].abs().max()
    return bool(spread <= torch.finfo(passes.dtype).eps ** 0.5 * passes[:, finite].abs().max())


def _no_noise(model: nn.Module, num_passes: int, active: list[ActiveDropout]) -> str:
    """Why R-Drop does nothing on this model, and what to do."""
    name = type(model).__name__
    if active:
        places = ", ".join(map(str, active[:3]))
        return (
            f"The {num_passes} passes of {name} are still identical after {NoiseCheck.PATIENCE} R-Drop steps, although "
            f"it has active dropout ({places}): that does not reach the predictions, so R-Drop has no effect. Set "
            "dropout where it does, for example everywhere with rdrop_trainer.dropout.set_dropout(model, 0.1)."
        )
    config = getattr(model, "config", None)
    zeros = [key for key, p in dropout_settings(config).items() if p == 0] if config is not None else []
    reason = f"these of its settings are 0: {', '.join(zeros)}" if zeros else "its configuration has no dropout setting"
    example = f", or {zeros[0]}=0.1 in the configuration it is built from" if zeros else ""
    return (
        f"The {num_passes} passes of {name} are identical on the first R-Drop step: the model has no active dropout "
        f"({reason}), so R-Drop has no effect. Set dropout before training with "
        f"rdrop_trainer.dropout.set_dropout(model, 0.1){example}."
    )
