"""Stability under the model's own dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from ..dropout import active_dropout
from ..errors import InputError
from ..objective.head_of import head_of
from ..objective.snapshot import same_modes
from .measure import Stability, compare
from .running import batches_of, counted_items, dropout_on, items_of, seeded


def dropout_stability(
    model: nn.Module,
    dataset: Any,
    num_samples: int = 8,
    *,
    logits: Any = None,
    data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Stability:
    """How stable a model's predictions are under its own dropout.

    Every example goes through the model once as in evaluation, and `num_samples` times with dropout on (and the other
    noise of training, such as layer drop). Norms keep using their stored statistics. Afterwards the model and the state
    of the random numbers are as they were.

    Args:
        model: any model that R-Drop trains.
        dataset: rows as for a `Trainer`'s evaluation. Labels say which tokens count; rows and tokens may have none.
        num_samples: predictions with dropout, at least 2.
        logits: (N, C), what the model predicts for the rows in this order without dropout, as `Trainer.predict` returns
            it; the rows then need not go through the model once more for it. For heads of one prediction a row.
        data_collator: makes batches; default: `transformers.default_data_collator`.
        batch_size: rows per batch.
        seed: of the dropout.

    Returns:
        Per row: `flips`, the share of the samples that predict another label than the model does without dropout, and
        `divergence` between the samples.

    Raises:
        InputError: no active dropout, too few samples, an empty data set, or logits of other rows or for another head.
        ValueError: a head that R-Drop does not fit.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> found = dropout_stability(model, [{"input_ids": [1, 2, 3]}] * 5)
        >>> found.flips.shape, found.mean_divergence > 0
        ((5,), True)
    """
    if num_samples < 2:
        raise InputError(f"num_samples: expected at least 2, got {num_samples}")
    if not active_dropout(model):
        raise InputError(
            f"{type(model).__name__} has no active dropout, so its predictions cannot differ; "
            "rdrop_trainer.dropout.set_dropout(model, 0.1) turns it on"
        )
    if logits is not None and len(logits) != len(dataset):
        raise InputError(f"logits: expected a row for each of {len(dataset)} rows, got {len(logits)}")
    known = None if logits is None else torch.as_tensor(logits, device=next(model.parameters()).device)
    batches = []
    with same_modes(model), seeded(model, seed):
        for start, batch in zip(count(0, batch_size), batches_of(model, dataset, data_collator, batch_size)):
            head = head_of(model, batch)
            if known is None:
                model.eval()
                own = items_of(model, head, batch)
            elif head.tokens or len(head.outputs) > 1:
                raise InputError(f"logits: are for heads of one prediction a row, not for {head.name}; leave them out")
            else:
                own = counted_items(head, {head.outputs[0]: known[start : start + batch_size]}, batch)
            dropout_on(model)
            samples = ([part for part, _ in items_of(model, head, batch)] for _ in range(num_samples))
            drawn = [torch.stack(part) for part in zip(*samples, strict=True)]
            batches.append(compare(head, batch, [part for part, _ in own], drawn))
    if not batches:
        raise InputError("the data set is empty, expected rows to predict")
    return Stability(*(np.concatenate(values) for values in zip(*batches, strict=True)))
