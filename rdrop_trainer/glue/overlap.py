"""ROUGE, BLEU and chrF of texts in Chinese, English or both: pure functions over lists of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .._extras import import_optional

ROUGE = ("rouge1", "rouge2", "rougeL")
# Characters of scripts without blanks between words: Chinese, and Japanese kana
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BESIDE = rf"[{_UNSPACED}，。、：；？！（）《》“”]"
_BLANK_IN_CHINESE = re.compile(rf"(?<={_BESIDE})\s+|\s+(?={_BESIDE})")


def words_of(text: str) -> list[str]:
    """The units that ROUGE counts: single Chinese characters, and lower-case words and numbers of other scripts."""
    return _WORD.findall(text.lower())


def is_chinese(text: str) -> bool:
    """Whether a text has a character of a script without blanks between words."""
    return re.search(f"[{_UNSPACED}]", text) is not None


def without_blanks(text: str) -> str:
    """A text without the blanks that many tokenizers put between Chinese characters when they decode."""
    return _BLANK_IN_CHINESE.sub("", text.strip())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1: means over rows, without stemming."""
    scorer = import_optional("rouge_score.rouge_scorer", "seq2seq").RougeScorer(list(ROUGE), tokenizer=_Tokenizer())
    rows = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu, from 0 to 100, with the tokenisation "zh" if a reference is Chinese, else "13a"."""
    tokenize = "zh" if any(map(is_chinese, references)) else "13a"
    corpus_bleu = import_optional("sacrebleu", "seq2seq").corpus_bleu
    return corpus_bleu(list(predictions), [list(references)], tokenize=tokenize).score


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF of sacrebleu, from 0 to 100: F-score of runs of up to 6 characters, blanks left out."""
    return import_optional("sacrebleu", "seq2seq").corpus_chrf(list(predictions), [list(references)]).score


class _Tokenizer:
    """`words_of` as rouge-score takes it; its own tokenizer drops everything but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)
