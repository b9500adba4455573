"""A small BERT or BART with random weights, and a tokenizer of the words in given texts; nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    set_seed,
)


def make_bert(
    folder: Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 8000,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    max_length: int = 64,
) -> None:
    """Save a BERT without a head, and its tokenizer, to a folder that `from_pretrained` reads.

    Args:
        texts: their characters and most frequent words become the tokens; Chinese characters stand alone, and other
            words are spelt out.
        vocab_size: at most so many tokens.
        hidden_size, layers, heads: the encoder; its inner layers are twice as wide as hidden_size.
    """
    tokenizer = _make_tokenizer(texts, vocab_size, max_length)
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=max_length,
    )
    BertModel(config).save_pretrained(folder)


def make_bart(
    folder: Path, texts: Iterable[str], *, hidden_size: int = 64, layers: int = 2, heads: int = 4, max_length: int = 64
) -> None:
    """Save a BART, which writes texts from texts, and its tokenizer; the arguments are those of `make_bert`.

    Encoder and decoder have `layers` layers each, and texts end with [SEP].
    """
    tokenizer = _make_tokenizer(texts, 8000, max_length, bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=hidden_size,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=2 * hidden_size,
        decoder_ffn_dim=2 * hidden_size,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)


def _make_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int, **tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the characters and most frequent words of texts; `tokens` names more of its special tokens."""
    normalizer, splitter = BertNormalizer(), BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in counts for character in word})
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *characters,
        *(f"##{character}" for character in characters),
    ]
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    # Not a trained WordPiece vocabulary: its trainer breaks ties differently from run to run
    vocabulary = {piece: i for i, piece in enumerate(list(dict.fromkeys([*pieces, *by_frequency]))[:vocab_size])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
        **tokens,
    )
