"""Multiple choice and extractive questions: inputs, batches, and from logits back to answers."""

import copy
import itertools

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.choice import ChoiceCollator, decode_choices, make_choice_features
from rdrop_trainer.glue.passages import BLANK
from rdrop_trainer.glue.questions import decode_answers, make_question_features
from rdrop_trainer.script.scratch import make_bert

ALPHABET = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_bert(folder, [f"{ALPHABET}谁？好坏大小_ 3 km"], hidden_size=8, layers=1, heads=1, max_length=64)
    return AutoTokenizer.from_pretrained(folder)


def choice_rows(*rows):
    names = ("context", "question", "choices", "label")
    return datasets.Dataset.from_list(
        [dict(zip(names, row, strict=True)) | {"idx": i, "group": f"{i}"} for i, row in enumerate(rows)]
    )


def texts(tokenizer, row):
    return [tokenizer.decode(tokens).replace(" ", "") for tokens in row]


# ---- Multiple choice ----


def test_a_choice_stands_after_its_passage_and_question(tokenizer):
    rows = choice_rows(("甲乙丙", "谁？", ["丁", "戊己"], 1), ("甲", "谁？", ["子", "丑", "寅"], -1))
    features = make_choice_features(rows, tokenizer, 32)
    assert texts(tokenizer, features[0]["input_ids"]) == [
        "[CLS]甲乙丙[SEP]谁？[SEP]丁[SEP]",
        "[CLS]甲乙丙[SEP]谁？[SEP]戊己[SEP]",
        "[CLS]甲乙丙[SEP]谁？[SEP][SEP]",
    ]
    assert features[0]["token_type_ids"][0] == [0] * 5 + [1] * 5
    assert features["labels"] == [1, -100]


def test_a_choice_fills_its_blank(tokenizer):
    features = make_choice_features(choice_rows((f"甲{BLANK}丙____", "", ["好", "大小"], 0)), tokenizer, 32)
    assert texts(tokenizer, features[0]["input_ids"]) == [
        "[CLS]甲好丙____[SEP]好[SEP]",
        "[CLS]甲大小丙____[SEP]大小[SEP]",
    ]


@pytest.mark.parametrize("place", [0, 1, 11, 21, 22])
def test_a_long_passage_is_cut_around_its_blank(tokenizer, place):
    context = ALPHABET[:place] + BLANK + ALPHABET[place:]
    features = make_choice_features(choice_rows((context, "", ["好大", "小"], 0)), tokenizer, 16)
    first = texts(tokenizer, features[0]["input_ids"])[0]
    passage = first.removeprefix("[CLS]").split("[SEP]")[0]
    before, _, after = passage.partition("好大")
    assert len(features[0]["input_ids"][0]) == 16 and first.endswith("[SEP]好大[SEP]")
    # 16 tokens without 3 special ones and twice the choice; as many on either side as there are
    assert len(before) == min(place, max(4, 9 - (22 - place))) and len(before + after) == 9
    assert ALPHABET.startswith(before[:1]) or before in ALPHABET
    assert context.replace(BLANK, "好大").find(passage) >= 0


def test_a_long_passage_without_a_blank_keeps_question_and_choice(tokenizer):
    features = make_choice_features(choice_rows((ALPHABET, "谁？", ["好", "大"], 0)), tokenizer, 16, "max_length")
    assert texts(tokenizer, features[0]["input_ids"])[1] == "[CLS]" + ALPHABET[:9] + "[SEP]谁？[SEP]大[SEP]"


def test_batches_of_choices(tokenizer):
    rows = choice_rows(("甲乙丙", "谁？", ["丁", "戊己"], 1), ("甲", "", ["子", "丑"], -1))
    features = make_choice_features(rows, tokenizer, 32)
    batch = ChoiceCollator(tokenizer, 8)(list(features))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 16)
    assert batch["labels"].tolist() == [1, -100]
    assert batch["attention_mask"].sum(-1).tolist() == [[10, 11], [5, 5]]
    assert "labels" not in ChoiceCollator(tokenizer)(list(features.remove_columns("labels")))


def test_an_empty_choice_is_never_chosen():
    rows = choice_rows(("x", "", ["a", "b"], 0), ("x", "", ["a", "b", "c"], 0))
    assert decode_choices(np.array([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0]]), rows) == [1, 2]
    assert decode_choices(np.array([[3.0, 2.0, 9.0], [1.0, 2.0, 0.0]]), rows) == [0, 1]


def test_blanks_of_one_group_get_different_choices():
    rng = np.random.default_rng(0)
    rows = choice_rows(*[(BLANK, "", ["a", "b", "c", "d"], -1)] * 8)
    groups = ["x", "x", "y", "x", "z", "y", "x", "v"]
    rows = rows.remove_columns("group").add_column("group", groups)
    for _ in range(20):
        logits = rng.normal(size=(8, 5))  # the last column is no choice of theirs
        chosen = decode_choices(logits, rows)
        for members in ([0, 1, 3, 6], [2, 5], [4], [7]):
            best = max(
                itertools.permutations(range(4), len(members)),
                key=lambda places: sum(logits[i, place] for i, place in zip(members, places, strict=True)),
            )
            assert [chosen[i] for i in members] == list(best)


def test_groups_of_more_blanks_than_choices_and_logits_that_are_no_numbers():
    rows = choice_rows(*[(BLANK, "", ["a", "b"], -1)] * 3)
    logits = np.array([[0.0, 1.0], [0.0, 2.0], [3.0, 0.0]])
    assert decode_choices(logits, rows.map(lambda row: {"group": "x"})) == [1, 1, 0]
    two = rows.select(range(2)).map(lambda row: {"group": "x"})
    assert decode_choices(np.array([[np.nan, np.nan], [0.0, np.inf]]), two) == [0, 1]


# ---- Questions ----


def question_rows(*rows):
    features = {"context": "string", "question": "string", "answers": ["string"], "starts": ["int64"]}
    features = datasets.Features(
        {
            k: datasets.List(datasets.Value(v[0])) if isinstance(v, list) else datasets.Value(v)
            for k, v in features.items()
        }
    )
    return datasets.Dataset.from_list([dict(zip(features, row, strict=True)) for row in rows], features=features)


def covered(row, feature):
    """The text from the first to the last token of a window's answer."""
    return row["context"][
        feature["char_start"][feature["start_positions"]] : feature["char_end"][feature["end_positions"]]
    ]


def test_windows(tokenizer):
    rows = question_rows(
        (ALPHABET, "谁？", ["子丑", "甲"], [10, 0]), ("3 km 甲乙", "谁？", ["km"], [2]), ("甲", "谁？", [], [])
    )
    features = make_question_features(rows, tokenizer, 16, overlap=4)
    assert features["row"][:] == [0, 0, 0, 1, 2]
    windows = [t.split("[SEP]")[1] for t in texts(tokenizer, features["input_ids"])]
    assert windows[:3] == [ALPHABET[0:11], ALPHABET[7:18], ALPHABET[14:22]]  # 16 - 3 special ones - 2 of the question
    # The first window holds only half of the answer, the third nothing
    assert [(f["start_positions"], f["end_positions"]) for f in features.select([0, 2, 4])] == [(0, 0)] * 3
    assert covered(rows[0], features[1]) == "子丑" and covered(rows[1], features[3]) == "km"
    assert features[1]["char_start"][:5] == [-1, -1, -1, -1, 7]


def test_an_answer_that_a_window_cuts_is_at_its_classification_token(tokenizer):
    rows = question_rows((ALPHABET, "谁？", [ALPHABET[6:8]], [6]))
    features = make_question_features(rows, tokenizer, 16, overlap=4)
    assert covered(rows[0], features[0]) == ALPHABET[6:8]
    assert (features[1]["start_positions"], features[1]["end_positions"]) == (0, 0)  # it begins with the second half
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    last = make_question_features(rows, left, 16, 4, padding="max_length")[2]
    assert last["start_positions"] == last["end_positions"] == last["input_ids"].index(tokenizer.cls_token_id) > 0


def test_overlap_and_question_leave_room_for_the_passage(tokenizer):
    rows = question_rows((ALPHABET, "谁？" * 20, ["癸"], [9]))
    features = make_question_features(rows, tokenizer, 16, overlap=128)
    first = texts(tokenizer, features["input_ids"])[0]
    assert first == "[CLS]谁？谁？[SEP]" + ALPHABET[:9] + "[SEP]"
    assert texts(tokenizer, features["input_ids"])[1].split("[SEP]")[1] == ALPHABET[4:13]  # 16 // 3 in common
    assert any(covered(rows[0], feature) == "癸" for feature in features)
    with pytest.raises(InputError, match="at least 16 for questions, got 12"):
        make_question_features(rows, tokenizer, 12, overlap=4)


def logits_for(features, *spans, width=20):
    """Start and end logits, (windows, width), that favour (window, first character, end, score); padding is huge."""
    start, end = (np.full((len(features), width), 99.0) for _ in range(2))
    for i, feature in enumerate(features):
        start[i, : len(feature["char_start"])] = end[i, : len(feature["char_start"])] = 0.0
        start[i, 0] = end[i, 0] = 50.0  # of the classification token, which is no answer
    for window, first, last, score in spans:
        start[window, features[window]["char_start"].index(first)] = score
        end[window, features[window]["char_end"].index(last)] = score
    return start, end


def test_the_best_span_of_all_windows_is_the_answer(tokenizer):
    rows = question_rows((ALPHABET, "谁？", ["子丑"], [10]), ("3 km 甲乙", "谁？", ["km"], [2]))
    features = make_question_features(rows, tokenizer, 16, overlap=4)
    logits = logits_for(features, (0, 1, 3, 4.0), (1, 8, 12, 5.0), (2, 15, 16, 3.0), (3, 0, 4, 1.0))
    assert decode_answers(logits, features, rows, 50) == [ALPHABET[8:12], "3 km"]
    # Too long an answer loses to the next best; the model's other outputs do not matter
    assert decode_answers((*logits, None), features, rows, 3) == [ALPHABET[1:3], "3 km"]


def test_a_span_does_not_end_before_it_begins(tokenizer):
    rows = question_rows((ALPHABET[:8], "谁？", ["甲"], [0]))
    features = make_question_features(rows, tokenizer, 16, overlap=4)
    start, end = logits_for(features, (0, 5, 6, 9.0))
    start[0, features[0]["char_start"].index(1)], end[0, features[0]["char_end"].index(3)] = 1.0, 20.0
    assert decode_answers((start, end), features, rows, 50) == [ALPHABET[1:3]]


def test_best_spans_equal_an_exhaustive_search(tokenizer):
    rng = np.random.default_rng(0)
    rows = question_rows(*((ALPHABET[: 5 + i], "谁？", [], []) for i in range(12)))
    features = make_question_features(rows, tokenizer, 16, overlap=4)
    start, end = rng.normal(size=(2, len(features), 16))
    best = [(-np.inf, "")] * len(rows)
    for f, s, e in zip(features, start, end, strict=True):
        for i, first in enumerate(f["char_start"]):
            for j in range(i, min(i + 3, len(f["char_end"]))):
                if first >= 0 and f["char_start"][j] >= 0 and s[i] + e[j] > best[f["row"]][0]:
                    best[f["row"]] = (s[i] + e[j], rows[f["row"]]["context"][first : f["char_end"][j]])
    assert decode_answers((start, end), features, rows, 3) == [text for _, text in best]


def test_slow_tokenizers_are_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow cannot tell which token belongs to which character"):
        make_question_features(question_rows(("甲", "谁", [], [])), Slow(), 32, 4)
