"""Running a model for a measurement: batches, the items that count, and everything left as it was."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..objective.heads import SEQ2SEQ, PredictionHead, head_of

_ROW_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


def batches_of(model: nn.Module, dataset: Any, collate: Callable | None, size: int) -> Iterator[dict[str, Any]]:
    # Of the class: while it trains, the method of the model itself is wrapped
    known = inspect.signature(type(model).forward).parameters.keys() - {"self"}
    anything = "kwargs" in known and len(known) <= 2  # a wrapper, which says nothing of what is inside
    device = next(model.parameters()).device

    def taken(rows: list[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        wanted = [{k: v for k, v in row.items() if anything or k in known or k in _ROW_LABELS} for row in rows]
        return (collate or default_data_collator)(wanted)

    for batch in DataLoader(dataset, batch_size=size, collate_fn=taken):
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        yield batch if any(key in batch for key in _ROW_LABELS) else {**batch, "labels": _no_labels(model, batch)}


def _no_labels(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Labels that mark nothing as labeled: whole rows, or all their tokens."""
    main = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    rows = torch.full((len(main),), -100, device=main.device)
    return torch.full_like(main, -100) if head_of(model, {**batch, "labels": rows}).tokens else rows


@torch.no_grad()
def items_of(
    model: nn.Module, head: PredictionHead, batch: Mapping[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The logits (n, C) in float64 and the labels (n, ...) of the items that count, for each part of the head."""
    # Without labels the model computes no loss; an encoder-decoder makes its decoder's inputs of them
    keep = head.labels if head.name == SEQ2SEQ.name and batch.get("decoder_input_ids") is None else ()
    outputs = model(**{key: value for key, value in batch.items() if key not in _ROW_LABELS or key in keep})
    logits = {name: (outputs[name],) for name in head.outputs}
    counted = (part.counted(1) for part in head.items(logits, batch, 1))
    return [(passes[0].double(), labels) for passes, labels in counted]


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers of their own for the device of the model; those that were being drawn go on behind."""
    device = next(model.parameters()).device
    # Some models draw layers to drop and spans to mask from these
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def dropout_on(model: nn.Module) -> None:
    """Dropout as in training, and the other noise of training; norms go on using their stored statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
