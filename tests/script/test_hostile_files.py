"""Broken data files: one sentence with file and line, exit code 2, at once, and no file left."""

import gzip
import io
import json
import os
import random
import re
import time
import zipfile
from itertools import pairwise

import pyarrow
import pyarrow.parquet
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.glue.readers import read_rows, read_values
from rdrop_trainer.glue.tasks import get_task
from support.runs import script

TSV = "sentence\tlabel\n" + "".join(f"line {i} of the text\t{'good' if i % 2 else 'bad'}\n" for i in range(2, 10))
CSV = TSV.replace("\t", ",")
ROWS = [dict(zip(("sentence", "label"), line.split("\t"), strict=True)) for line in TSV.splitlines()[1:]]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
HUGE = "word " * 2_100_000  # 10 MB


def packed(make):
    file = io.BytesIO()
    make(file)
    return file.getvalue()


def in_zip(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", CSV)


def parquet(table):
    return packed(lambda file: pyarrow.parquet.write_table(pyarrow.table(table), file))


GOOD_PARQUET = parquet({name: [row[name] for row in ROWS] for name in ("sentence", "label")})


def jsonl(*lines):
    return JSONL + "".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"


TWO_OF_A_NAME = pyarrow.Table.from_arrays([["a"], ["x"], ["y"]], names=["sentence", "label", "label"])
MANY_NAMES = ",".join(map(str, [*range(100_000), 0]))
MANY_KEYS = "{" + ",".join(f'"{i}": 0' for i in [*range(60_000), 59_999]) + "}"
NO_DAY = {"sentence": ["a", "b"], "label": ["x", "y"], "day": pyarrow.array([2**30, 0], pyarrow.date32())}
NESTED = {"sentence": [["a"], ["b"]], "label": ["x", "y"]}

# One case per reason. Name of the case: (name of the file, what it holds, what the sentence must say; ":9" is a line)
BROKEN = {
    # what kind of file it is
    "no ending": ("data", TSV, "data: unknown kind of file ''"),
    "gzip": ("a.tsv", gzip.compress(TSV.encode()), "a.tsv: is gzip-compressed.*unpack"),
    "a spreadsheet": ("a.csv", packed(in_zip), "a.csv: is a zip archive or a spreadsheet.*save"),
    "parquet in .csv": ("a.csv", GOOD_PARQUET, "a.csv: is a parquet file.*.parquet"),
    # characters and lines
    "Latin-1": ("a.csv", (CSV + "café,good\n").encode("latin-1"), "a.csv:10: byte 0xe9 at position 4"),
    "GBK": ("a.csv", (CSV + "电影,good\n").encode("gbk"), "a.csv:10: byte 0xb5 .*such as GBK; in Excel: CSV"),
    "UTF-16": ("a.csv", CSV.encode("utf-16"), "a.csv:1: .*UTF-16.*saved as UTF-8"),
    "UTF-32, whose mark begins as UTF-16's": ("a.jsonl", JSONL.encode("utf-32"), "a.jsonl:1: .*UTF-32"),
    "a mark in the middle": ("a.tsv", TSV + "\ufeff" + TSV, "a.tsv:10: .*byte order mark.*files were put together"),
    "a NUL byte": ("a.tsv", TSV + "li\0ne\tgood\n", "a.tsv:10: holds a NUL byte"),
    "old Mac line ends": ("a.tsv", TSV.replace("\n", "\r"), "a.tsv:1: .*carriage returns"),
    "10 MB in a line": ("a.tsv", TSV + HUGE + "\tgood\n", "a.tsv:10: the line is 10,5.* Longer texts go"),
    # the header
    "an empty file": ("a.csv", b"", "a.csv:1: is empty"),
    "a header only": ("a.tsv", "sentence\tlabel\n", "a.tsv: .*empty"),
    "semicolons in .csv": ("a.csv", CSV.replace(",", ";"), "a.csv:1: .*separated by semicolons.*commas"),
    "100,000 names, one twice": ("a.csv", MANY_NAMES, "a.csv:1: .*'0' twice"),
    "no label column": ("a.tsv", TSV.split("\n", 1)[1], "a.tsv:2: no column 'label', the columns are line"),
    "escape sequences": ("a.tsv", "\x1b[31msentence\x1b[0m\tx\na\tb\n", "'label'.*\\\\x1b\\[31msentence"),
    # rows of cells
    "too few cells": ("a.tsv", TSV + "line\n", "a.tsv:10: the row has 1 cells, expected 2"),
    "too many cells in CSV": ("a.csv", CSV + "line, a, good\n", "a.csv:10: the row has 3 cells, expected 2"),
    "unbalanced quotes": ("a.csv", CSV + '"line,good\n', "a.csv:10: broken CSV .unexpected end"),
    "a quote that swallows 10 MB": ("a.csv", CSV + '"line,good\n' + CSV * 50_000, "a.csv:10: broken CSV .*Longer"),
    # JSON
    "truncated JSON": ("a.jsonl", JSONL[:-10], "a.jsonl:8: broken JSON"),
    "60,000 keys, one twice": ("a.jsonl", MANY_KEYS, "a.jsonl:1: .*'59999' twice"),
    "half a surrogate pair": ("a.jsonl", jsonl('{"sentence": "\\ud800", "label": "good"}'), ":9: .*surrogate"),
    "nested 100,000 deep": ("a.jsonl", jsonl("[" * 100_000), "a.jsonl:9: broken JSON"),
    "a number of 10,000 digits": ("a.jsonl", jsonl('{"label": ' + "9" * 10_000 + "}"), "a.jsonl:9: broken JSON"),
    "an array of objects": ("a.jsonl", json.dumps(ROWS), "a.jsonl:1: holds a JSON list, expected one object per line"),
    "a missing key": ("a.jsonl", jsonl({"label": "good"}), "a.jsonl:9: no column 'sentence', the columns are label"),
    # parquet
    "text in .parquet": ("a.parquet", TSV, "a.parquet: broken parquet"),
    "parquet that is not UTF-8": ("a.parquet", GOOD_PARQUET.replace(b"good", b"go\xffd"), "broken parquet.*0xff"),
    "a date beyond all calendars": ("a.parquet", parquet(NO_DAY), "a.parquet: broken parquet .*days=1073741824"),
    "a name twice in parquet": ("a.parquet", parquet(TWO_OF_A_NAME), "a.parquet: names the column 'label' twice"),
    "nested parquet": ("a.parquet", parquet(NESTED), "a.parquet:1: .*holds ..a.., expected text"),
    # texts and labels
    "an empty text": ("a.tsv", TSV + "  \tgood\n", "a.tsv:10: the text is empty"),
    "a row without a label": ("a.tsv", TSV + "line\t\n", "a.tsv:10: the row has no label"),
    "one label only": ("a.csv", "sentence,label\na,good\nb,good\n", "a.csv: every row has the label 'good'"),
    "labels of mixed types": ("a.jsonl", jsonl({"sentence": "a", "label": 1}), "a.jsonl:9: the label is 1.*'bad'"),
    "a list for a label": ("a.jsonl", jsonl({"sentence": "a", "label": ["good"]}), "a.jsonl:9: the label is \\['good'"),
    "a label of two lines": ("a.csv", CSV + 'a,"good\nbad"\n', "a.csv:10: the label 'good.nbad' holds a tab or a line"),
    "too much for float32": ("a.csv", "sentence,label\na,0.5\nb,1e39\n", "a.csv:3: the label is '1e39', expected a"),
}


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capfd, here, *flags, recipe=()):
    """The sentence of a run that must be refused at once and leave no file."""
    before = listing(here)
    capfd.readouterr()
    start = time.monotonic()
    code = script.main([*recipe, "--model_name_or_path", "not-reached", *map(str, flags)])
    assert time.monotonic() - start < 10  # against hanging; it takes far less
    error = capfd.readouterr().err.rstrip("\n")
    lines = [line for line in error.split("\n") if not line.startswith("WARNING ")]
    assert code == 2 and len(lines) == 1, error[:2000]
    assert lines[0].startswith("run_glue_rdrop.py: error: ") and "Traceback" not in error
    assert len(lines[0]) < 1300 and lines[0].isprintable()
    assert listing(here) == before
    return lines[0].removeprefix("run_glue_rdrop.py: error: ")


def write(path, content):
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_sentence(case, here, capfd):
    name, content, expected = BROKEN[case]
    write(here / name, content)
    message = refused(capfd, here, "--train_file", name)
    assert re.search(expected, message), message


# ---- Things that are no files ----

NO_FILES = {
    "a folder": (lambda path: path.mkdir(), "a.csv: is a directory, expected a file"),
    "a pipe": (lambda path: os.mkfifo(path), "a.csv: is no regular file"),
    "a loop of links": (lambda path: path.symlink_to(path.name), "a.csv: cannot be read: Too many levels of symbolic"),
    "nothing": (lambda path: None, "a.csv: no such file"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not on this system")
@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_is_one_sentence(case, here, capfd):
    make, expected = NO_FILES[case]
    make(here / "a.csv")
    assert expected in refused(capfd, here, "--train_file", "a.csv")


# ---- Other splits, official files ----


@pytest.mark.parametrize(
    "flags, name, content, expected",
    [
        ("--validation_file", "b.tsv", TSV + "line\tbetter\n", "unknown label 'better', expected one of bad, good"),
        ("--do_predict --test_file", "b.jsonl", jsonl("{"), "b.jsonl:9: broken JSON"),
        ("--unlabeled_file", "b.txt", "a\n\0\n", "b.txt:2: holds a NUL byte"),
    ],
)
def test_other_splits(flags, name, content, expected, here, capfd):
    write(here / "train.tsv", TSV)
    write(here / name, content)
    assert expected in refused(capfd, here, "--train_file", "train.tsv", *flags.split(), name)


SQUAD = {"data": [{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "?", "answers": []}]}]}]}
SPANS = {"span1_text": "de", "span1_index": -3, "span2_text": "a", "span2_index": 0}
OFFICIAL = [
    ("cmrc2018", "train.json", json.dumps(SQUAD), "train.json:1, data 1, paragraphs 1, question 1: .* no answer"),
    ("cmrc2018", "train.json", json.dumps(SQUAD, indent=1)[:-9], "train.json:15: broken JSON"),
    ("cmrc2018", "train.json", "[" * 100_000, "train.json: broken JSON"),
    ("cmrc2018", "train.json", '{"data": 5}', "train.json:1: has no 'context'"),
    ("cmrc2018", "train.json", '{"context": "a", "qas": null}', "train.json:1: 'qas' holds None, expected a list"),
    ("cmrc2018", "train.json", '{"context": "a", "question": "?", "answers": 5}', ":1: the answers are 5"),
    ("cmrc2018", "train.json", json.dumps({"data": [[]]}), "train.json:1, data 1: holds a JSON list"),
    ("c3", "m-train.json", "[[1, 2]]", "expected \\[\\[lines\\], \\[questions\\], id\\]"),
    ("c3", "m-train.json", '[[["a"], [{"question": "?", "choice": ["x"], "answer": "z"}], "1"]]', "'z' is none"),
    ("chid", "train.json", '{"content": ["a #idiom1#"], "candidates": [1]}', "train.json:1: 'candidates' holds"),
    ("cluener", "train.json", '{"text": "ab", "label": {"name": {"b": [[0, 0]]}}}', "train.json:1: the name 'b'"),
    ("cluener", "train.json", '{"text": "ab", "label": {"name": {"b": 7}}}', "train.json:1: the label is"),
    ("csl", "train.json", '{"keyword": "a", "abst": "b", "label": "1"}', ":1: .*expected a list of words"),
    ("cluewsc2020", "train.json", json.dumps({"text": "abcdef", "target": SPANS, "label": "true"}), ":1: .*'target'"),
    ("sst2", "train.tsv", "sentence\tlabel\na film\t2\n", "train.tsv:2: unknown label '2'"),
]


@pytest.mark.parametrize("task, name, content, expected", OFFICIAL)
def test_official_files(task, name, content, expected, here, capfd):
    (here / "data").mkdir()
    write(here / "data" / name, content)
    if task == "c3":  # its other half
        write(here / "data" / "d-train.json", "[]")
    message = refused(capfd, here, "--task_name", task, "--data_dir", "data", "--do_train")
    assert re.search(expected, message), message


# ---- Legal, however odd ----


def one_row(text):
    return json.dumps({"sentence": text, "label": "good"}, ensure_ascii=False)


ODD = "a\u2028b\u2029c\x0cd\x85e\x1cf\u200bg\ufeffh \U0001f600 e\u0301 ' \\"
LEGAL = {
    "odd characters": ("a.tsv", TSV + f"{ODD}\tgood\n", ODD),
    "odd characters in CSV": ("a.csv", CSV + f'"{ODD}, ""x"""' + ",good\n", f'{ODD}, "x"'),
    "odd characters in JSON": ("a.jsonl", JSONL + one_row(ODD), ODD),
    "a cell of several lines": ("a.csv", CSV + '"one\r\ntwo\n\nthree",good\n', "one\ntwo\n\nthree"),
    "quotes in .tsv": ("a.tsv", TSV + '"a" "b\tgood\n', '"a" "b'),
    "CRLF": ("a.tsv", TSV.replace("\n", "\r\n") + "x\tgood\r\n", "x"),
    "mixed line ends": ("a.csv", CSV.replace("\n", "\r\n", 3) + "x,good", "x"),
    "a mark at the start": ("a.csv", "\ufeff" + CSV + "x,good\n", "x"),
    "no line end at the end": ("a.tsv", TSV + "x\tgood", "x"),
    "blank lines between": ("a.jsonl", JSONL.replace("\n", "\n\n") + one_row("x"), "x"),
    "a million characters less some": ("a.tsv", TSV + "x" * 1_000_000 + "\tgood\n", "x" * 1_000_000),
    "a long cell in CSV": ("a.csv", CSV + "x" * 200_000 + ",good\n", "x" * 200_000),
    "a column nobody reads": ("a.jsonl", JSONL + '{"sentence": "x", "label": "good", "y": NaN, "z": [{}]}', "x"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEGAL)
def test_what_is_legal_comes_through_intact(case, here):
    name, content, expected = LEGAL[case]
    data, task = load_files(train_file=write(here / name, content))
    assert data["train"]["sentence"][:8] == [row["sentence"] for row in ROWS]
    assert data["train"]["sentence"][8] == expected and len(data["train"]) == 9
    assert task.labels == ("bad", "good")


DIGITS = "9" * 5000


@pytest.mark.parametrize("labels", [("2", "10", DIGITS), ("1_0", "1_1", "2_0")])
def test_labels_that_look_like_numbers_are_names(labels, here):
    rows = "".join(f"{DIGITS}\tx\t{label}\n" for label in labels)
    data, task = load_files(train_file=write(here / "a.tsv", f"idx\tsentence\tlabel\n{rows}"))
    assert task.labels == labels and data["train"]["label"][:] == [0, 1, 2]
    assert data["train"]["idx"][:] == [DIGITS] * 3


# ---- Recipes ----

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijk"))
RECIPES = {
    "a billion laughs": ("r.yaml", LAUGHS, "r.yaml: .*aliases"),
    "nested deep": ("r.json", '{"seed": ' + "[" * 100_000, "r.json: not a recipe: .*recursion"),
    "a number of 5,000 digits": ("r.yaml", f"seed: {DIGITS}", "r.yaml: not a recipe: .*5000 digits"),
    "a day that is none": ("r.yaml", "seed: 2025-06-31", "r.yaml: not a recipe: day is out of range"),
    "a name twice": ("r.yaml", "seed: 1\nrdrop_alpha: 2\nseed: 3", "r.yaml: .*'seed' twice"),
    "a name twice in JSON": ("r.json", '{"seed": 1, "seed": 2}', "r.json: .*'seed' twice"),
    "half a surrogate pair": ("r.yaml", 'output_dir: "\\ud800"', "r.yaml: '--output_dir=.ud800' holds what is no text"),
    "NUL in a name": ("r.json", '{"train_file": "a\\u0000"}', "r.json: '--train_file=a.x00' holds what is no text"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_broken_recipe_is_one_sentence(case, here, capfd):
    name, content, expected = RECIPES[case]
    write(here / name, content)
    message = refused(capfd, here, recipe=[name])
    assert re.search(expected, message), message


# ---- Files damaged at random ----

SOUND = {
    "a.tsv": TSV.encode(),
    "a.csv": (CSV + '"a ""b"", c",good\n').encode(),
    "a.jsonl": jsonl({"sentence": "语言", "label": "good"}).encode(),
    "a.parquet": GOOD_PARQUET,
    "a.txt": "a\n语言\n".encode(),
}


def damaged(content, draw):
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        how = draw.randrange(4)
        if how == 0:
            content[at:at] = draw.choice(
                [b'"', b"\t", b",", b"\n", b"\0", b"\r", b"\xff", b"{", b"\\", b"\xef\xbb\xbf"]
            )
        elif how == 1:
            del content[at : at + draw.randint(1, 9)]
        elif how == 2 and content:
            content[at % len(content)] ^= 1 << draw.randrange(8)
        else:
            content[at:at] = content[draw.randrange(len(content) + 1) :][:30]
    return bytes(content)


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOUND)
def test_damaged_files_are_read_or_refused(name, rounds, tmp_path):
    draw, read = random.Random(name), 0
    for _ in range(rounds):
        path = write(tmp_path / name, damaged(SOUND[name], draw))
        try:
            if name == "a.txt":
                rows = list(read_rows(path))
            else:
                rows = load_files(train_file=path)[0]["train"]
            read += len(rows) > 0
        except InputError as error:
            assert str(error).startswith(str(path))
    assert 0 < read < rounds or rounds > 60


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["cmrc2018", "cluener", "chid"])
def test_damaged_official_files_are_read_or_refused(task, rounds, tmp_path):
    answered = json.loads(json.dumps(SQUAD))
    answered["data"][0]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "a", "answer_start": 0}]
    content = {
        "cmrc2018": json.dumps(answered, indent=1),
        "cluener": json.dumps({"text": "ab", "label": {"name": {"b": [[1, 1]]}}}) + "\n",
        "chid": json.dumps({"content": "a #idiom1# b", "candidates": ["x", "y"], "answer": 1}) + "\n",
    }[task]
    draw = random.Random(task)
    for _ in range(rounds):
        path = write(tmp_path / "train.json", damaged(content.encode(), draw))
        try:
            load_task(get_task(task), train_file=path)
        except InputError as error:
            assert str(path) in str(error)
        try:
            list(read_values(path))
        except InputError as error:
            assert str(path) in str(error)
