"""Exact match and F1 of answers cut out of passages, as CMRC 2018 and as SQuAD count: pure functions over texts.

An answer is compared with all answers of its question, and the best value counts. "" stands for no answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np

Answers = Sequence[Sequence[str]]

# The punctuation marks of CMRC's script, which knows no others
_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# An ellipsis; a run of anything but spaces, Chinese characters and marks that stand alone, with full stops and commas
# inside words and numbers; or a single character
_HAN, _ALONE = r"\u4e00-\u9fa5", re.escape(';@#$%&?!()[]{}<>"«»—‘')
_SEGMENT = re.compile(rf"\.{{3}}|(?:[^\s,.{_HAN}{_ALONE}]|,(?=\d)|\.(?=[^\s.{_HAN}]))+|\S")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def cmrc_scores(predictions: Sequence[str], references: Answers) -> dict[str, float]:
    """`exact_match` and `f1`, from 0 to 1, for Chinese.

    `exact_match` ignores case and punctuation. `f1` counts Chinese characters, and words, numbers and marks of other
    scripts; the overlap of two answers is their longest common run. The official script takes words from NLTK, which
    also splits English contractions ("don't") in two.
    """
    return _scores(predictions, references, _bare, _run_f1)


def squad_scores(predictions: Sequence[str], references: Answers) -> dict[str, float]:
    """`exact_match` and `f1`, from 0 to 1, as the official script of SQuAD 1.1 and 2.0 has them.

    Both ignore case, punctuation and English articles; `f1` counts the words that two answers have in common.
    """
    return _scores(predictions, references, _plain, _word_f1)


def _scores(
    predictions: Sequence[str], references: Answers, normalize: Callable[[str], str], f1: Callable[[str, str], float]
) -> dict[str, float]:
    pairs = list(zip(predictions, references, strict=True))
    exact = [max(normalize(prediction) == normalize(answer) for answer in answers) for prediction, answers in pairs]
    overlap = [max(f1(prediction, answer) for answer in answers) for prediction, answers in pairs]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _bare(text: str) -> str:
    return text.lower().strip().translate(_PUNCTUATION)


def _run_f1(prediction: str, answer: str) -> float:
    if not answer:
        return float(not prediction)
    predicted, expected = (_SEGMENT.findall(_bare(text)) for text in (prediction, answer))
    run = SequenceMatcher(None, predicted, expected, autojunk=False).find_longest_match().size
    return 2 * run / (len(predicted) + len(expected)) if run else 0.0


def _plain(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split())


def _word_f1(prediction: str, answer: str) -> float:
    predicted, expected = (_plain(text).split() for text in (prediction, answer))
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * sum((Counter(predicted) & Counter(expected)).values()) / (len(predicted) + len(expected))
