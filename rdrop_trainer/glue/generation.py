"""Texts from texts, such as summaries and translations: a model's inputs, and what it generates."""

from __future__ import annotations

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from .examples import IGNORED
from .overlap import without_blanks


def make_text_features(
    dataset: datasets.Dataset,
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_target_length: int,
    padding: str | bool = False,
    prefix: str = "",
) -> datasets.Dataset:
    """Tokenise source texts and target texts.

    Args:
        column: name of the column of the source texts. The target texts are in the column "target", None where unknown.
        prefix: put before each source text.

    Returns:
        The columns of the tokenizer for the source texts, and `labels`, the tokens of the target texts.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        sources = [prefix + text for text in batch[column]]
        texts = tokenizer(sources, truncation=True, max_length=max_length, padding=padding)
        targets = [target or "" for target in batch["target"]]
        labels = tokenizer(text_target=targets, truncation=True, max_length=max_target_length)
        return {**texts, "labels": labels["input_ids"]}

    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenising")


def decode_texts(predictions: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The generated texts, from token ids (N, T) that are padded with -100 or the padding token."""
    tokens = np.where(predictions == IGNORED, tokenizer.pad_token_id, predictions)
    return [without_blanks(text) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
