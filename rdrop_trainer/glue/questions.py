"""Extractive questions: a long passage is cut into overlapping windows; the best span of all windows is the answer."""

from __future__ import annotations

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from .._extras import lost_windows
from ..errors import InputError

SHORTEST_WINDOW = 16
POSITIONS = ("start_positions", "end_positions")


def make_question_features(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overlap: int,
    padding: str | bool = False,
) -> datasets.Dataset:
    """Tokenise questions with their passages, in windows.

    Args:
        max_length: length of a window with its question, in tokens. The question is cut to a quarter of it.
        overlap: tokens that two windows of a passage share; at most a third of max_length is used.

    Returns:
        A row per window, with the columns of the tokenizer and these:
        `start_positions`, `end_positions`: the first and last token of the (first) answer. Where the window does not
        contain all of it, both are the classification token (else the first token).
        `row`: the index of the question in the data set.
        `nowhere`: the token that stands for no answer, as above.
        `char_start`, `char_end`: the characters of the passage that a token covers; -1 for tokens outside the passage.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell which token belongs to which character; extractive questions need "
            "a fast tokenizer (a folder with tokenizer.json)"
        )
    if max_length < SHORTEST_WINDOW:
        raise InputError(f"max_seq_length must be at least {SHORTEST_WINDOW} for questions, got {max_length}")
    if fault := lost_windows():
        raise InputError(fault)
    options = {
        "truncation": "only_second",
        "max_length": max_length,
        "stride": min(overlap, max_length // 3),
        "padding": padding,
        "return_overflowing_tokens": True,
        "return_offsets_mapping": True,
    }

    def encode(batch: dict[str, list], places: list[int]) -> dict[str, list]:
        questions = _cut(batch["question"], tokenizer, max_length // 4)
        encoded = tokenizer(questions, batch["context"], **options)
        rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        names = ("row", "char_start", "char_end", "nowhere", *POSITIONS)
        windows: dict[str, list] = {name: [] for name in names}
        for window, (i, offset) in enumerate(zip(rows, offsets, strict=True)):
            passage = np.array([segment == 1 for segment in encoded.sequence_ids(window)])
            starts, ends = (np.where(passage, side, -1) for side in np.array(offset).T)
            tokens = encoded["input_ids"][window]
            nowhere = tokens.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in tokens else 0
            span = _tokens_of(batch["answers"][i][:1], batch["starts"][i][:1], starts, ends) or (nowhere, nowhere)
            for name, value in zip(names, (places[i], starts, ends, nowhere, *span), strict=True):
                windows[name].append(value)
        return {**encoded, **windows}

    return dataset.map(encode, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="Tokenising")


def _cut(texts: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[str]:
    """Texts cut to a number of tokens: a question must leave room for its passage."""
    encoded = tokenizer(
        texts, add_special_tokens=False, truncation=True, max_length=tokens, return_offsets_mapping=True
    )
    ends = (offset[-1][1] if offset else 0 for offset in encoded["offset_mapping"])
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def _tokens_of(texts: list[str], places: list[int], starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """First and last token of the first answer that the window contains as a whole; else None."""
    for text, start in zip(texts, places, strict=True):
        end = start + len(text)
        inside = np.flatnonzero((starts < end) & (ends > start) & (starts >= 0))
        if start >= 0 and len(inside) and starts[inside[0]] <= start and ends[inside[-1]] >= end:
            return int(inside[0]), int(inside[-1])
    return None


def decode_answers(
    predictions: tuple[np.ndarray, ...],
    features: datasets.Dataset,
    rows: datasets.Dataset,
    max_answer_length: int,
    null_score_threshold: float | None = None,
) -> list[str]:
    """The answer to each question, cut out of its passage: the span with the highest sum of start and end logit.

    Every span of every window is compared, not only those of the n best starts and ends. No answer has the score of the
    token that stands for it, in the window that speaks most against it.

    Args:
        predictions: start and end logits first, (windows, tokens) each; columns beyond the tokens of a window are
            ignored.
        features: the windows that `make_question_features` made of the rows.
        max_answer_length: in tokens.
        null_score_threshold: the answer is "" where no answer has a score that is higher by more than this. None: every
            question gets an answer.
    """
    contexts = rows["context"][:]
    best = [(-np.inf, "")] * len(contexts)
    none = [np.inf] * len(contexts)
    names = ("row", "char_start", "char_end", "nowhere")
    columns = (*(features[name] for name in names), *predictions[:2])
    for row, char_start, char_end, nowhere, start_logits, end_logits in zip(*columns, strict=True):
        none[row] = min(none[row], float(start_logits[nowhere]) + float(end_logits[nowhere]))
        outside = np.array(char_start) < 0
        score, start, end = _best_span(
            np.where(outside, -np.inf, start_logits[: len(outside)].astype(np.float64)),
            np.where(outside, -np.inf, end_logits[: len(outside)].astype(np.float64)),
            max_answer_length,
        )
        if score > best[row][0]:
            best[row] = (score, contexts[row][char_start[start] : char_end[end]].strip())
    limit = np.inf if null_score_threshold is None else null_score_threshold
    return ["" if null - score > limit else text for (score, text), null in zip(best, none, strict=True)]


def _best_span(start_logits: np.ndarray, end_logits: np.ndarray, longest: int) -> tuple[float, int, int]:
    """Score, first and last token of the best span of at most `longest` tokens."""
    best = (-np.inf, 0, 0)
    for length in range(min(longest, len(start_logits))):
        scores = start_logits[: len(start_logits) - length] + end_logits[length:]
        start = int(scores.argmax())
        best = max(best, (float(scores[start]), start, start + length), key=lambda span: span[0])
    return best
