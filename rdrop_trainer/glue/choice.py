"""Multiple choice: the model gives a logit to each choice, from an input of the passage with this choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .._extras import import_optional
from .examples import IGNORED
from .passages import BLANK


def make_choice_features(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, padding: str | bool = False
) -> datasets.Dataset:
    """Tokenise rows of multiple choice.

    The first segment is the passage, the second the question and the choice. The choice also fills a blank in the
    passage. A passage that is too long is cut to the part around its blank, or to its beginning if it has no blank.

    Returns:
        The columns of the tokenizer, each a list of token lists, one for each choice, and `labels`, the index of the
        right choice or -100. All rows get the same number of choices; the missing ones are empty.
    """
    most = max(map(len, dataset["choices"]))
    between = tokenizer.sep_token or " "

    def encode(batch: dict[str, list]) -> dict[str, list]:
        first, second = [], []
        for context, question, choices in zip(batch["context"], batch["question"], batch["choices"], strict=True):
            choices = [*choices, *[""] * (most - len(choices))]
            context = _around_blank(context, max(choices, key=len), tokenizer, max_length)
            first += [context.replace(BLANK, choice) for choice in choices]
            second += [question + between + choice if question else choice for choice in choices]
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, padding=padding)
        rows = {name: [flat[i : i + most] for i in range(0, len(flat), most)] for name, flat in encoded.items()}
        return {**rows, "labels": [label if label >= 0 else IGNORED for label in batch["label"]]}

    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenising")


def _around_blank(context: str, choice: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """As much of a passage around its blank as fits with the choice: once in the blank, once in the second segment."""
    before, blank, after = context.partition(BLANK)
    if not blank:
        return context
    text = before + after
    encoded = tokenizer([text, choice], add_special_tokens=False, verbose=False)["input_ids"]
    tokens, room = len(encoded[0]), max_length - tokenizer.num_special_tokens_to_add(pair=True) - 2 * len(encoded[1])
    if tokens <= room:
        return context
    size = max(len(text) * room // tokens, 0)
    # The side after the blank gets what the side before it leaves, and the other way round
    left = min(len(before), max(size // 2, size - len(after)))
    return before[len(before) - left :] + blank + after[: size - left]


class ChoiceCollator:
    """Pads a batch of `make_choice_features`, with labels or without, to tensors of shape (rows, choices, tokens)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None):
        self.tokenizer, self.pad_to_multiple_of = tokenizer, pad_to_multiple_of

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = [name for name in rows[0] if name != "labels"]
        choices = (values for row in rows for values in zip(*(row[name] for name in names), strict=True))
        flat = [dict(zip(names, values, strict=True)) for values in choices]
        padded = self.tokenizer.pad(flat, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt")
        batch = {name: tensor.unflatten(0, (len(rows), -1)) for name, tensor in padded.items()}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def decode_choices(logits: np.ndarray, rows: datasets.Dataset) -> list[int]:
    """The index of the chosen one among the choices of each row, from logits (N, C).

    The rows of a group get different choices: those with the highest sum of logits, and so with the highest product of
    probabilities. In a group of more rows than choices each row is decided by itself.
    """
    assign = import_optional("scipy.optimize").linear_sum_assignment
    scores = [row[: len(choices)] for row, choices in zip(logits, rows["choices"], strict=True)]
    chosen = [int(np.argmax(row)) for row in scores]
    groups = defaultdict(list)
    for i, group in enumerate(rows["group"]):
        groups[group].append(i)
    for group in groups.values():
        if 1 < len(group) <= len(scores[group[0]]):
            _, places = assign(np.nan_to_num(np.stack([scores[i] for i in group])), maximize=True)
            for i, place in zip(group, places, strict=True):
                chosen[i] = int(place)
    return chosen
