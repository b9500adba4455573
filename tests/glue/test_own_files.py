"""The user's own files for classification and regression: labels, known or found, and what is refused."""

import logging
import math

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.own_files import load_files
from support.task_files import jsonl, write


@pytest.mark.parametrize(
    "values, labels, expected",
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([1, -1, 1], ("-1", "1"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["0.5", "2", "1"], None, [0.5, 2.0, 1.0]),
        ([0.5, 2.0, 1.0], None, [0.5, 2.0, 1.0]),
    ],
)
def test_custom_labels(tmp_path, values, labels, expected):
    file = write(tmp_path / "a.json", jsonl(*({"text": "x", "label": value} for value in values)))
    test = write(tmp_path / "b.json", jsonl({"text": "y"}))
    splits, task = load_files(train_file=file, validation_file=file, test_file=test)
    assert task.labels == labels and list(splits["validation"]["label"]) == expected
    assert list(splits["test"]["label"]) == pytest.approx([math.nan if labels is None else -1], nan_ok=True)
    assert task.name == "custom" and task.metrics == (("pearson", "spearmanr") if labels is None else ("accuracy",))


def test_custom_with_known_labels(tmp_path):
    file = write(tmp_path / "a.tsv", "text\nx\n\ny\n")
    splits, task = load_files(test_file=file, labels=["no", "yes"])
    assert task.labels == ("no", "yes") and list(splits["test"]["text"]) == ["x", "", "y"]
    assert load_files(test_file=file, labels=[])[1].is_regression
    with pytest.raises(InputError, match="no column 'label', the columns are text"):
        load_files(test_file=file)


def test_broken_custom_data(tmp_path):
    def fails(expected, content, **options):
        file = write(tmp_path / "a.csv", content)
        with pytest.raises(InputError, match=expected):
            load_files(train_file=file, **options)

    fails("a.csv: is empty", "text,label\n")
    fails("no column of text", "id,label\n1,a\n")
    fails("every row has the label 'a'", "text,label\nx,a\n")
    fails("no column 'label', the columns are text, gold; did you mean --label_column gold", "text,gold\nx,a\n")
    fails("the columns are text, id; --label_column says which of them has the labels", "text,id\nx,a\n")
    fails("a.csv:2: no column 'body'", "text,label\nx,a\ny,b\n", text_columns=["body"])
    fails("a.csv:3: the label is 'nan', expected a number", "text,label\nx,0.5\ny,nan\n")
    fails("none called idx", "idx,label\nx,a\n", text_columns=["idx"])
    fails("one or two different ones", "text,label\nx,a\n", text_columns=["text", "text"])
    with pytest.raises(InputError, match="no data"):
        load_files()
    train = write(tmp_path / "a.csv", "text,label\nx,a\ny,b\n")
    other = write(tmp_path / "b.csv", "text,label\nx,a\ny,c\n")
    with pytest.raises(InputError, match="b.csv:3: unknown label 'c', expected one of a, b"):
        load_files(train_file=train, validation_file=other)


def test_a_blank_cell_is_no_label(tmp_path):
    """It looks like an empty one; a class without a name would be learned from it."""
    rows = "text,label\nx,a\ny,b\n"
    with pytest.raises(InputError, match=r"a.csv:4: the row has no label \('  '\), expected one of a, b"):
        load_files(train_file=write(tmp_path / "a.csv", rows + "z,  \n"))
    splits, task = load_files(
        train_file=write(tmp_path / "a.csv", rows), test_file=write(tmp_path / "b.csv", "text,label\nz, \nx,a\n")
    )
    assert task.labels == ("a", "b") and list(splits["test"]["label"]) == [-1, 0]


def test_decimal_commas_are_no_names(tmp_path):
    file = write(tmp_path / "a.tsv", "text\tlabel\nx\t2\ny\t0,5\n")
    with pytest.raises(InputError, match="a.tsv:3: the label is '0,5', expected decimal numbers to have a point"):
        load_files(train_file=file)
    versions = write(tmp_path / "b.tsv", "text\tlabel\nx\t1,2,3\ny\t0,5\n")
    assert load_files(train_file=versions)[1].labels == ("0,5", "1,2,3")


@pytest.mark.parametrize("one, other", [("good", "Good"), ("caf\u00e9", "cafe\u0301")])
def test_labels_that_look_alike_are_said(one, other, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        task = load_files(train_file=write(tmp_path / "a.csv", f"text,label\nx,{one}\ny,{other}\nz,bad\n"))[1]
    assert set(task.labels) == {one, other, "bad"}
    (said,) = [message for message in caplog.messages if "are two classes" in message]
    assert ascii(one) in said and ascii(other) in said and "bad" not in said


def test_guessed_columns_are_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_files(train_file=write(tmp_path / "a.csv", "title,label\nx,a\ny,b\n"))
    assert "taking title for the text" in caplog.text
