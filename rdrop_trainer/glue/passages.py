"""Turn rows that ask something about a passage into examples: C3, ChID, CMRC 2018, DRCD and files in SQuAD's form.

The official files nest their questions, each in its own way; the rows on the Hub are flat. The content of a row shows
which layout it has.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import datasets

from ..errors import InputError
from .examples import UNLABELED, id_column, row_id, text_of
from .task import Task

logger = logging.getLogger(__name__)

NO_ANSWER = [""]  # as SQuAD 2.0 scores it
BLANK = "#idiom#"  # the blank that a row asks for
OTHER_BLANK = "____"
_ANY_BLANK = re.compile(r"#idiom\d*#")

Questions = Iterator[tuple[str, dict]]


def to_passages(task: Task, split: str, values: Iterable[tuple[str, Any]], source: str) -> datasets.Dataset:
    """Build one split in memory, a row per question.

    Args:
        split: rows of "train" and "validation" must have an answer.
        values: (place, raw value) pairs; messages name the place, such as "train.json:7".

    Returns:
        The columns `idx`, `context` and `question`. For multiple choice also `choices`, `label` (the index of the right
        one, -1 where it is not known) and `group` (the same for blanks that share their candidates, each of which fills
        one blank at most). For questions also `answers` (texts; `NO_ANSWER` where there is none) and `starts` (their
        first characters in the context, -1 where it does not contain them). A blank to fill is `BLANK` in the context.
    """
    choice = task.head == "choice"
    flatten, check = _LAYOUTS.get(task.name, squad_questions), _check_choice if choice else _check_question
    kind = split.split("_")[0]
    rows: list[dict[str, Any]] = []
    ids, groups, lost = [], [], []
    for place, value in values:
        for where, question in flatten(value, place):
            row = check(question, where)
            if task.unanswerable and has_no_answer(question, kind == "test"):
                row |= {"answers": NO_ANSWER, "starts": [-1]}
            if kind in ("train", "validation") and (row["label"] == UNLABELED if choice else not row["answers"]):
                name = f" {question['id']}" if "id" in question else ""
                raise InputError(f"{where}: the question{name} has no answer, expected one in {split} rows")
            if not choice and kind == "train" and max(row["starts"]) < 0 and row["answers"] != NO_ANSWER:
                lost.append(where)
                continue
            ids.append(row_id(task, question, len(rows)))
            rows.append(row)
            groups.append(where)
    if lost:
        logger.warning("%d questions whose passage does not hold their answer were left out (%s)", len(lost), lost[0])
    if not rows:
        what = "no passage holds the answer to its question" if lost else "is empty"
        raise InputError(f"{source}: {what}, expected rows of data")
    doubles = [name for name, count in Counter(ids).items() if count > 1]
    if doubles and any(leaderboard.form == "object" for leaderboard in task.submission.get(split, ())):
        raise InputError(
            f"{source}: the id {doubles[0]!r} occurs twice, but the leaderboard's file has one answer per id"
        )
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    text, number = datasets.Value("string"), datasets.Value("int64")
    features = {"context": text, "question": text}
    columns["idx"], features["idx"] = id_column(ids)
    if choice:
        columns["group"] = groups
        features |= {"choices": datasets.List(text), "label": number, "group": text}
    else:
        features |= {"answers": datasets.List(text), "starts": datasets.List(number)}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


# ---- Layouts: (where, {id, context, question, and choices and answer, or answers}) per question ----
# The blanks of one item of ChID, which exclude each other's choices, have the same `where`; other questions do not.


def _c3_questions(value: Any, where: str) -> Questions:
    """`[[line, ...], [{question, choice, answer}, ...], id]`, or flat as on the Hub."""
    if isinstance(value, list):
        if len(value) < 2 or not isinstance(value[1], list):
            raise InputError(f"{where}: expected [[lines], [questions], id]")
        value = {"context": value[0], "questions": value[1]}
    row = _mapping(value, where)
    context = "\n".join(_texts(row, "context", where))
    for number, question in enumerate(_list(row, "questions", where, [row]), 1):
        place = f"{where}, question {number}" if "questions" in row else where
        question = _mapping(question, place)
        choices, answer = _texts(question, "choice", place), question.get("answer")
        if answer not in (None, ""):
            spellings = [choice.strip().lower() for choice in choices]
            if str(answer).strip().lower() not in spellings:
                raise InputError(f"{place}: the answer {answer!r} is none of the choices {', '.join(choices)}")
            answer = spellings.index(str(answer).strip().lower())
        yield place, {**question, "context": context, "choices": choices, "answer": answer}


def _chid_questions(value: Any, where: str) -> Questions:
    """CLUE: several passages with blanks called #idiom000378#. FewCLUE: one passage with one blank, #idiom#."""
    row = _mapping(value, where)
    candidates = _texts(row, "candidates", where)
    if isinstance(row.get("content"), str):
        if len(_ANY_BLANK.findall(row["content"])) != 1:
            raise InputError(f"{where}: the content {row['content']!r} is expected to hold one blank, {BLANK}")
        context = _ANY_BLANK.sub(BLANK, row["content"])
        yield where, {**row, "context": context, "question": "", "choices": candidates}
        return
    answers, number = row.get("answers"), 0
    if isinstance(answers, list):
        answers = {"candidate_id": [_mapping(answer, where).get("candidate_id") for answer in answers]}
    elif not isinstance(answers, (dict, type(None))):
        raise InputError(f"{where}: the answers are {answers!r}, expected an object with one for each blank")
    for passage in _texts(row, "content", where):
        for blank in _ANY_BLANK.finditer(passage):
            before, after = (
                _ANY_BLANK.sub(OTHER_BLANK, part) for part in (passage[: blank.start()], passage[blank.end() :])
            )
            answer = None
            if answers and "candidate_id" in answers:  # on the Hub in the order of the blanks, else by their names
                numbers = _list(answers, "candidate_id", where)
                answer = numbers[number] if number < len(numbers) else None
            elif answers:
                answer = answers.get(blank.group())
            number += 1
            context = before + BLANK + after
            yield where, {
                "id": blank.group(), "context": context, "question": "", "choices": candidates, "answer": answer
            }  # fmt: skip


def squad_questions(value: Any, where: str) -> Questions:
    """`{data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}`, or flat as on the Hub."""
    row = _mapping(value, where)
    for key in ("data", "paragraphs"):
        if isinstance(row.get(key), list):
            for number, part in enumerate(row[key], 1):
                yield from squad_questions(part, f"{where}, {key} {number}")
            return
    for number, question in enumerate(_list(row, "qas", where, [row]), 1):
        place = f"{where}, question {number}" if "qas" in row else where
        question = _mapping(question, place)
        answers = question.get("answers") or []
        if not isinstance(answers, (list, dict)):
            raise InputError(f"{place}: the answers are {answers!r}, expected a list of them")
        if isinstance(answers, dict):  # of lists, as on the Hub
            columns = [answers.get(key) for key in _ANSWER]
            if not all(isinstance(column, list) for column in columns) or len(set(map(len, columns))) > 1:
                raise InputError(f"{place}: the answers are {answers!r}, expected lists of text and answer_start")
            answers = [dict(zip(_ANSWER, answer, strict=True)) for answer in zip(*columns, strict=True)]
        known = answers if question.get("answers") is not None else None
        yield place, {**question, "context": row.get("context"), "answers": known}


_ANSWER = ("text", "answer_start")
_LAYOUTS = {"c3": _c3_questions, "chid": _chid_questions}


def has_no_answer(question: dict, is_test: bool) -> bool:
    """Whether a question is marked to have no answer, or, where answers are not left out, has none."""
    return bool(question.get("is_impossible")) or (not is_test and question["answers"] == [])


# ---- Checks ----


def _check_choice(question: dict, where: str) -> dict:
    choices, answer = question["choices"], question.get("answer")
    if len(choices) < 2:
        raise InputError(f"{where}: the choices are {choices!r}, expected at least two")
    if answer is None or answer == "":
        answer = UNLABELED
    elif type(answer) is not int or not 0 <= answer < len(choices):  # True is an int too
        raise InputError(f"{where}: the answer is {answer!r}, expected a number from 0 to {len(choices) - 1}")
    return _check_texts(question, where) | {"choices": choices, "label": answer}


def _check_question(question: dict, where: str) -> dict:
    row = _check_texts(question, where)
    texts, starts = [], []
    for answer in question["answers"] or ():
        text, start = (answer.get(key) for key in _ANSWER) if isinstance(answer, dict) else (None, None)
        if text == "":  # test sets have it for no answer
            continue
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            raise InputError(f"{where}: the answer is {answer!r}, expected its text and answer_start")
        texts.append(text.strip())  # no token covers a space at the ends of an answer
        starts.append(_find(row["context"], texts[-1], start))
    return row | {"answers": texts, "starts": starts}


def _find(context: str, text: str, start: int) -> int:
    """The first character of the text in the context, nearest to `start`, which is wrong in some files; or -1."""
    if start >= 0 and context.startswith(text, start):
        return start
    places = (match.start() for match in re.finditer(re.escape(text), context))
    return min(places, key=lambda place: abs(place - start), default=-1)


def _check_texts(question: dict, where: str) -> dict:
    texts = {}
    for name in ("context", "question"):
        if question.get(name) is None:
            raise InputError(
                f"{where}: has no {name!r}, it holds {', '.join(key for key in question if question[key] is not None)}"
            )
        texts[name] = text_of(question, name, where)
    if not texts["context"].strip():
        raise InputError(f"{where}: the context is empty, expected a text")
    return texts


def _mapping(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _list(row: dict, name: str, where: str, default: list | None = None) -> list:
    value = row.get(name, default)
    if not isinstance(value, list):
        raise InputError(f"{where}: {name!r} holds {value!r}, expected a list")
    return value


def _texts(row: dict, name: str, where: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: {name!r} holds {value!r}, expected a list of texts")
    return value
