"""The base of the mixins: nothing at run time, when any trainer may stand behind them; to a type checker, `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Trainer

    from .heads import PredictionHead
    from .window import Window

    class TrainerBehind(Trainer):
        """`Trainer`, and what one mixin asks of another."""

        args: Any  # with the R-Drop settings, which `RDropMixin` adds where they are missing
        model: Any
        compute_loss: Any  # which returns a loss, or a loss and outputs
        push_in_progress: Any
        _window: Window | None

        @property
        def _trainer_behind(self) -> type: ...
        @property
        def _base_model(self) -> nn.Module: ...
        @property
        def _logits_hidden_by(self) -> str | None: ...
        def _label_smoothing(self, head: PredictionHead) -> float: ...
        def _choose_head(self, batches: list[Mapping[str, Any]]) -> PredictionHead: ...
        def _model_inputs(self, inputs: Mapping[str, Any], head: PredictionHead) -> dict[str, Any]: ...
        def _decodable(self, inputs: dict[str, Any]) -> dict[str, Any]: ...
        def _decoder_inputs(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor] | None: ...
        def _call_trainer(self, model: nn.Module, inputs: dict[str, Any]) -> Any: ...

else:
    TrainerBehind = object
