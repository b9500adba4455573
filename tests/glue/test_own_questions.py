"""Questions of one's own in SQuAD's form, with and without answers: rows, answers from logits, scores."""

import json
import random
import string

import datasets
import numpy as np
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.answer_scores import squad_scores
from rdrop_trainer.glue.metrics import load_metric
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.glue.passages import NO_ANSWER
from rdrop_trainer.glue.questions import decode_answers
from rdrop_trainer.script.arguments import DataArguments
from rdrop_trainer.script.processors import QuestionProcessor

TEXT = "Anna Berg lives in Oslo."
OSLO = {"id": "a", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 19}]}
NOBODY = {"id": "b", "question": "Who?", "is_impossible": True, "answers": [], "plausible_answers": OSLO["answers"]}
FLAT = {"id": "c", "context": TEXT, "question": "Who?", "answers": {"text": [], "answer_start": []}}


def nested(*questions):
    return json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": TEXT, "qas": questions}]}]}, indent=1)


def load(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return load_files(task_type="qa", **{f"{name}_file": folder / f"{name}.json" for name in files})


@pytest.mark.parametrize("questions, unanswerable", [((OSLO,), False), ((OSLO, NOBODY), True)])
def test_squad(questions, unanswerable, tmp_path):
    data, task = load(tmp_path, train=nested(*questions), test=nested({"id": "x", "question": "Who?"}))
    assert task.unanswerable == unanswerable and task.headline == ("exact_match", "f1")
    assert data["train"]["answers"][:] == [["Oslo"], NO_ANSWER][: len(questions)]
    assert data["train"]["starts"][:] == [[19], [-1]][: len(questions)]
    assert data["test"]["answers"][:] == [[]] and data["test"]["idx"][:] == ["x"]
    processor = QuestionProcessor(task, None, None, DataArguments(), 32)
    assert processor.has_answers(data["train"]) and not processor.has_answers(data["test"])


def test_the_rows_of_the_hub(tmp_path):
    text = "\n".join(map(json.dumps, [{"context": TEXT, **OSLO}, FLAT]))
    data, task = load(tmp_path, train=text, test=text)
    assert task.unanswerable and data["train"]["answers"][:] == [["Oslo"], NO_ANSWER]
    assert data["test"]["answers"][:] == [["Oslo"], []]


@pytest.mark.parametrize("unknown", [{}, {"answers": []}, {"answers": [{"text": "kept secret", "answer_start": 0}]}])
def test_a_test_file_with_some_answers_is_not_scored_which_is_said(unknown, tmp_path, caplog):
    data, task = load(tmp_path, train=nested(OSLO), test=nested(OSLO, {"id": "x", "question": "Which?", **unknown}))
    processor = QuestionProcessor(task, None, None, DataArguments(), 32)
    assert processor.has_answers(data["train"]) and not caplog.messages
    assert not processor.has_answers(data["test"])
    assert "1 of 2 test rows have no answer that stands in their passage (the first is x)" in caplog.text


WRONG = {
    "no answers": (
        {"train": nested({"id": "a", "question": "Who?"})},
        "question 1: the question a has no answer, expected",
    ),
    "no answer in one file": (
        {"train": nested(OSLO), "validation": nested(OSLO, NOBODY)},
        "validation.json: item 1, .*, question 2: the question b has no answer, expected one in validation rows",
    ),
    "no question": ({"train": nested({"id": "a", "answers": []})}, "has no 'question', it holds id, answers, context"),
    "answers without places": (
        {"train": nested(OSLO | {"answers": ["Oslo"]})},
        "the answer is 'Oslo', expected its text and",
    ),
    "no SQuAD": (
        {"train": '{"sentence": "a", "label": "b"}'},
        "train.json:1: has no 'context', it holds sentence, label",
    ),
    "an id twice": ({"train": nested(OSLO), "test": nested(OSLO, OSLO)}, "test.json: the id 'a' occurs twice"),
    "broken JSON": ({"train": nested(OSLO)[:-9]}, "train.json:[0-9]+: broken JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(case, tmp_path):
    files, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        load(tmp_path, **files)


def test_no_answer_has_the_score_of_the_window_that_speaks_most_against_it():
    """Two windows; no answer scores 3 and 5, the best answer 4."""
    rows = datasets.Dataset.from_dict({"context": ["ab"]})
    features = {"row": [0, 0], "nowhere": [0, 1], "char_start": [[-1, 0], [1, -1]], "char_end": [[-1, 1], [2, -1]]}
    start, end = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])
    given = ((start, end), datasets.Dataset.from_dict(features), rows, 9)
    assert [decode_answers(*given, threshold) for threshold in (None, 0.0, -0.5, -1.5)] == [["b"], ["b"], ["b"], [""]]


def by_hand(prediction, answer):
    """Exact match and F1, step by step as SQuAD's script has them."""
    bags = []
    for text in (prediction, answer):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        bags.append([word for word in kept.split() if word not in ("a", "an", "the")])
    common = sum(min(bags[0].count(word), bags[1].count(word)) for word in set(bags[0]))
    exact = float(bags[0] == bags[1])
    if not bags[0] or not bags[1] or not common:
        return exact, exact
    precision, recall = common / len(bags[0]), common / len(bags[1])
    return exact, 2 * precision * recall / (precision + recall)


def test_the_scores_are_those_of_squad():
    draw = random.Random(0)
    words = ["The", "cat,", "cat", "sat", "a", "Mat.", "-", ""]
    texts = [" ".join(draw.choices(words, k=draw.randrange(4))) for _ in range(120)]
    predictions, answers = texts[:40], [list(pair) for pair in zip(texts[40:80], texts[80:], strict=True)]
    scores = squad_scores(predictions, answers)
    each = [[by_hand(guess, right) for right in rights] for guess, rights in zip(predictions, answers, strict=True)]
    assert [scores["exact_match"], scores["f1"]] == pytest.approx(list(np.max(each, axis=1).mean(0)))


def test_chinese_answers_are_scored_by_characters(tmp_path):
    _, task = load(tmp_path, train=nested(OSLO))
    scores = load_metric(task).compute(predictions=["李白", ""], references=[["李白诗"], NO_ANSWER])
    assert scores == {"exact_match": 0.5, "f1": pytest.approx((4 / 5 + 1) / 2)}
