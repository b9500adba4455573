"""A user's own files: the task that they make, by the kind of task and by what is in them, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from ..errors import InputError
from .columns import advice_on_label, choose_text_columns, read_columns
from .conll import are_numbers, holds_lists, read_sentences
from .data import load_task
from .examples import find_column
from .labels import find_labels
from .metrics import CORRELATIONS, with_metrics
from .pairs import choose_pair
from .passages import has_no_answer, squad_questions
from .readers import Rows, read_rows, read_values
from .tag_rows import find_tags
from .tag_scores import are_entities
from .task import ENTITIES, LANGUAGE, OTHER_TAGS, QUESTIONS, TEXTS, Leaderboard, Task

_TOKENS = ("tokens", "words", "text")
_TAGS = ("ner_tags", "tags", "labels", "label", "ner", "pos_tags", "chunk_tags")


def load_files(
    *,
    task_type: str = "classification",
    head: str = "causal",
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    unlabeled_file: str | Path | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    labels: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> tuple[datasets.DatasetDict, Task]:
    """Load a user's own data, for which there is no named task.

    Args:
        task_type: "classification" (or a regression), "tokens", "seq2seq", "qa" or "lm" (a causal or masked language
            model, which `head` says).
        head: of a language model, "causal" or "masked".
        train_file, validation_file, test_file, unlabeled_file: the files; at least one of the first three. Token tasks
            read CoNLL columns, or .json, .jsonl and .parquet with lists of tokens and of tags.
        text_columns: one or two columns; of a token task that of the tokens, of texts from texts that of the source, of
            a language model that of the texts where they are not in a .txt.
            Default: as `choose_text_columns` finds them; a usual name, or the first column of CoNLL; as `choose_pair`;
            "text".
        label_column: name of the label column; default: "label"; of a token task a usual name, or the last column; of
            texts from texts that of the target, as `choose_pair` finds it.
        id_column: name of the column of ids, which predictions keep as they are written; a test file must have it, and
            without one any of the files.
        labels: label names in the order of their ids, if they are known, as from a trained model; an empty sequence
            means a regression. Default: the sorted labels of the training file (else of the validation or test file),
            or a regression if these are decimal numbers or the metrics are correlations.
        metrics: scores to report first, as of `with_metrics`. Default: those of the kind of task.

    Returns:
        The splits, as `load_task` returns them, and a task "custom" for them.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {kind: path for kind, path in files.items() if path is not None}
    if not files:
        raise InputError("no data: give train_file, validation_file or test_file")
    kind, first = next(iter(files.items()))
    given = _Given(first, kind == "test", head, text_columns, label_column, id_column, labels, metrics or ())
    kinds = {"classification": _classification, "tokens": _tokens, "seq2seq": _texts, "qa": _questions, "lm": _language}
    fields = kinds[task_type](given)
    task = Task(name="custom", suite="custom", files=dict.fromkeys(files, ()), id_column=id_column, **fields)
    task = with_metrics(task, metrics or ())
    if id_column is not None and test_file is None:
        _check_any_has(id_column, list(files.values()), read_sentences if task_type == "tokens" else read_rows)
    named: dict[str, Any] = {f"{kind}_file": path for kind, path in files.items()}
    return load_task(task, **named, unlabeled_file=unlabeled_file), task


def _check_any_has(column: str, paths: Sequence[str | Path], read: Callable[[str | Path], Rows]) -> None:
    """Refuse the name of a column that none of the files has in its first row."""
    rows = [(path, *next(iter(read(path)), (1, {}))) for path in paths]
    if not any(column in row for _, _, row in rows):
        path, line, row = rows[0]
        find_column(row, (column,), f"{path}:{line}")


class _Given(NamedTuple):
    """The first file, whether it may have no labels, and what the user says of the files, as of `load_files`."""

    path: str | Path
    is_test: bool
    head: str
    text_columns: Sequence[str] | None
    label_column: str | None
    id_column: str | None
    labels: Sequence[str] | None
    metrics: Sequence[str]


def _classification(given: _Given) -> Mapping[str, Any]:
    """Fields of a task that gives each row a label or a number."""
    path, text_columns, labels = given.path, given.text_columns, given.labels
    label_column = given.label_column or "label"
    line, columns = read_columns(path)
    if label_column not in (column.name for column in columns) and (labels is None or not given.is_test):
        names = dict.fromkeys(column.name for column in columns)
        find_column(names, (label_column,), f"{path}:{line}", advice=advice_on_label(columns, text_columns or ()))
    if text_columns is None:
        others = {label_column} if given.id_column is None else {label_column, given.id_column}
        text_columns = choose_text_columns(path, line, columns, others)
    reserved = {"idx", "label", "labels", label_column}.intersection(text_columns)
    if reserved or len(text_columns) > 2 or len(set(text_columns)) < len(text_columns):
        raise InputError(
            f"text columns {', '.join(text_columns)}: expected one or two different ones, none called idx or label"
        )
    if labels is None:
        labels = () if given.metrics and set(given.metrics) <= CORRELATIONS else find_labels(path, label_column)
    scores = ("accuracy",) if labels else ("pearson", "spearmanr")
    return {
        "text_columns": tuple(text_columns),
        "labels": tuple(labels) or None,
        "label_sources": (label_column,),
        "metrics": scores,
        "headline": scores,
    }


def _tokens(given: _Given) -> Mapping[str, Any]:
    """Fields of a task that gives each token a tag."""
    path, text_columns, label_column, labels = given.path, given.text_columns, given.label_column, given.labels
    if text_columns is not None and len(text_columns) != 1:
        raise InputError(f"text columns {', '.join(text_columns)}: expected one, that of the tokens")
    line, row = next(read_sentences(path), (1, {}))
    where = f"{path}:{line}"
    if not row:
        raise InputError(f"{path}: is empty, expected sentences of tokens and their tags")
    columns = list(row)
    is_conll = not holds_lists(path)
    if is_conll and text_columns is None and len(row[columns[0]]) > 1 and are_numbers(row[columns[0]]):
        raise InputError(
            f"{where}: the first of the {len(columns)} columns only numbers the tokens; name those of the tokens and "
            "of the tags, such as --text_columns 2 --label_column 4"
        )
    advice = "; --text_columns names that of the tokens, --label_column that of the tags"
    names = text_columns or (columns[:1] if is_conll else _TOKENS)
    tokens = find_column(row, names, where, advice=advice)
    left = {name: row[name] for name in columns if name != tokens}
    usual = (columns[-1] if len(columns) > 1 else "2",) if is_conll else _TAGS
    tags = find_column(left, (label_column,) if label_column else usual, where, required=False)
    if tags is None and (labels is None or not given.is_test):
        if is_conll and len(columns) == 1:
            raise InputError(
                f"{where}: the line has one column, expected a token and its tag, separated by blanks or a tab"
            )
        find_column(left, (label_column,) if label_column else usual, where, advice=advice)
    if labels is None:
        labels = find_tags((f"{path}:{number}", found.get(tags)) for number, found in read_sentences(path))
        if len(labels) < 2:
            only = f"the only tag is {labels[0]!r}" if labels else "there are no tags"
            raise InputError(f"{path}: {only}, expected at least two to learn")
    return {
        "text_columns": ("tokens",),
        "text_sources": {"tokens": (tokens,)},
        "labels": tuple(labels),
        "label_sources": (tags,) if tags else usual,
        "submission": {"test": (Leaderboard("custom_test_predict.conll", None),)},
        **(ENTITIES if are_entities(labels) else OTHER_TAGS),
    }


def _texts(given: _Given) -> Mapping[str, Any]:
    """Fields of a task that writes a text for each text."""
    source = given.text_columns[0] if given.text_columns else None
    source, target = choose_pair(given.path, source, given.label_column, given.id_column, given.is_test)
    return {
        "text_columns": ("source",),
        "text_sources": {"source": (source,)},
        "labels": None,
        "label_sources": (target,),
        "submission": {"test": (Leaderboard("custom_test_predict.jsonl", None, "prediction"),)},
        **TEXTS,
    }


def _questions(given: _Given) -> Mapping[str, Any]:
    """Fields of a task that cuts answers out of passages."""
    places = ((value, f"{given.path}:{line}") for line, value in read_values(given.path))
    questions = (question for value, place in places for _, question in squad_questions(value, place))
    return {
        "text_columns": ("context", "question"),
        "labels": None,
        "unanswerable": any(has_no_answer(question, given.is_test) for question in questions),
        "submission": {"test": (Leaderboard("custom_test_predict.json", None, "object"),)},
        **QUESTIONS,
    }


def _language(given: _Given) -> Mapping[str, Any]:
    """Fields of a task that learns texts alone."""
    columns = given.text_columns or ("text",)
    if len(columns) != 1:
        raise InputError(f"text columns {', '.join(columns)}: expected one, that of the texts")
    is_plain = Path(given.path).suffix.lower() == ".txt"
    if is_plain and given.text_columns:
        raise InputError(f"text column {columns[0]}: {given.path} is plain text and has no columns; leave it out")
    return {
        "text_columns": ("text",),
        "text_sources": {} if is_plain else {"text": tuple(columns)},
        "labels": None,
        "head": given.head,
        "submission": {"test": (Leaderboard("custom_test_predict.jsonl", None, "perplexity"),)},
        **LANGUAGE,
    }
