"""The head of speech recognition by CTC: its items are the frames of the sound, its task loss is that of whole rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..losses import RDropLoss, rdrop_ctc_loss
from ..losses.reference import IGNORE_INDEX
from ..losses.validation import REDUCTIONS
from .heads import PredictionHead
from .items import Items, Outputs


@dataclass(frozen=True, kw_only=True)
class CTCHead(PredictionHead):
    """Frames, whose distributions over characters are compared, and transcripts, which are of no frame.

    The task loss is the model's own: with `ctc_loss_reduction="mean"` the mean over rows of a row's loss divided by the
    length of its transcript, and the divergence the mean over valid frames; with "sum" both are sums.

    Attributes:
        lengths: how many frames so many positions of the input make, as the model's own loss has it.
        main_input: name of the sound in a batch.
        blank: the class that stands for no character.
        zero_infinity: a row with fewer frames than its transcript needs has a loss of 0.
    """

    lengths: Callable[[torch.Tensor], torch.Tensor]
    main_input: str
    blank: int
    zero_infinity: bool

    of_rows = False

    @classmethod
    def of(cls, model: nn.Module) -> CTCHead:
        """The head of a model for CTC."""
        names = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
        lengths = next((getattr(model, name) for name in names if hasattr(model, name)), None)
        config: Any = model.config
        if lengths is None:
            raise ValueError(
                f"R-Drop does not know how many frames {type(model).__name__} makes of a sound: it has neither "
                f"{' nor '.join(names)}."
            )
        if config.ctc_loss_reduction not in REDUCTIONS:
            raise ValueError(
                f"config.ctc_loss_reduction must be one of {', '.join(REDUCTIONS)}, got {config.ctc_loss_reduction!r}."
            )
        return cls(
            "speech recognition by CTC",
            summed=config.ctc_loss_reduction == "sum",
            lengths=lengths,
            main_input=getattr(model, "main_input_name", "input_values"),
            blank=config.pad_token_id,
            zero_infinity=config.ctc_zero_infinity,
        )

    def frames(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The valid frames of each row, (B,) integers."""
        mask = batch.get("attention_mask")
        sound = batch[self.main_input]
        positions = sound.new_full((len(sound),), sound.shape[1], dtype=torch.long) if mask is None else mask.sum(-1)
        return self.lengths(positions).long().clamp(min=0)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        frames = self.frames(batch)
        return torch.stack([frames.new_full((), len(frames)), frames.sum()])[None]

    def targets(self, batch: Mapping[str, Any]) -> list[torch.Tensor]:
        return [batch[key] for key in self.labels]

    def items(self, outputs: Outputs, batch: Mapping[str, Any], num_passes: int) -> list[Items]:
        frames, [labels] = self.frames(batch), self.targets(batch)
        logits = tuple(outputs[self.outputs[0]])
        size = num_passes // len(logits) * len(frames)
        if logits[0].dim() != 3 or len(logits[0]) != size:
            raise ValueError(
                f"R-Drop took the head for {self.name}, whose {self.outputs[0]!r} have the shape (rows, frames, "
                f"characters) with {size} rows; the model returned {tuple(logits[0].shape)}."
            )
        mask = torch.arange(logits[0].shape[1], device=frames.device) < frames[:, None]  # (B, T)
        none = torch.full((mask.numel(),), IGNORE_INDEX, device=mask.device)
        loss = partial(self._loss, transcripts=labels, frames=frames)
        return [Items(tuple(z.flatten(0, 1) for z in logits), none, mask.flatten(), loss=loss)]

    def rows_of_items(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        frames = self.frames(batch)
        return torch.arange(len(frames), device=frames.device).repeat_interleave(frames), len(frames)

    def _loss(
        self,
        outputs: tuple[torch.Tensor, ...],
        labels: torch.Tensor | None,
        *,
        transcripts: torch.Tensor,
        frames: torch.Tensor,
        alpha: float,
        num_passes: int,
        num_items: torch.Tensor,
        num_divergence_items: torch.Tensor,
        label_smoothing: float,
        **_: Any,
    ) -> RDropLoss:
        """In the place of `rdrop_loss`: the transcripts are labels of rows, not of the frames that the items are."""
        if label_smoothing:
            raise ValueError(
                f"label_smoothing_factor={label_smoothing} does not fit {self.name}: no label is of one frame. Set it "
                "to 0."
            )
        length = outputs[0].shape[0] * len(outputs) // (num_passes * len(frames))
        return rdrop_ctc_loss(
            [z.unflatten(0, (-1, length)) for z in outputs],
            None if labels is None else transcripts,
            frames,
            alpha=alpha,
            num_passes=num_passes,
            blank=self.blank,
            zero_infinity=self.zero_infinity,
            reduction="sum" if self.summed else "mean",
            num_items=num_items,
            num_divergence_items=num_divergence_items,
        )
