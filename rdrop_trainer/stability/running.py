"""Running a model for a measurement: its batches, the items that count, and restoring everything afterwards."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..objective.head_of import base_model, has_listed_head, head_of
from ..objective.heads import SEQ2SEQ, PredictionHead
from ..objective.snapshot import same_noise

_ROW_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


def batches_of(model: nn.Module, dataset: Any, collate: Callable | None, size: int) -> Iterator[dict[str, Any]]:
    """Batches of the columns that the model takes, on its device; labels of -100 where the rows have none."""
    # The signature of the class, because the model's own method is wrapped while it trains. Adapters take all that
    # the model below them does, and do not say so
    known = inspect.signature(type(base_model(model)).forward).parameters.keys() - {"self"}
    anything = "kwargs" in known and len(known) <= 2  # a wrapper; its signature does not say what the model takes
    device = next(model.parameters()).device

    def collate_known(rows: list[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        wanted = [{k: v for k, v in row.items() if anything or k in known or k in _ROW_LABELS} for row in rows]
        return (collate or default_data_collator)(wanted)

    for batch in DataLoader(dataset, batch_size=size, collate_fn=collate_known):
        batch = send_to_device(dict(batch), device)
        yield batch if any(key in batch for key in _ROW_LABELS) else {**batch, "labels": no_labels(model, batch)}


def no_labels(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Labels that mark nothing as labeled: whole rows, or all their tokens."""
    main = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    rows, tokens = (torch.full(shape, -100, device=main.device) for shape in (main.shape[:1], main.shape[:2]))
    # The labels of a class that transformers does not list would decide what it predicts
    are_tokens = has_listed_head(model) and head_of(model, {**batch, "labels": tokens}).tokens
    return tokens if are_tokens else rows


@torch.no_grad()
def items_of(
    model: nn.Module, head: PredictionHead, batch: Mapping[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The logits (n, C) in float64 and the labels (n, ...) of the items that count, for each part of the head."""
    # Without labels the model computes no loss. An encoder-decoder keeps them: its decoder's inputs are made of them
    keep = head.labels if head.name == SEQ2SEQ.name and batch.get("decoder_input_ids") is None else ()
    outputs = model(**{key: value for key, value in batch.items() if key not in _ROW_LABELS or key in keep})
    return counted_items(head, outputs, batch)


def counted_items(
    head: PredictionHead, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same of a model's outputs."""
    logits = {name: (outputs[name],) for name in head.outputs}
    counted = (part.counted(1) for part in head.items(logits, batch, 1))
    pairs = [(passes[0], labels) for passes, labels in counted]
    if any(logits.device.type == "mps" for logits, _ in pairs):  # which has no float64
        pairs = [(logits.cpu(), labels.cpu()) for logits, labels in pairs]
    return [(logits.double(), labels) for logits, labels in pairs]


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Seeds all random numbers, and restores their states, and the model's buffers, afterwards."""
    with same_noise(model, next(model.parameters()).device):
        torch.manual_seed(seed)
        # Some models draw the layers to drop and the spans to mask from Python's and NumPy's random numbers
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


def dropout_on(model: nn.Module) -> None:
    """Dropout as in training, and the other noise of training; norms go on using their stored statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
