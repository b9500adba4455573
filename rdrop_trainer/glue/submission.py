"""Write predictions in the form that the leaderboards of GLUE, CLUE and FewCLUE take.

File names and row counts are facts of the tasks (`Task.submission`). FewCLUE adds an "f" to the tasks that it shares
with CLUE ("tnewsf_predict.json"). The number of rows shows which of the two is meant. For ChID, where the forms differ
too, the ids also show it: CLUE's are the names of blanks. OCNLI and CSL have 3000 test rows in both, and get the name
of CLUE. CLUENER's file has the form of its training data.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..run_folder import write_text
from .conll import to_conll
from .language_models import perplexity
from .tag_scores import NO_TAG, entities_of
from .task import Leaderboard, Task


@dataclass(frozen=True)
class Submission:
    """A written file. `expected_rows` is the number that the leaderboard takes; None if there is none."""

    path: Path
    rows: int
    expected_rows: int | None
    complete: bool


def write_submission(
    task: Task,
    split: str,
    ids: Sequence[int | str],
    predictions: Sequence,
    directory: str | Path,
    *,
    tokens: Sequence[Sequence[str]] | None = None,
) -> Submission:
    """Write the predictions for one split, in its order.

    GLUE and custom tasks get .tsv files, CLUE and FewCLUE JSON in the form of the leaderboard; a .conll has a token and
    its tag a line. A split that no leaderboard takes goes into `<task>_<split>_predict` with the ending of its suite.
    The file appears as a whole, or not at all.

    Args:
        ids: the column `idx` of the rows. GLUE numbers its rows from 0 instead, as do a user's own files without
            `task.id_column`.
        predictions: label ids; numbers for a regression; for token tasks, per row, a list of tags; indices of choices;
            texts of answers or titles; of a language model the loss of each line and its number of tokens.
        tokens: of the rows, for token tasks.

    Returns:
        The file; `complete` is false if the leaderboard expects another number of rows.
    """
    lengths = {"ids": len(ids), "predictions": len(predictions)}
    if task.head == "tokens":
        lengths["rows of tokens"] = len(tokens or ())
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise InputError(f"{task.name} {split}: there are {counts}, expected as many of each")

    if task.head == "tokens":
        for row, (words, tags) in enumerate(zip(tokens, predictions, strict=True)):
            _check_tags(task, row, words, tags)
        answers = [_entities("".join(words), tags) for words, tags in zip(tokens, predictions, strict=True)]
    else:
        answers = [_answer(task, row, prediction) for row, prediction in enumerate(predictions)]
    ids = [row_id if isinstance(row_id, str) else operator.index(row_id) for row_id in ids]
    leaderboard = _choose_leaderboard(task, split, ids)
    if leaderboard.file.endswith(".conll"):
        names: Sequence[int | str | None] = ids if task.id_column is not None else [None] * len(ids)
        lines = [to_conll(list(zip(names, tokens, predictions, strict=True))).rstrip("\n")]
    elif leaderboard.file.endswith(".tsv"):
        name, shown = ("index", range(len(ids))) if task.id_column is None else (task.id_column, ids)
        lines = [f"{name}\tprediction", *map("{}\t{}".format, shown, answers)]
    elif leaderboard.form == "object":
        by_id = dict(zip(ids, answers, strict=True))
        if len(by_id) < len(ids):
            raise InputError(f"{task.name} {split}: {len(ids) - len(by_id)} ids occur twice, expected one for each row")
        lines = [json.dumps(by_id, ensure_ascii=False, indent=0)]
    else:
        rows = ({"id": row_id, leaderboard.form: answer} for row_id, answer in zip(ids, answers, strict=True))
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]

    path = Path(directory) / leaderboard.file
    try:
        write_text(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    return Submission(path, len(answers), leaderboard.rows, leaderboard.rows in (None, len(answers)))


def _choose_leaderboard(task: Task, split: str, ids: Sequence[int | str]) -> Leaderboard:
    """The leaderboard whose row count fits, else the main one. Of two forms, "object" is for ids that are names."""
    ending = "tsv" if task.suite in ("glue", "custom") else "json"
    known = task.submission.get(split, (Leaderboard(f"{task.name}_{split}_predict.{ending}", None),))
    named = bool(ids) and isinstance(ids[0], str)
    if len({leaderboard.form for leaderboard in known}) > 1:
        known = [leaderboard for leaderboard in known if (leaderboard.form == "object") == named]
    return next((leaderboard for leaderboard in known if leaderboard.rows == len(ids)), known[0])


def _answer(task: Task, row: int, prediction: Any) -> str | int | float | None:
    if task.head in ("question", "seq2seq"):
        return str(prediction)
    if task.is_language_model:
        value = perplexity([prediction])
        return value if math.isfinite(value) else None
    if task.head == "choice":
        return operator.index(prediction)
    if task.is_regression:
        value = float(prediction)
        if not math.isfinite(value):
            raise InputError(f"{task.name}: the prediction for row {row} is {value}, expected a finite number")
        if task.score_range is None:
            return str(value)
        lowest, highest = task.score_range
        return f"{min(max(lowest, value), highest):.3f}"
    label = operator.index(prediction)
    names = task.raw_labels or task.labels
    if not 0 <= label < len(names):
        raise InputError(f"{task.name}: the prediction for row {row} is {label}, expected 0 to {len(names) - 1}")
    return names[label]


def _check_tags(task: Task, row: int, tokens: Sequence[str], tags: Sequence[str]) -> None:
    known = {*task.labels, NO_TAG}
    if len(tags) != len(tokens) or not known.issuperset(tags):
        expected = f"expected {len(tokens)} of {', '.join(sorted(known)[:10])}"
        raise InputError(f"{task.name}: row {row} has the tags {', '.join(map(repr, tags[:10]))}, {expected}")


def _entities(text: str, tags: Sequence[str]) -> dict:
    """{type: {mention: [[start, inclusive end], ...]}}, as in the training data of CLUENER."""
    found: dict[str, dict[str, list]] = {}
    for kind, start, end in entities_of(tags):
        found.setdefault(kind, {}).setdefault(text[start : end + 1], []).append([start, end])
    return found
