"""Sentences of tokens and tags in one's own files: columns and lists, schemes, scores, and whole runs."""

import json
import random

import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOBES

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.conll import read_conll, to_conll
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.glue.tag_scores import entity_f1, tag_accuracy

COLUMNS = "-DOCSTART- -X- O\n\nAnna NNP B-PER\n# NN O\n\nOslo NNP B-LOC\nor CC O\nYork NNP I-LOC\n"


def write(path, text):
    path.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text), "utf-8")
    return path


def load(path, text, **options):
    return load_files(task_type="tokens", train_file=write(path, text), **options)


@pytest.mark.parametrize(
    "text",
    [
        COLUMNS,
        COLUMNS.replace(" ", "\t").replace("\n", " \r\n"),
        "# id = 7\n# text = Anna and so on\n" + COLUMNS.split("\n\n", 1)[1],
        "word pos tag\n" + COLUMNS.split("\n\n", 1)[1],
        "\ufeff\n\n" + COLUMNS + "\n \n",
    ],
)
def test_columns(text, tmp_path):
    data, task = load(tmp_path / "train", text)
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and task.headline == ("f1", "macro_f1")
    assert data["train"]["tokens"][:] == [["Anna", "#"], ["Oslo", "or", "York"]]
    assert data["train"]["labels"][:] == [[3, 0], [1, 0, 2]] and data["train"]["idx"][:] == [0, 1]


def test_other_columns_and_blanks_of_other_scripts(tmp_path):
    text = "# sent_id = 1\n1\tdu\tle\tADP\n1-2\tdu\t_\t_\n2\t2-1\t\u3000\tNOUN\n2.1\tx\ty\tz\n"
    with pytest.raises(InputError, match="a.conllu:2: the first of the 4 columns only numbers the tokens"):
        load(tmp_path / "a.conllu", text)
    data, task = load(tmp_path / "a.conllu", text, text_columns=["3"], label_column="4")
    assert data["train"]["tokens"][:] == [["le", "\u3000"]] and task.labels == ("ADP", "NOUN")
    assert task.metrics == ("accuracy", "macro_f1")
    # A token may look as the ids of words of two lines do
    assert [row["1"] for _, row in read_conll(write(tmp_path / "b", "won O\n2-1 O\n"))] == [["won", "2-1"]]


def test_small_letters_that_are_no_prefix(tmp_path):
    _, task = load(tmp_path / "a.txt", "write O\nto e-mail\nor phone\n")
    assert task.labels == ("O", "e-mail", "phone") and task.metrics == ("accuracy", "macro_f1")


def test_lists(tmp_path):
    rows = [{"id": "a", "tokens": ["New York", "is"], "pos_tags": ["X", "Y"], "ner_tags": ["S-LOC", "O"]}]
    rows += [{"id": "b", "tokens": ["Anna", "B"], "ner_tags": ["B-PER", "E-PER"]}]
    test = write(tmp_path / "b.jsonl", [{"id": "c", "tokens": ["x"]}, {"id": "d", "tokens": ["y"], "ner_tags": ["_"]}])
    data, task = load(tmp_path / "a.jsonl", rows, test_file=test, id_column="id")
    assert task.labels == ("O", "B-LOC", "E-LOC", "S-LOC", "B-PER", "E-PER", "S-PER")
    assert data["train"]["labels"][:] == [[3, 0], [4, 5]]
    assert data["test"].to_dict() == {"tokens": [["x"], ["y"]], "idx": ["c", "d"], "labels": [[], []]}


GOOD = "Anna B-PER\nis O\n\n"
WRONG = {
    "a line with fewer columns": ("a.txt", GOOD + "Oslo\n", "a.txt:4: the line has 1 column, expected 2"),
    "no tags": ("a.txt", "Anna\nis\n", "a.txt:1: the line has one column, expected a token and its tag"),
    "one tag": ("a.txt", "Anna O\nis O\n", "a.txt: the only tag is 'O', expected at least two"),
    "no blank lines": ("a.txt", "a O\n" * 10_001, "a.txt:1: 10,001 lines without a blank line"),
    "no blank lines in a short file": ("a.txt", "a O\nb X\n" * 501, "a.txt:1: 1,002 lines without a blank line"),
    "a tag without a token": ("a.tsv", "x\tB-PER\n\tO\n", "a.tsv:1: token 2 is empty, expected a word"),
    "a blank after a tag": ("a.jsonl", [{"tokens": ["a"], "tags": ["B-X "]}], "the tag of token 1 is 'B-X ', expected"),
    "a tag that is none": ("a.txt", GOOD + "x O\ny PER\n", "a.txt:4: token 2 has the tag 'PER', expected tags such as"),
    "types before prefixes": ("a.txt", "x PER-B\ny O\n", "token 1 has the tag 'PER-B', expected tags such as O, B-PER"),
    "small letters": ("a.txt", "x b-per\ny o\n", "a.txt:1: token 1 has the tag 'b-per', expected tags such as O"),
    "a zero for an O": ("a.txt", "x B-PER\ny I-PER\nz 0\n", "a.txt:1: token 3 has the tag '0', expected"),
    "a table": ("a.csv", "token,tag\nx,O\n", "a.csv: a .csv holds no sentences of tokens, expected columns"),
    "numbers": ("a.jsonl", [{"tokens": ["a"], "ner_tags": [3]}], "a.jsonl:1: the tag of token 1 is 3, expected a name"),
    "a text": ("a.jsonl", [{"tokens": "ab", "tags": "O"}], "a.jsonl:1: the tags are 'O', expected a list"),
    "no lists": ("a.jsonl", [{"tokens": 3, "tags": ["A", "B"]}], "a.jsonl:1: the column 'tokens' holds 3, expected"),
    "too few tags": ("a.jsonl", [{"words": ["a", "b"], "tags": ["A"]}, {"words": ["c"], "tags": ["B"]}],
                     "a.jsonl:1: the row has 2 tokens and 1 tags"),
    "two lines in a token": ("a.jsonl", [{"tokens": ["a\tb", "c"], "tags": ["A", "B"]}], "a.jsonl:1: token 1 .* a tab"),
    "other names": ("a.jsonl", [{"sentence": ["a"], "mark": ["A"]}],
                    "no column 'tokens' or 'words' or 'text', the columns are sentence, mark; --text_columns names"),
    "no column of tags": ("a.jsonl", [{"tokens": ["a"], "mark": ["A"]}], "'ner_tags' .* the columns are mark; --text_"),
    "an empty file": ("a.conll", "\n\n", "a.conll: is empty, expected sentences"),
    "no text": ("a.txt", b"Anna B-PER\n\xff O\n", "a.txt:2: byte 0xff"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(case, tmp_path):
    name, content, message = WRONG[case]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message):
        load_files(task_type="tokens", train_file=tmp_path / name)


def test_a_tag_that_is_not_in_the_training_file(tmp_path):
    dev = write(tmp_path / "dev.txt", "x B-LOC\n")
    with pytest.raises(
        InputError, match=r"dev.txt:1: token 1 \('x'\) has the unknown tag 'B-LOC', expected one of O, B-PER"
    ):
        load(tmp_path / "train.txt", GOOD, validation_file=dev)


# ---- Scores ----


def test_entities_are_counted_as_by_seqeval():
    draw = random.Random(0)
    for scheme in ("BIO", "BIOES", "IO"):
        tags = ["O", *(f"{prefix}-{kind}" for prefix in scheme.replace("O", "") for kind in ("LOC", "PER"))]
        rows = [[[draw.choice(tags) for _ in range(9)] for _ in range(40)] for _ in range(2)]
        found = entity_f1(*rows)
        assert found["f1"] == pytest.approx(f1_score(rows[1], rows[0]))
        assert found["macro_f1"] == pytest.approx(f1_score(rows[1], rows[0], average="macro"))
        assert found["precision"] == pytest.approx(precision_score(rows[1], rows[0]))
        assert found["recall"] == pytest.approx(recall_score(rows[1], rows[0]))


def test_other_names_of_bioes():
    """BILOU and BMES mark the same entities, as the strict reading of well-formed rows has them."""
    rows = [["B-A", "I-A", "E-A", "O", "S-A", "S-A", "B-C", "E-C"]]
    guess = [["B-A", "I-A", "E-A", "O", "S-A", "O", "O", "S-C"]]
    for names in ("BIES", "BILU", "BMES"):
        other = str.maketrans("BIES", names)
        translated = [[[tag[0].translate(other) + tag[1:] if tag != "O" else tag for tag in row] for row in part]
                      for part in (guess, rows)]  # fmt: skip
        assert entity_f1(*translated)["f1"] == pytest.approx(f1_score(rows, guess, mode="strict", scheme=IOBES))


def test_single_tags():
    # A: 1 right of 2 and of 1; B: 1 of 1 and of 2; what the model did not see is wrong, and no tag of its own
    scores = tag_accuracy([["A", "A"], ["B", "_"]], [["A", "B"], ["B", "C"]])
    assert scores == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 0) / 3)}
    assert tag_accuracy([["_"], ["_"]], [["_"], ["_"]]) == {"accuracy": 1.0, "macro_f1": 0.0}
    assert tag_accuracy([], []) == {"accuracy": 0.0, "macro_f1": 0.0}


def test_what_is_written_can_be_read(tmp_path):
    text = to_conll([("a 1", ["New York", "#"], ["B-LOC", "O"]), (None, ["x"], ["O"])])
    assert text == "# id = a 1\nNew York\tB-LOC\n#\tO\n\nx\tO\n"
    assert [row["1"] for _, row in read_conll(write(tmp_path / "a", text))] == [["New York", "#"], ["x"]]
