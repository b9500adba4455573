"""Small edits of texts: what each changes, and that it changes nothing else."""

import random

import pytest

from rdrop_trainer.stability.edits import EDITS, case, double, drop, other_character, punctuation, slip, spacing, swap

TEXTS = [
    "The cat isn't here, 2 of 3.",
    "电影很好看！",
    "a",
    "",
    "   ",
    "好",
    "ab",
    "123 456",
    "ÄÖ ß",
    "Mixed 中文 text",
    "\u2028x",
]


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("text", TEXTS)
def test_an_edit_changes_the_text_or_does_not_fit(kind, text):
    for seed in range(20):
        edited = EDITS[kind](text, random.Random(seed))
        assert edited == EDITS[kind](text, random.Random(seed))
        assert edited is None or (edited != text and abs(len(edited) - len(text)) <= 1 and edited)


def everything(edit, text):
    return {edit(text, random.Random(seed)) for seed in range(300)}


def test_what_each_does():
    assert everything(swap, "ab c") == {"ba c"} and everything(swap, "aa 1b") == {None}
    assert everything(drop, "ab 1") == {"b 1", "a 1"} and everything(drop, "a 1") == {None}
    assert everything(double, "a好1") == {"aa好1", "a好好1"}
    assert everything(slip, "A1") == {f"{key}1" for key in "QWSZ"} and everything(slip, "好") == {None}
    changed = everything(other_character, "好a")
    assert len(changed) > 30 and all(text[1] == "a" and text[0] != "好" for text in changed)
    assert everything(case, "one Two") == {"ONE Two", "one tWO"} and everything(case, "12 好") == {None}
    assert everything(spacing, "a b") == {"a  b"} and everything(spacing, "中文字") == {"中 文字", "中文 字"}
    assert punctuation("End.", None) == "End" and punctuation("End", None) == "End."
    assert punctuation("好", None) == "好。" and punctuation("好。", None) == "好" and punctuation(".", None) is None
