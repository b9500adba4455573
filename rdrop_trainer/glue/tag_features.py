"""Tags of tokens: the inputs of a model, which splits tokens further, and from its predictions back to one tag each."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .examples import IGNORED
from .features import LabelMap
from .tag_scores import NO_TAG, OUTSIDE, are_entities
from .task import Task

logger = logging.getLogger(__name__)


def make_tag_features(
    dataset: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    labels: LabelMap,
    max_length: int,
    padding: str | bool = False,
) -> datasets.Dataset:
    """Tokenise rows token by token, so that the tag of every one can be predicted.

    Returns:
        Columns of the tokenizer, `labels` at the first piece of each token, -100 elsewhere, and `token_of_piece`: which
        token a piece begins (-1: none).
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell which token belongs to which character; {task.name} needs a fast "
            "tokenizer (a folder with tokenizer.json)."
        )
    (column,) = task.text_columns
    options = {"truncation": True, "max_length": max_length, "padding": padding}
    blank = " " if task.suite == "custom" and _needs_blanks(tokenizer) else ""

    def encode(batch: dict[str, list]) -> dict[str, list]:
        sentences = [[blank + token for token in tokens] for tokens in batch[column]]
        encoded = tokenizer(sentences, is_split_into_words=True, **options)
        begun = [_first_pieces(encoded.word_ids(row)) for row in range(len(sentences))]
        encoded["token_of_piece"] = begun
        encoded["labels"] = [
            [labels.to_model[tags[token]] if token >= 0 and tags else IGNORED for token in tokens]
            for tokens, tags in zip(begun, batch["labels"], strict=True)
        ]
        return dict(encoded)

    features = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenising")
    pairs = zip(features["token_of_piece"], dataset[column], strict=True)
    if cut := sum(max(begun, default=-1) + 1 < len(tokens) for begun, tokens in pairs):
        logger.warning(
            "%d of %d rows are longer than %d pieces; what is cut off gets no tag", cut, len(dataset), max_length
        )
    return features


def _needs_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word after a blank is another piece than a word alone, and no blank is added: GPT-2's and RoBERTa's."""
    splitter = repr(tokenizer.backend_tokenizer.pre_tokenizer)
    return "ByteLevel(add_prefix_space=False" in splitter


def _first_pieces(words: Sequence[int | None]) -> list[int]:
    """For each piece the token that begins with it, or -1."""
    return [-1 if w is None or (i > 0 and words[i - 1] == w) else w for i, w in enumerate(words)]


def decode_tags(
    task: Task, logits: np.ndarray, labels: LabelMap, features: datasets.Dataset, rows: datasets.Dataset
) -> list[list[str]]:
    """One tag name per token of each row, from a token model's logits, (N, T, C).

    Tokens without a piece (blanks, or cut off) get "O", unless an entity continues after them; where tags are no
    entities, they get `NO_TAG`.
    """
    names = [task.labels[i] for i in labels.to_task]
    outside = OUTSIDE if are_entities(task.labels) else NO_TAG
    decoded = []
    (column,) = task.text_columns
    for scores, begun, tokens in zip(logits, features["token_of_piece"], rows[column], strict=True):
        tags: list[str | None] = [None] * len(tokens)
        for piece, token in enumerate(begun):
            if token >= 0:
                tags[token] = names[scores[piece].argmax()]
        for i, tag in enumerate(tags):
            if tag is None:
                following = next((t for t in tags[i + 1 :] if t is not None), outside)
                goes_on = i > 0 and following.startswith("I-") and tags[i - 1][2:] == following[2:]
                tags[i] = following if goes_on else outside
        decoded.append(tags)
    return decoded


def tag_names(task: Task, rows: datasets.Dataset) -> list[list[str]]:
    """The tags of each row, by name; none where a row has none."""
    return [[task.labels[i] for i in tags] for tags in rows["labels"]]
