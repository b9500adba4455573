"""Models of many languages (mBART, NLLB, M2M100): which language is read, and which is written."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..errors import InputError


def set_languages(model: PreTrainedModel, tokenizer: Any, source: str | None, target: str | None) -> None:
    """Let a tokenizer mark texts with their language, and a model begin what it writes with the target's.

    Both keep it in their files. Where nothing is said, such a tokenizer takes the target's language for the source's,
    and that for English.

    Args:
        source, target: codes of the languages, as the tokenizer has them; None: those that it was saved with.
    """
    name = type(tokenizer).__name__
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        given = [f"--{flag}" for flag, code in (("source_lang", source), ("target_lang", target)) if code is not None]
        if given:
            raise InputError(f"{' and '.join(given)}: {name} marks no languages; leave it out")
        return
    known = getattr(tokenizer, "lang_code_to_id", None) or {
        token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.extra_special_tokens
    }
    codes = sorted(code for code, index in known.items() if index != tokenizer.unk_token_id)
    for flag, attribute, code in (("source_lang", "src_lang", source), ("target_lang", "tgt_lang", target)):
        code = code or tokenizer.init_kwargs.get(attribute)
        if code is None:
            raise InputError(
                f"{name} marks the languages of texts, and nothing says which: give --source_lang and --target_lang, "
                f"of {', '.join(codes[:8])}, ..."
            )
        if code not in codes:
            similar = [other for other in codes if other[:2] == code[:2]] or codes
            raise InputError(f"--{flag} {code}: {name} does not know it, but {', '.join(similar)}")
        setattr(tokenizer, attribute, code)
    marks = tokenizer(text_target="")["input_ids"]
    if marks[0] == tokenizer.eos_token_id:  # mBART's, whose labels end with the mark, which begins the decoder's inputs
        model.generation_config.decoder_start_token_id = marks[-1]
    else:
        model.generation_config.forced_bos_token_id = marks[0]
