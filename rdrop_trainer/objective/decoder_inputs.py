"""What a decoder is fed where it is given no labels to make its inputs of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .head_of import config_value


def without_labels(base: nn.Module, batch: Mapping[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """A batch without its labels, but with the decoder inputs that they stand for.

    The labels stay where the model makes its decoder inputs of them, and cannot be asked for those alone.
    """
    made = decoder_inputs(base, batch)
    if made is None:
        return dict(batch)
    return {key: value for key, value in batch.items() if key not in labels} | made


def decoder_inputs(base: nn.Module, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """The decoder inputs that the labels stand for, empty if none are needed; None if the model cannot say."""
    labels = batch.get("labels")
    given = any(batch.get(key) is not None for key in ("decoder_input_ids", "decoder_inputs_embeds"))
    decodes = config_value(base, "is_encoder_decoder")
    if given or not decodes or labels is None or labels.dim() != 2 or labels.is_floating_point():
        return {}
    prepare = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    return None if prepare is None else {"decoder_input_ids": prepare(labels=labels)}
