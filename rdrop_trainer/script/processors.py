"""From rows to answers, for each kind of head: features, batches, decoding and scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from .._extras import import_optional
from ..errors import InputError
from ..glue.by_class import scores_by_class
from ..glue.choice import ChoiceCollator, decode_choices, make_choice_features
from ..glue.features import LabelMap, decode_labels, make_features
from ..glue.generation import decode_texts, make_text_features
from ..glue.language_models import MaskingCollator, losses_of_lines, make_block_features, mask, token_losses
from ..glue.metrics import load_metric
from ..glue.passages import NO_ANSWER
from ..glue.questions import POSITIONS, decode_answers, make_question_features
from ..glue.tag_features import decode_tags, make_tag_features, tag_names
from ..glue.task import Task
from .arguments import DataArguments

logger = logging.getLogger(__name__)


class Processor:
    """Sequence classification and regression; the other heads derive from it.

    Args:
        labels: how the task's label ids become the model's; None for a task without label names.
        max_length: longest input, in tokens.
        multiple_of: batches are padded to a multiple of so many tokens.
    """

    label_columns: tuple[str, ...] = ("labels",)
    pipeline = "text-classification"  # what the Hub calls models of this kind

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: LabelMap | None,
        data_args: DataArguments,
        max_length: int,
        multiple_of: int | None = None,
    ):
        self.task, self.tokenizer, self.labels, self.data_args = task, tokenizer, labels, data_args
        self.max_length, self.multiple_of = max_length, multiple_of
        self.padding = "max_length" if data_args.pad_to_max_length else False

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        """The model's inputs for rows of the task, to train on them or not."""
        return make_features(rows, self.task, self.tokenizer, self.labels, self.max_length, self.padding)

    def collator(self) -> Callable:
        """The function that makes a batch of features."""
        if self.padding:
            return default_data_collator
        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self.multiple_of)

    def keep_logits(self, predictions: Any, labels: Any) -> Any:
        """What is kept of a batch that is evaluated: a trainer's `preprocess_logits_for_metrics`.

        Encoder-decoders also return the states of their encoder, which take a thousand times the memory.
        """
        return predictions[0] if isinstance(predictions, tuple) else predictions

    def broke_down(self, predictions: Any) -> bool:
        """Whether logits are NaN or infinite, so that there are no answers: the largest would be the first class."""
        if self.task.head not in ("sequence", "choice", "tokens"):
            return False
        return not np.isfinite(predictions.max(-1)).all()  # one class may be at -inf

    def answers(self, predictions: Any, features: datasets.Dataset, rows: datasets.Dataset) -> list:
        """The answers to rows, in the form that `write_submission` takes, from the predictions for their features."""
        return decode_labels(self.task, predictions, self.labels).tolist()

    def references(self, rows: datasets.Dataset) -> list:
        """What each row is scored against; None where it does not say."""
        if self.task.is_regression:
            return [None if math.isnan(label) else label for label in rows["label"]]
        return [label if label >= 0 else None for label in rows["label"]]

    def compute_metrics(self, features: datasets.Dataset, rows: datasets.Dataset) -> Callable | None:
        """The `compute_metrics` of a trainer that evaluates these features; None where nothing can be scored."""
        if not self.task.metrics:
            return None
        if all(reference is None for reference in self.references(rows)):
            raise InputError(f"{self.task.name}: the references have no labels, as in a test set; nothing to score")

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            if self.broke_down(prediction.predictions):  # the scores of perfect answers are the same in number and name
                return dict.fromkeys(self.scores(self.references(rows), rows), float("nan"))
            return self.scores(self.answers(prediction.predictions, features, rows), rows)

        load_metric(self.task)  # a package that it needs is missed now
        return compute

    def has_answers(self, rows: datasets.Dataset) -> bool:
        """Whether test rows come with their answers; they are then scored."""
        return bool(self.task.metrics) and any(reference is not None for reference in self.references(rows))

    def scores(self, answers: list, rows: datasets.Dataset) -> dict[str, float]:
        """Scores of answers to rows; those without a reference do not count."""
        pairs = [pair for pair in zip(answers, self.references(rows), strict=True) if pair[1] is not None]
        predictions, references = [answer for answer, _ in pairs], [reference for _, reference in pairs]
        return load_metric(self.task).compute(predictions=predictions, references=references)

    @property
    def has_classes(self) -> bool:
        """Whether answers are classes of rows, which `by_class` tells apart."""
        return self.task.head == "sequence" and not self.task.is_regression

    def by_class(self, answers: list, rows: datasets.Dataset) -> dict[str, Any]:
        """How well each class is predicted, as of `scores_by_class`."""
        return scores_by_class(self.task.labels, answers, rows["label"][:])


class ChoiceProcessor(Processor):
    """Multiple choice."""

    pipeline = "multiple-choice"

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        import_optional("scipy.optimize")  # the answers need it; better missed now than after the training
        return make_choice_features(rows, self.tokenizer, self.max_length, self.padding)

    def collator(self) -> Callable:
        return ChoiceCollator(self.tokenizer, self.multiple_of)

    def answers(self, predictions: Any, features: datasets.Dataset, rows: datasets.Dataset) -> list:
        return decode_choices(predictions, rows)


class TokenProcessor(Processor):
    """Token classification."""

    pipeline = "token-classification"

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        return make_tag_features(rows, self.task, self.tokenizer, self.labels, self.max_length, self.padding)

    def collator(self) -> Callable:
        return DataCollatorForTokenClassification(self.tokenizer, pad_to_multiple_of=self.multiple_of)

    def answers(self, predictions: Any, features: datasets.Dataset, rows: datasets.Dataset) -> list:
        return decode_tags(self.task, predictions, self.labels, features, rows)

    def references(self, rows: datasets.Dataset) -> list:
        return [tags or None for tags in tag_names(self.task, rows)]  # whole rows: what was cut off counts as missed


class QuestionProcessor(Processor):
    """Extractive questions; a row has one or more windows of features."""

    label_columns = POSITIONS
    pipeline = "question-answering"

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        overlap = self.data_args.doc_stride
        return make_question_features(rows, self.tokenizer, self.max_length, overlap, self.padding)

    def keep_logits(self, predictions: Any, labels: Any) -> Any:
        return predictions[:2]  # of the start and of the end

    def answers(self, predictions: Any, features: datasets.Dataset, rows: datasets.Dataset) -> list:
        longest, threshold = self.data_args.max_answer_length, self.data_args.null_score_diff_threshold
        return decode_answers(predictions, features, rows, longest, threshold)

    def references(self, rows: datasets.Dataset) -> list:
        return rows["answers"][:]

    def has_answers(self, rows: datasets.Dataset) -> bool:
        # An answer that the passage does not contain may stand for one that is kept secret
        pairs = zip(rows["starts"], rows["answers"], strict=True)
        known = [max(starts, default=-1) >= 0 or answers == NO_ANSWER for starts, answers in pairs]
        if any(known) and not all(known):
            logger.warning(
                f"{len(known) - sum(known):,} of {len(known):,} test rows have no answer that stands in their passage "
                f"(the first is {rows['idx'][known.index(False)]}), so the test rows are not scored."
            )
        return all(known)


class TextProcessor(Processor):
    """Sequence to sequence: texts from texts."""

    # Labels stay where rows are predicted: Seq2SeqTrainer needs some for label smoothing. Those of a row without target
    # are special tokens alone, and their loss is not used
    label_columns = ()
    pipeline = "summarization"

    def __init__(self, task: Task, *args: Any, **options: Any):
        super().__init__(task, *args, **options)
        if task.suite == "custom":  # of which nobody says what the texts are
            self.pipeline = "text2text-generation"

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        (column,) = self.task.text_columns
        longest, prefix = self.data_args.max_target_length, self.data_args.source_prefix
        return make_text_features(rows, column, self.tokenizer, self.max_length, longest, self.padding, prefix)

    def collator(self) -> Callable:
        return DataCollatorForSeq2Seq(self.tokenizer, pad_to_multiple_of=self.multiple_of)

    def answers(self, predictions: Any, features: datasets.Dataset, rows: datasets.Dataset) -> list:
        # Several processes repeat rows to fill their last batch, and Seq2SeqTrainer does not remove them
        return decode_texts(predictions[: len(rows)], self.tokenizer)

    def references(self, rows: datasets.Dataset) -> list:
        return rows["target"][:]


class LanguageProcessor(Processor):
    """Causal language models; a row is a line, and features are blocks of their tokens."""

    label_columns = ()  # the texts are
    pipeline = "text-generation"

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        blocks = make_block_features(rows, self.tokenizer, self.max_length, with_end=False)
        return blocks.add_column("labels", blocks["input_ids"][:])

    def collator(self) -> Callable:
        return DataCollatorForTokenClassification(self.tokenizer, pad_to_multiple_of=self.multiple_of)

    def keep_logits(self, predictions: Any, labels: Any) -> Any:
        logits = super().keep_logits(predictions, labels)
        return token_losses(logits, labels, shifted=self.task.head == "causal")

    def answers(self, predictions: Any, features: datasets.Dataset, rows: datasets.Dataset) -> list:
        return losses_of_lines(predictions, features, len(rows))

    def references(self, rows: datasets.Dataset) -> list:
        return rows["text"][:]

    def scores(self, answers: list, rows: datasets.Dataset) -> dict[str, float]:
        losses, counts = (list(column) for column in zip(*answers, strict=True))
        return load_metric(self.task).compute(predictions=losses, references=counts)


class MaskedProcessor(LanguageProcessor):
    """Masked language models; each epoch has other masks, and rows that are evaluated always the same."""

    pipeline = "fill-mask"

    def features(self, rows: datasets.Dataset, is_training: bool = False) -> datasets.Dataset:
        if self.tokenizer.mask_token is None:
            raise InputError(f"{type(self.tokenizer).__name__} has no mask token, which a masked language model needs")
        blocks = make_block_features(rows, self.tokenizer, self.max_length, with_end=True)
        if is_training:
            return blocks
        probability = self.data_args.mlm_probability
        return blocks.map(lambda block: mask(block, self.tokenizer, probability, seed=(0,)), desc="Masking")

    def collator(self) -> Callable:
        return MaskingCollator(super().collator(), self.tokenizer, self.data_args.mlm_probability)


PROCESSORS = {
    "sequence": Processor,
    "tokens": TokenProcessor,
    "choice": ChoiceProcessor,
    "question": QuestionProcessor,
    "seq2seq": TextProcessor,
    "causal": LanguageProcessor,
    "masked": MaskedProcessor,
}
