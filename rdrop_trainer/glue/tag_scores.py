"""Tags of entities and their F1, and the scores of other tags: pure functions over lists of tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .._extras import import_optional

OUTSIDE = "O"
NO_TAG = "_"  # of a token that the model does not see, where tags are no entities; CoNLL's mark
ENTITY_TAG = re.compile(r"([BIESLUM])-(.+)")  # of IOB, BIOES, BILOU and BMES
_AS_IOB = {"M": "I", "L": "E", "U": "S"}  # seqeval knows IOB and BIOES

Tags = Sequence[Sequence[str]]


def are_entities(tags: Collection[str]) -> bool:
    """Whether tags mark the parts of entities: all but "O" are a prefix of a scheme and a type."""
    others = [tag for tag in tags if tag != OUTSIDE]
    return bool(others) and all(map(ENTITY_TAG.fullmatch, others))


def entities_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities in one row of tags, as seqeval reads them: (type, start, inclusive end).

    IOB, BIOES and their other names (BILOU, BMES) are read alike. An I- tag without a B- tag before it begins an entity
    too.
    """
    plain = [_AS_IOB.get(tag[0], tag[0]) + tag[1:] if tag[1:2] == "-" else tag for tag in tags]
    return import_optional("seqeval.metrics.sequence_labeling").get_entities(plain)


def entity_f1(predictions: Tags, references: Tags) -> dict[str, float]:
    """F1 of whole entities: an entity is right if its type and both its ends are.

    Returns:
        `f1`, `precision` and `recall` over all entities, `f1_<type>` of each type that occurs in either, and
        `macro_f1`, their mean.
    """
    predicted, expected = (
        {(kind, row, start, end) for row, tags in enumerate(rows) for kind, start, end in entities_of(tags)}
        for rows in (predictions, references)
    )
    kinds = sorted({entity[0] for entity in predicted | expected})
    per_type = {
        f"f1_{kind}": _f1({e for e in predicted if e[0] == kind}, {e for e in expected if e[0] == kind})
        for kind in kinds
    }
    right = len(predicted & expected)
    return {
        "f1": _f1(predicted, expected),
        "macro_f1": sum(per_type.values()) / len(kinds) if kinds else 0.0,
        "precision": right / len(predicted) if predicted else 0.0,
        "recall": right / len(expected) if expected else 0.0,
        **per_type,
    }


def tag_accuracy(predictions: Tags, references: Tags) -> dict[str, float]:
    """`accuracy` of single tags, and `macro_f1`, the mean over the tags that occur in either; `NO_TAG` is none."""
    predicted, expected = ([tag for row in rows for tag in row] for rows in (predictions, references))
    if not expected:
        return {"accuracy": 0.0, "macro_f1": 0.0}
    kinds = sorted({*predicted, *expected} - {NO_TAG})
    sklearn = import_optional("sklearn.metrics")
    macro_f1 = sklearn.f1_score(expected, predicted, labels=kinds, average="macro", zero_division=0.0) if kinds else 0.0
    return {"accuracy": float(sklearn.accuracy_score(expected, predicted)), "macro_f1": float(macro_f1)}


def _f1(predicted: set, reference: set) -> float:
    both = len(predicted) + len(reference)
    return 2 * len(predicted & reference) / both if both else 0.0
