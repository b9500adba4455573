"""The tokens of a row and their tags: lists of both, or the characters of a text and the places of its entities."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..errors import InputError
from .tag_scores import ENTITY_TAG, NO_TAG, OUTSIDE

_NEARLY = re.compile(r"[BIESLUM][_:.].+|.+[-_:.][BIESLUM]")
_SMALL = re.compile(r"[bieslum]-.+")
NOT_IN_A_CELL = re.compile(r"[\t\n\r]")  # predictions are written a line each, with tabs between its cells


def tokens_of(value: Any, where: str, column: str) -> list[str]:
    """The tokens of a row: a list of them, or the characters of a text."""
    if isinstance(value, str):
        return list(value)
    if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
        raise InputError(f"{where}: the column {column!r} holds {_cut(value)}, expected a list of tokens")
    for place, token in enumerate(value, 1):
        if not token:
            raise InputError(f"{where}: token {place} is empty, expected a word")
        if NOT_IN_A_CELL.search(token):
            raise InputError(f"{where}: token {place} ({token!r}) holds a tab or a line break, expected one word")
    return value


def tags_of(tokens: Sequence[str], value: Any, tag_ids: Mapping[str, int], where: str) -> list[int] | None:
    """A tag id for each token, from a list of names or from places of entities.

    None where there are no tags, or all are "_", as some test sets have them.
    """
    hidden = isinstance(value, list) and value and NO_TAG not in tag_ids and set(map(str, value)) == {NO_TAG}
    if value is None or value == "" or hidden:
        return None
    if not isinstance(value, list):
        return _tags_of_entities("".join(tokens), value, tag_ids, where)
    if len(value) != len(tokens):
        raise InputError(f"{where}: the row has {len(tokens)} tokens and {len(value)} tags, expected one tag for each")
    for place, (token, tag) in enumerate(zip(tokens, value, strict=True), 1):
        if not isinstance(tag, str) or tag not in tag_ids:
            raise InputError(
                f"{where}: token {place} ({token!r}) has the unknown tag {tag!r}, expected {one_of(tag_ids)}"
            )
    return [tag_ids[tag] for tag in value]


def find_tags(rows: Iterable[tuple[str, Any]]) -> list[str]:
    """The tags of a file, "O" first and the others sorted.

    Of tags of entities (B-PER, I-PER) all that belong together are returned, also those that occur nowhere: each
    prefix of the file with each type.
    """
    found: dict[str, str] = {}  # tag -> where it is first
    for where, tags in rows:
        for place, tag in enumerate(tags if isinstance(tags, list) else (), 1):
            if not isinstance(tag, str) or not tag or tag != tag.strip() or NOT_IN_A_CELL.search(tag):
                raise InputError(
                    f"{where}: the tag of token {place} is {tag!r}, expected a name such as 'B-PER'; where a data set "
                    "numbers its tags, write their names"
                )
            found.setdefault(tag, f"{where}: token {place}")
        if not isinstance(tags, list) and tags is not None:
            raise InputError(f"{where}: the tags are {_cut(tags)}, expected a list of names, one for each token")
    entities = {tag: match.groups() for tag in found if (match := ENTITY_TAG.fullmatch(tag))}
    nearly = [tag for tag in found if OUTSIDE in found and _NEARLY.fullmatch(tag)]
    small = [tag for tag in found if tag.upper() != OUTSIDE]
    if all(map(_SMALL.fullmatch, small)) and any(tag.startswith("b-") for tag in small):
        nearly += small
    for tag in found if entities and (OUTSIDE in found or len(entities) * 2 > len(found)) else nearly:
        if tag not in entities and tag != OUTSIDE:
            shown = ", ".join([OUTSIDE, *sorted(entities)[:4]]) if entities else "O, B-PER and I-PER"
            raise InputError(f"{found[tag]} has the tag {tag!r}, expected tags such as {shown}")
    if not entities or len(entities) + (OUTSIDE in found) < len(found):
        return sorted(found, key=lambda tag: (tag != OUTSIDE, tag))
    prefixes, kinds = ({part[i] for part in entities.values()} for i in (0, 1))
    if prefixes == {"B"}:
        prefixes.add("I")
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in sorted(kinds) for prefix in sorted(prefixes))]


def _tags_of_entities(text: str, entities: Any, tag_ids: Mapping[str, int], where: str) -> list[int]:
    """One tag id per character from {type: {mention: [[start, inclusive end], ...]}}."""
    try:
        spans = [
            (start, end, kind, mention)
            for kind, mentions in entities.items()
            for mention, places in mentions.items()
            for start, end in places
        ]
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"{where}: the label is {entities!r}, expected {{type: {{mention: [[start, end], ...]}}}}"
        ) from None
    for start, end, kind, mention in spans:
        if not tag_ids.keys() >= {f"B-{kind}", f"I-{kind}"}:
            kinds = (name[2:] for name in tag_ids if name.startswith("B-"))
            raise InputError(f"{where}: unknown kind of entity {kind!r}, expected one of {', '.join(kinds)}")
        fits = isinstance(start, int) and isinstance(end, int) and 0 <= start <= end < len(text)
        if not fits or text[start : end + 1] != mention:
            raise InputError(
                f"{where}: the {kind} {mention!r} is not at [{start!r}, {end!r}] of the text, expected the places of "
                "its first and last character, counted from 0"
            )
    tags = [tag_ids[OUTSIDE]] * len(text)
    # Of overlapping entities the longest is kept, of equally long ones the first
    for start, end, kind, _ in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if all(tag == tag_ids[OUTSIDE] for tag in tags[start : end + 1]):
            inside = tag_ids[f"I-{kind}"]
            tags[start : end + 1] = [tag_ids[f"B-{kind}"]] + [inside] * (end - start)
    return tags


def one_of(names: Collection[str]) -> str:
    """Names that were expected, for messages."""
    return "one of " + ", ".join([*names][:20] + ["..."] * (len(names) > 20))


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
