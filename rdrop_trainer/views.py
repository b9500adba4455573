"""Ready-made views: `RDropTrainer(..., second_view=mask_tokens(tokenizer))` lets the later passes see changed inputs.

A view is a function of a batch and the number of the pass, from 1. It returns the batch with other inputs of the same
shape, draws from torch's generator, which a resumed run restores, and writes to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from .objective.view import SecondView

_TOKENS = ("input_ids", "decoder_input_ids")


def token_cutoff(model: nn.Module, p: float = 0.05) -> SecondView:
    """SimCut's token cutoff: the embedding of a token is 0 with probability `p`, its position stays.

    The padding token stands in the place of such tokens, in `input_ids` and, where the collator makes them
    (`DataCollatorForSeq2Seq(tokenizer, model=model)`), in `decoder_input_ids`. Its embedding must be 0, and stays it
    without a gradient, as in Marian and BART. The other special tokens of the configuration are not cut.

    Args:
        model: whose tokens are cut.
        p: probability, in [0, 1]; default: SimCut's.

    Raises:
        ValueError: a model whose padding token has another embedding or numbers its positions by it, or `p` out of
            range.

    Examples:
        >>> from transformers import BartConfig, BartForConditionalGeneration
        >>> config = BartConfig(vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, pad_token_id=1)
        >>> view = token_cutoff(BartForConditionalGeneration(config), p=1.0)
        >>> view({"input_ids": torch.tensor([[0, 9, 8, 2]])}, 1)["input_ids"].tolist()
        [[0, 1, 1, 2]]

    Source: Gao et al., "Bi-SimCut: A Simple Strategy for Boosting Neural Machine Translation", NAACL 2022, after Shen
    et al., 2020 (arXiv 2009.13818). There the cut pass has no task loss of its own.
    """
    of_model: Any = model
    config, embedding = of_model.config, of_model.get_input_embeddings()
    pad = config.pad_token_id
    is_zero = pad is not None and embedding.padding_idx == pad and not embedding.weight[pad].any()
    if not is_zero or any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules()):
        raise ValueError(
            f"token_cutoff puts the padding token in the place of others, but that of {type(model).__name__} has an "
            "embedding that is not 0 or that learns, or positions are numbered by it. Use mask_tokens or word_dropout."
        )
    ids = [value for key, value in config.to_dict().items() if key.endswith("_token_id") and value is not None]
    return _replacing(pad, (i for value in ids for i in (value if isinstance(value, list) else [value])), p)


def word_dropout(tokenizer: PreTrainedTokenizerBase, p: float = 0.1) -> SecondView:
    """Each token is the unknown token with probability `p`, but for special tokens.

    Args:
        tokenizer: with an unknown token.
        p: probability, in [0, 1].

    Raises:
        ValueError: no unknown token, or `p` out of range.

    Source: Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016, section 3.1.
    """
    return _replacing(_special(tokenizer, "unk_token"), tokenizer.all_special_ids, p)


def mask_tokens(tokenizer: PreTrainedTokenizerBase, p: float = 0.15) -> SecondView:
    """Each token is the mask token with probability `p`, but for special tokens.

    Args:
        tokenizer: with a mask token.
        p: probability, in [0, 1]; default: BERT's.

    Raises:
        ValueError: no mask token, or `p` out of range.

    Source: Devlin et al., "BERT", NAACL 2019, section 3.1.
    """
    return _replacing(_special(tokenizer, "mask_token"), tokenizer.all_special_ids, p)


def random_crop(padding: int = 4) -> SecondView:
    """Each image of `pixel_values` (B, C, H, W) is a random crop of itself within a border of 0, in its old size.

    Args:
        padding: pixels of border on each side, at least 1.

    Raises:
        ValueError: `padding` below 1, or, in training, a batch without images.

    Examples:
        >>> random_crop()({"pixel_values": torch.ones(2, 3, 8, 8)}, 1)["pixel_values"].shape
        torch.Size([2, 3, 8, 8])

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (4 pixels, images of 32).
    """
    if padding < 1:
        raise ValueError(f"padding must be at least 1 pixel, got {padding}.")
    return partial(_cropped, padding=padding)


def _cropped(batch: Mapping[str, Any], pass_index: int, *, padding: int) -> dict[str, Any]:
    images = batch.get("pixel_values")
    if images is None or images.dim() != 4:
        raise ValueError(f"random_crop needs `pixel_values` of shape (B, C, H, W); got {', '.join(batch)}.")
    size, channels, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, size, 1), device=images.device)
    lines = (top + torch.arange(height, device=images.device))[:, None, :, None]  # (B, 1, H, 1)
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]  # (B, 1, 1, W)
    rows = torch.arange(size, device=images.device)[:, None, None, None]
    colors = torch.arange(channels, device=images.device)[:, None, None]
    return {**batch, "pixel_values": F.pad(images, (padding,) * 4)[rows, colors, lines, columns]}


def _special(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    if getattr(tokenizer, name) is None:
        raise ValueError(f"The tokenizer has no {name}; take another view, or set tokenizer.{name}.")
    return getattr(tokenizer, f"{name}_id")


def _replacing(token_id: int, kept: Iterable[int], p: float) -> SecondView:
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability in [0, 1], got {p}.")
    return partial(_replaced, token_id=token_id, kept=sorted(set(kept)), p=p)


def _replaced(batch: Mapping[str, Any], pass_index: int, *, token_id: int, kept: list[int], p: float) -> dict[str, Any]:
    found = {key: batch[key] for key in _TOKENS if batch.get(key) is not None}
    if not found:
        raise ValueError(f"The view needs `input_ids` in the batch; got {', '.join(batch)}.")
    changed = dict(batch)
    for key, ids in found.items():
        drawn = torch.rand(ids.shape, device=ids.device) < p
        for other in kept:  # a tensor of them would have to be copied to the device
            drawn &= ids != other
        changed[key] = ids.masked_fill(drawn, token_id)
    return changed
