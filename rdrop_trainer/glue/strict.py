"""Strict JSON and YAML: no key twice, and nothing that could not be written again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

import yaml

_DEPTH = 20  # of nesting; the time of the YAML reader grows with its square
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, an object has a key twice (either might be meant), or an escape is half of a
            surrogate pair.
        RecursionError: the text is nested too deep.
    """
    value = json.loads(text, object_pairs_hook=_unique)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair") from None
    return value


def parse_yaml(text: str) -> object:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML, or asks for Python objects.
        ValueError: the text has a key twice, is nested too deep, has aliases (with which a few lines can mean billions
            of values), or an impossible value such as 31 June.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEPTH:
            raise ValueError("it holds aliases (*name) or is nested too deep; write out what is meant")
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    twice = named_twice(str(key.value) for key, _ in top.value) if isinstance(top, yaml.MappingNode) else []
    if twice:
        raise ValueError(f"it names {twice[0]!r} twice")
    return yaml.safe_load(text)


def named_twice(names: Iterable[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object names {named_twice(key for key, _ in pairs)[0]!r} twice")
    return found
