"""`Head`: what some of a model's outputs predict, where its user has to say it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .losses.validation import PROBLEMS

ALIGNMENTS = ("auto", "rows", "first", "last", "shifted")


@dataclass(frozen=True)
class Head:
    """What some logits of a model predict: an entry of the setting `rdrop_heads`.

    A model with several heads has an entry for each, and its divergence is their weighted sum:

        rdrop_heads=[Head("intent_logits", "intent_labels"), Head("slot_logits", "slot_labels")]

    Attributes:
        logits: name of the logits among the outputs. Where the model returns a plain tuple, their position in it, from
            0, a loss in front not counted. "logits.1" is the second tensor of the tuple that `logits` is.
        labels: name of what they predict among the inputs.
        problem: "single_label", "multi_label" or "regression", and so the divergence; "auto": the labels say.
        align: what a label is of. "rows": of a whole row. Of a token: "first" and "last" where the first, or last,
            positions of logits (B, T', C) are those of labels (B, T), both of them in place if T' = T; "shifted" where
            logits predict the label of the next token. "auto": the labels say, and the model's own loss.
        weight: of this head's divergence, more than 0: the weight of the head's loss in the model's own loss.

    Raises:
        ValueError: a value that is none of these.

    Examples:
        >>> Head(0, "tags", align="shifted")
        Head(logits='0', labels='tags', problem='auto', align='shifted', weight=1.0)
    """

    logits: str | int = "logits"
    labels: str = "labels"
    problem: str = "auto"
    align: str = "auto"
    weight: float = 1.0

    def __post_init__(self):
        if type(self.logits) is int and self.logits >= 0:
            object.__setattr__(self, "logits", str(self.logits))
        for name in ("logits", "labels"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                wanted = "a name" + (" or a position of at least 0" if name == "logits" else "")
                raise ValueError(f"{name} of a head must be {wanted}, got {getattr(self, name)!r}.")
        for name, choices in (("problem", ("auto", *PROBLEMS)), ("align", ALIGNMENTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} of a head must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)) or not 0 < self.weight < 1e9:
            raise ValueError(f"weight of a head must be a number above 0, got {self.weight!r}.")
        object.__setattr__(self, "weight", float(self.weight))


def heads_from_setting(setting: Any) -> list[Head]:
    """The heads of a value of `rdrop_heads`: a list of `Head` or of dicts, its JSON, or None.

    Raises:
        ValueError: anything else, or a head that is wrong.
    """
    try:
        given = json.loads(setting) if isinstance(setting, str) else setting
        if given is not None and (isinstance(given, (str, Mapping)) or not isinstance(given, Iterable)):
            raise TypeError("no list")
        heads = [head if isinstance(head, Head) else Head(**head) for head in given or ()]
    except (TypeError, json.JSONDecodeError, RecursionError):
        names = ", ".join(field.name for field in fields(Head))
        raise ValueError(
            f"rdrop_heads must be a list of Head(...), or of dicts with some of the keys {names}; got {setting!r}."
        ) from None
    logits = [str(head.logits) for head in heads]
    if len(set(logits)) < len(logits):
        raise ValueError(f"rdrop_heads names the same logits twice: {', '.join(logits)}.")
    return heads
