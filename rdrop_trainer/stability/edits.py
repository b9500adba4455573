"""Small edits of a text, as people make them when they type: one or two characters change, the meaning rarely does.

Where an edit does change the meaning ("form" becomes "from", another Chinese character makes another word), the label
should change too, so a model that flips there is not wrong. Read the edits before you draw conclusions from them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

# A QWERTY keyboard. A key touches the keys on its left and right, those above it in the same column and the next, and
# those below it in the same column and the one before.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_TOUCHING = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
_PLACES = {(row, column): key for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
_NEIGHBOURS = {
    key: [_PLACES[row + down, column + right] for down, right in _TOUCHING if (row + down, column + right) in _PLACES]
    for (row, column), key in _PLACES.items()
}
# Common characters. One of them is drawn at random; it need not sound like the character that it replaces.
_HAN = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会"
    "可主发年动同工也能下过子说产种面而方后多定行学法所"
)
_HAN_CHARACTER = re.compile("[\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_TWO_LETTERS = re.compile(_LETTER.pattern * 2)
_MARKS = ".。!！?？,，;；"
Edit = Callable[[str, random.Random], "str | None"]


def swap(text: str, rng: random.Random) -> str | None:
    """Two neighbouring letters are swapped."""
    places = [i for i in range(len(text) - 1) if _TWO_LETTERS.match(text, i) and text[i] != text[i + 1]]
    return _at_one(places, rng, lambda i: text[:i] + text[i + 1] + text[i] + text[i + 2 :])


def drop(text: str, rng: random.Random) -> str | None:
    """A letter is missing."""
    places = _places(text, _LETTER)
    return None if len(places) < 2 else _at_one(places, rng, lambda i: text[:i] + text[i + 1 :])


def double(text: str, rng: random.Random) -> str | None:
    """A letter is doubled."""
    return _at_one(_places(text, _LETTER), rng, lambda i: text[: i + 1] + text[i:])


def slip(text: str, rng: random.Random) -> str | None:
    """A Latin letter becomes its neighbour on the keyboard."""
    places = [i for i, character in enumerate(text) if character.lower() in _NEIGHBOURS]

    def slipped(i: int) -> str:
        new = rng.choice(_NEIGHBOURS[text[i].lower()])
        return text[:i] + (new.upper() if text[i].isupper() else new) + text[i + 1 :]

    return _at_one(places, rng, slipped)


def other_character(text: str, rng: random.Random) -> str | None:
    """A Chinese character becomes another common one."""

    def changed(i: int) -> str:
        return text[:i] + rng.choice([character for character in _HAN if character != text[i]]) + text[i + 1 :]

    return _at_one(_places(text, _HAN_CHARACTER), rng, changed)


def case(text: str, rng: random.Random) -> str | None:
    """The upper and lower case of a word are exchanged."""
    words = [m for m in re.finditer(r"\S+", text) if m[0].swapcase() != m[0]]
    if not words:
        return None
    word = rng.choice(words)
    return text[: word.start()] + word[0].swapcase() + text[word.end() :]


def spacing(text: str, rng: random.Random) -> str | None:
    """A space is doubled; in a text without spaces, one is inserted between two characters."""
    places = [i for i, character in enumerate(text) if character == " "] or range(1, len(text))
    return _at_one(places, rng, lambda i: text[:i] + " " + text[i:])


def punctuation(text: str, rng: random.Random) -> str | None:
    """The punctuation mark at the end is removed, or a full stop is added."""
    bare = text.rstrip()
    if not bare:
        return None
    if bare[-1] in _MARKS:
        return bare[:-1].rstrip() or None
    return bare + ("。" if _HAN_CHARACTER.search(bare) else ".")


EDITS: dict[str, Edit] = {
    edit.__name__: edit for edit in (swap, drop, double, slip, other_character, case, spacing, punctuation)
}


def _at_one(places: Sequence[int], rng: random.Random, edit: Callable[[int], str]) -> str | None:
    """An edit at a place that chance chooses; None without a place."""
    return edit(rng.choice(places)) if places else None


def _places(text: str, pattern: re.Pattern) -> list[int]:
    return [match.start() for match in pattern.finditer(text)]
