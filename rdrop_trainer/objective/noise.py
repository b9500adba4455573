"""Does the model have noise? Without it all passes are alike, and R-Drop does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers.utils import logging

from ..dropout import dropout_settings
from .noise_of import Noise, noise_of
from .training import Training
from .window import StepSettings, Window

logger = logging.get_logger(__name__)

# So many windows may pass before the noise shows that a model has: LoRA starts with a matrix of zeros after its
# dropout, and a learning-rate warm-up keeps it there for a while
PATIENCE = 20
# So many items of a micro-batch are enough to compare: each has gone through every dropout of the model
ITEMS = 256


@dataclass(frozen=True)
class NoiseWatch:
    """Stops a training whose passes are all alike.

    Attributes:
        windows_alike: in how many windows the passes were identical so far.
        last: the last of them.
    """

    windows_alike: int = 0
    last: Window | None = None

    def compare(
        self,
        training: Training,
        settings: StepSettings,
        window: Window,
        passes: torch.Tensor,
        again: Callable[[], torch.Tensor] | None = None,
    ) -> NoiseWatch | None:
        """Compare the passes over one micro-batch.

        Args:
            training: of the model; all its processes must come to one verdict.
            settings: of the step. A second view may change the inputs of other micro-batches than this one.
            window: the micro-batches of the step.
            passes: the outputs of some of its items, (m, ...); a micro-batch without items decides nothing.
            again: computes the outputs once more, with other dropout and no view; the random state is as before. It is
                given where all passes ran in one forward, which may round a row differently at another place.

        Returns:
            The watch to go on with; None when all is decided.

        Raises:
            ValueError: the model has no noise.
        """
        model, has_view = training.model, settings.second_view is not None
        alike = bool((passes == passes[:1]).all())
        if again is not None:
            may_be_rounding = not alike and is_rounding(passes)
            # All processes compute again, or none: a sharded model runs on all of them at once
            if training.on_any_process(may_be_rounding):
                repeated = again()
                alike = alike or (may_be_rounding and torch.equal(repeated, passes))
        has_items = passes.numel() > 0
        compared, differ = training.on_any_process([has_items, has_items and not alike])
        if not compared:
            return self
        if differ:
            return None
        windows_alike = self.windows_alike + (self.last is not window)
        sources = noise_of(model)
        if (has_view or (sources and trains(model))) and windows_alike < PATIENCE:
            return replace(self, windows_alike=windows_alike, last=window)
        message = _no_noise(model, len(passes), sources, has_view)
        if not settings.allow_deterministic:
            raise ValueError(message + " To go on nevertheless, pass rdrop_allow_deterministic=True.")
        logger.warning(message)
        return None


def trains(model: nn.Module) -> bool:
    """Whether some module is in training mode, without which most dropout is off."""
    return any(module.training for module in model.modules())


def is_rounding(passes: torch.Tensor) -> bool:
    """Whether the differences between passes, (m, ...), are so small that rounding may explain them."""
    finite = passes.isfinite().all(0)
    if not finite.any():
        return False
    spread = (passes - passes[0])[:, finite].abs().max()
    return bool(spread <= torch.finfo(passes.dtype).eps ** 0.5 * passes[:, finite].abs().max())


def refuse_evaluation_mode(model: nn.Module, passes: torch.Tensor) -> None:
    """Refuse passes, (m, ...), of a model in evaluation mode that are all alike, on this process alone."""
    if passes.numel() > 0 and (bool((passes == passes[:1]).all()) or is_rounding(passes)):
        raise ValueError(_in_evaluation_mode(model))


def _in_evaluation_mode(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} is in evaluation mode, as from_pretrained returns it and an evaluation leaves it, and "
        "its passes are alike, so R-Drop has no effect: call model.train() first."
    )


def _no_noise(model: nn.Module, num_passes: int, sources: list[Noise], has_view: bool) -> str:
    """Why R-Drop does nothing on this model, and what to do."""
    name = type(model).__name__
    if has_view:
        return (
            f"The {num_passes} passes of {name} are still identical after {PATIENCE} R-Drop steps: what second_view "
            "changes does not reach the predictions, nor does any dropout, so R-Drop has no effect."
        )
    if not trains(model):
        return _in_evaluation_mode(model)
    if sources:
        return (
            f"The {num_passes} passes of {name} are still identical after {PATIENCE} R-Drop steps, although it has "
            f"noise: {'; '.join(map(str, sources))}. That does not reach the predictions, so R-Drop has no effect. Set "
            "dropout where it does, for example everywhere with rdrop_trainer.dropout.set_dropout(model, 0.1)."
        )
    config = getattr(model, "config", None)
    zeros = [key for key, p in dropout_settings(config).items() if p == 0] if config is not None else []
    reason = f"these of its settings are 0: {', '.join(zeros)}" if zeros else "its configuration has no dropout setting"
    example = f", or {zeros[0]}=0.1 in the configuration it is built from" if zeros else ""
    return (
        f"The {num_passes} passes of {name} are identical on the first R-Drop step: the model has no active dropout "
        f"({reason}), so R-Drop has no effect. Set dropout before training with rdrop_dropout=0.1 in the arguments of "
        f"the trainer, rdrop_trainer.dropout.set_dropout(model, 0.1){example}."
    )
