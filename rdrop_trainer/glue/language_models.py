"""Texts alone, for causal and masked language models: blocks of tokens, masks, and the loss of each line."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..errors import InputError
from .examples import IGNORED

_BATCH = 1000  # lines
_MASKED, _RANDOM = 0.8, 0.1  # of the chosen tokens, as BERT has it; the others stay


def make_block_features(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, with_end: bool
) -> datasets.Dataset:
    """Tokenise lines, join them, and cut them into blocks.

    Args:
        tokenizer: any; each line goes in with its line end.
        max_length: of a block with the special tokens around it. The last block may be shorter.
        with_end: whether a block has the special tokens at its end too ([SEP]), and not only those at its beginning.

    Returns:
        `input_ids`, `attention_mask`, and `line`: which line a token is of (-1: none).
    """
    probe = tokenizer("a", return_special_tokens_mask=True)
    inside = [i for i, special in enumerate(probe["special_tokens_mask"]) if not special] or [0]
    before, after = probe["input_ids"][: inside[0]], probe["input_ids"][inside[-1] + 1 :] if with_end else []
    room = max_length - len(before) - len(after)
    if room < 2:
        raise InputError(
            f"max_seq_length must be at least {2 + max_length - room} for a language model, got {max_length}"
        )
    tokens, lines = [], []
    for start in range(0, len(dataset), _BATCH):
        texts = [f"{text}\n" for text in dataset[start : start + _BATCH]["text"]]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        tokens += [np.array(ids, dtype=np.int32) for ids in encoded]
        lines += [np.full(len(ids), start + i, dtype=np.int32) for i, ids in enumerate(encoded)]
    whole, of_line = np.concatenate(tokens), np.concatenate(lines)
    if not len(whole):
        raise InputError(
            "the texts have no tokens: their tokenizer knows no line end, and there is nothing else in them"
        )
    cuts = range(room, len(whole), room)
    ids = [np.concatenate([before, block, after]).astype(np.int64) for block in np.split(whole, cuts)]
    places = [np.pad(block, (len(before), len(after)), constant_values=-1) for block in np.split(of_line, cuts)]
    return datasets.Dataset.from_dict(
        {"input_ids": ids, "attention_mask": list(map(np.ones_like, ids)), "line": places}
    )


def mask(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, probability: float, seed: Sequence[int]
) -> dict[str, list[int]]:
    """A block with some of its tokens masked, and `labels`, what they were (-100 elsewhere).

    Args:
        probability: that a token is chosen; one is always. Eight in ten of them become the mask, and one another token.
        seed: with it and the tokens the choice is always the same.
    """
    ids = np.array(row["input_ids"])
    draw = np.random.default_rng([*seed, zlib.crc32(ids.astype(np.int64).tobytes())])
    ordinary = ~np.isin(ids, tokenizer.all_special_ids)
    chance = np.where(ordinary, draw.random(len(ids)), 1.0)
    chosen = (chance < probability) | ((chance == chance.min()) & ordinary)
    fate = draw.random(len(ids))
    others = draw.integers(len(tokenizer), size=len(ids))
    masked = np.where(fate < _MASKED, tokenizer.mask_token_id, np.where(fate < _MASKED + _RANDOM, others, ids))
    return {
        "input_ids": np.where(chosen, masked, ids).tolist(),
        "attention_mask": list(row["attention_mask"]),
        "labels": np.where(chosen, ids, IGNORED).tolist(),
    }


class MaskingCollator(TrainerCallback):
    """Masks the blocks that have no labels yet.

    The masks follow from seed, epoch and tokens alone: they are the same in every arm of a comparison, and in a run
    that goes on.
    """

    def __init__(self, pad: Callable, tokenizer: PreTrainedTokenizerBase, probability: float):
        self.pad, self.tokenizer, self.probability = pad, tokenizer, probability
        self._seed = torch.tensor([1, 0])

    def on_epoch_begin(self, args, state, control, **kwargs):
        if args.dataloader_num_workers:  # they may outlive an epoch
            self._seed.share_memory_()
        self._seed.copy_(torch.tensor([1 + args.seed, int((state.epoch or 0) + 1e-6)]))

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        seed = self._seed.tolist()
        masked = (row if "labels" in row else mask(row, self.tokenizer, self.probability, seed) for row in rows)
        return self.pad(list(masked))


def token_losses(logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool) -> torch.Tensor:
    """The loss of each token in nats, float32 (B, T); -1 where it does not count.

    Args:
        logits: (B, T, V), float.
        labels: (B, T), -100 where none.
        shifted: whether a token is predicted at the place before it, as by causal models.
    """
    losses = torch.full(labels.shape, -1.0, device=logits.device)
    for row in range(len(labels)):  # one at a time: in float32 the logits of all are large
        places = labels[row].ne(IGNORED).nonzero()[:, 0]
        places = places[places > 0] if shifted else places
        predicted = logits[row, places - int(shifted)].float()
        losses[row, places] = F.cross_entropy(predicted, labels[row, places], reduction="none")
    return losses


def losses_of_lines(losses: np.ndarray, features: datasets.Dataset, lines: int) -> list[tuple[float, int]]:
    """For each line the sum of the losses of its tokens, in nats, and their number.

    Args:
        losses: as of `token_losses`, (blocks, T); what is below 0 does not count.
    """
    sums, counts = np.zeros(lines), np.zeros(lines, dtype=int)
    for row, of_line in zip(losses, features["line"], strict=True):
        places, values = np.array(of_line), row[: len(of_line)].astype(np.float64)
        counted = ~(values < 0) & (places >= 0)  # NaN counts: a model that overflows is not a better one
        np.add.at(sums, places[counted], values[counted])
        np.add.at(counts, places[counted], 1)
    return list(zip(sums.tolist(), counts.tolist(), strict=True))


def perplexity(losses: Sequence[tuple[float, float]]) -> float:
    """exp of the mean loss of all tokens; NaN where there are none.

    >>> perplexity([(0.0, 1), (2 * np.log(2.0), 1)]).__round__(6)
    2.0
    """
    total, count = (sum(column) for column in zip(*losses, strict=True)) if losses else (0.0, 0)
    return float(np.exp(min(total / count, 700.0))) if count else float("nan")
