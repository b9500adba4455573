"""R-Drop for the cross-encoders of sentence-transformers, which rank documents. Needs that package (6.2 or later)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

from .head import Head
from .objective import StepSettings
from .objective.training import Training
from .trainer import RDropMixin
from .training_args import RDropArguments

_ITEMS = "rdrop_items"  # a value for each query or pair, by which they are counted


@dataclass
class RDropCrossEncoderTrainingArguments(RDropArguments, CrossEncoderTrainingArguments):
    """`CrossEncoderTrainingArguments` with the settings of R-Drop."""


class _WithLogits(CrossEncoderTrainer):
    """A `CrossEncoderTrainer` whose `compute_loss` also returns the scores that its loss was made of."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs, scores = dict(inputs), []
        inputs.pop(_ITEMS, None)
        recording = self.model.register_forward_hook(lambda module, args, output: scores.append(output["scores"]))
        try:
            loss = super().compute_loss(model, dict(inputs))
        finally:
            recording.remove()
        if not return_outputs:
            return loss
        documents = _documents(inputs)
        rows = len(inputs["label"])
        logits = torch.cat(scores)
        activation = getattr(self.loss, "activation_fn", None)
        if activation is not None:  # what the loss takes for logits, or for predictions
            logits = activation(logits)
        if len(logits) != (sum(documents) if documents else rows):
            raise ValueError(
                f"The loss made {len(logits)} scores of {rows} rows, and R-Drop compares one for each pair that has a "
                "label: use a loss over pairs (BinaryCrossEntropyLoss, CrossEntropyLoss, MSELoss) or over lists of "
                "documents (ListNetLoss, LambdaLoss, ...)."
            )
        return loss, {"logits": _lists(logits.view(-1), documents) if documents else logits.view(rows, -1)}


class RDropCrossEncoderTrainer(RDropMixin, _WithLogits):  # type: ignore[misc, unused-ignore]  # a parameter's name
    """`CrossEncoderTrainer` with R-Drop; the loss of sentence-transformers is kept.

    What is compared depends on the data and the loss. Labels in lists, a document each: the softmax over the documents
    of a query, whose logits are their scores (listwise). One score a pair: Bernoulli, and for `MSELoss` the squared
    difference; `rdrop_problem` says otherwise. Several scores a pair: their softmax. Scores are taken behind the
    `activation_fn` of the loss. An item is a query, or a pair.

    The passes run one after the other, since the loss itself makes the model's inputs: "concat" is "sequential" here.
    """

    def _step_settings(self) -> StepSettings:
        settings = super()._step_settings()
        return replace(settings, forward_mode="sequential") if settings.forward_mode == "concat" else settings

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """`RDropMixin.get_batch_samples`, of batches that hold a value for each item."""
        return super().get_batch_samples(map(_with_items, epoch_iterator), num_batches, device)

    def _training(self) -> Training:
        if isinstance(self.loss, dict):
            raise ValueError("R-Drop needs one loss for all data sets, but got a dictionary of losses.")
        data = self.train_dataset
        row = next(iter(data.values()))[0] if isinstance(data, dict) else data[0]
        label = next((row[name] for name in DEFAULT_LABEL_COLUMNS if name in row), None)
        training = super()._training()
        if training.heads:
            raise ValueError("rdrop_heads: a cross-encoder has one head, its scores; leave it out.")
        problem = training.problem
        if problem == "auto":
            problem = "single_label"
            if self.model.num_labels == 1 and not isinstance(label, Collection):
                problem = "regression" if isinstance(self.loss, losses.MSELoss) else "multi_label"
        training.heads, training.problem = [Head("logits", _ITEMS, problem)], "auto"
        return training


def _with_items(batch: dict[str, Any]) -> dict[str, Any]:
    if "label" not in batch:
        raise ValueError(
            f"R-Drop compares the scores of pairs or lists that have labels, but this data has {', '.join(batch)}. "
            "Losses without labels (MultipleNegativesRankingLoss) draw other pairs in every pass."
        )
    return {**batch, _ITEMS: torch.zeros(len(batch["label"]), dtype=torch.long)}


def _documents(batch: dict[str, Any]) -> list[int] | None:
    """How many documents each query has, by its list of labels; None: each row is a pair with one label."""
    labels = batch.get("label")
    if not isinstance(labels, list):
        return None
    numbers = [len(of_query) for of_query in labels]
    columns = [column for key, column in batch.items() if key != "label" and isinstance(column, list)]
    if not any([isinstance(docs, (list, tuple)) and len(docs) for docs in column] == numbers for column in columns):
        raise ValueError(
            "R-Drop takes a list of labels for those of a query's documents, which must be a list as well; this data "
            f"has a document a column ({', '.join(key for key in batch if key != 'label')}), as MarginMSELoss takes "
            "it: put them into one column of lists, for a loss over lists of documents (ListNetLoss, LambdaLoss, ...)."
        )
    return numbers


def _lists(scores: torch.Tensor, documents: list[int]) -> torch.Tensor:
    """The scores of all documents, (documents,), a row for each query, -inf behind its last."""
    return torch.nn.utils.rnn.pad_sequence(scores.split(documents), batch_first=True, padding_value=-torch.inf)
