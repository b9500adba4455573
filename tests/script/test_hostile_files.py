"""Broken data files: one sentence with file and line, exit code 2, at once, and nothing left behind."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import socket
import time
import zipfile
from itertools import pairwise

import pyarrow
import pyarrow.parquet
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_files, load_task
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


MANY_KEYS = "{" + ",".join(f'"{i}": 0' for i in [*range(60_000), 59_999]) + "}"
TWICE_IN_PARQUET = packed(
    lambda file: pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays([["a"], ["x"], ["y"]], names=["sentence", "label", "label"]), file
    )
)
# name of the case: (name of the file, what it holds, what the sentence must say; ":9" is a line)
BROKEN = {
    "truncated UTF-8": ("a.tsv", (TSV + "caf").encode() + b"\xc3\tgood\n", "a.tsv:10: byte 0xc3 at position 4"),
    "UTF-8 cut by the end": ("a.tsv", (TSV + "语").encode()[:-1], "a.tsv:10: byte 0xe8"),
    "UTF-8 cut in JSON": ("a.jsonl", jsonl('{"sentence": "语').encode()[:-2], "a.jsonl:9: byte 0xe8"),
    "Latin-1": ("a.csv", (CSV + "café,good\n").encode("latin-1"), "a.csv:10: byte 0xe9 at position 4"),
    "GBK": ("a.csv", (CSV + "中文,good\n").encode("gbk"), "a.csv:10: byte 0xd6"),
    "UTF-16": ("a.csv", CSV.encode("utf-16"), "a.csv:1: .*UTF-16.*saved as UTF-8"),
    "UTF-16 without a mark": ("a.csv", CSV.encode("utf-16-le"), "a.csv:1: holds a NUL byte"),
    "UTF-32": ("a.jsonl", JSONL.encode("utf-32"), "a.jsonl:1: .*UTF-32"),
    "a mark in the middle": ("a.tsv", TSV + "\ufeff" + TSV, "a.tsv:10: .*byte order mark.*files were put together"),
    "a mark in the middle of JSON": ("a.jsonl", JSONL + "\ufeff" + JSONL, "a.jsonl:9: .*byte order mark"),
    "unbalanced quotes": ("a.csv", CSV + '"line,good\n', "a.csv:10: broken CSV"),
    "a quote that swallows 10 MB": ("a.csv", CSV + '"line,good\n' + CSV * 50_000, "a.csv:10: broken CSV"),
    "a quote behind a quoted cell": ("a.csv", CSV + '"line" x,good\n', "a.csv:10: broken CSV"),
    "10 MB in a line of .tsv": ("a.tsv", TSV + HUGE + "\tgood\n", "a.tsv:10: the line is 10,5.* bytes long"),
    "10 MB in a line of .csv": ("a.csv", CSV + HUGE + ",good\n", "a.csv:10: the line is 10,5.* bytes long"),
    "10 MB in a line of .jsonl": ("a.jsonl", jsonl('{"sentence": "' + HUGE + '"}'), "a.jsonl:9: the line is 10,5"),
    "10 MB in one cell of many lines": ("a.csv", CSV + '"' + "word\n" * 2_100_000 + '",good\n', "a.csv:10: "),
    "10 MB without any line end": ("a.tsv", HUGE, "a.tsv:1: the line is 10,5"),
    "NUL bytes": ("a.tsv", TSV + "li\0ne\tgood\n", "a.tsv:10: holds a NUL byte"),
    "NUL bytes in CSV": ("a.csv", CSV + "li\0ne,good\n", "a.csv:10: holds a NUL byte"),
    "zeros only": ("a.tsv", b"\0" * 4096, "a.tsv:1: holds a NUL byte"),
    "commas in .tsv": ("a.tsv", CSV, "a.tsv:1: .*separated by commas.*tabs"),
    "semicolons in .csv": ("a.csv", CSV.replace(",", ";"), "a.csv:1: .*separated by semicolons.*commas"),
    "tabs in .csv": ("a.csv", TSV, "a.csv:1: .*separated by tabs.*commas"),
    "a header with a name twice": ("a.tsv", "sentence\tsentence\tlabel\na\tb\tgood\n", "a.tsv:1: .*'sentence' twice"),
    "a header twice in CSV": (
        "a.csv",
        "label,sentence,label\ngood,a,good\n",
        "a.csv:1: the header names 'label' twice",
    ),
    "no header": ("a.tsv", TSV.split("\n", 1)[1], "a.tsv:2: no column 'label', the columns are line"),
    "a header only": ("a.tsv", "sentence\tlabel\n", "a.tsv: .*empty"),
    "a header only in CSV": ("a.csv", "sentence,label\r\n", "a.csv: .*empty"),
    "an empty file": ("a.csv", b"", "a.csv:1: is empty"),
    "an empty .jsonl": ("a.jsonl", b"", "a.jsonl: is empty"),
    "an empty .parquet": ("a.parquet", b"", "a.parquet: broken parquet"),
    "blank lines only": ("a.tsv", "\n\n\n", "a.tsv:1: is empty"),
    "blank lines only in JSON": ("a.jsonl", "\n \n\t\n", "a.jsonl: is empty"),
    "old Mac line ends": ("a.tsv", TSV.replace("\n", "\r"), "a.tsv:1: .*carriage returns"),
    "old Mac line ends in CSV": ("a.csv", CSV.replace("\n", "\r"), "a.csv:1: .*carriage returns"),
    "too few cells": ("a.tsv", TSV + "line\n", "a.tsv:10: the row has 1 cells, expected 2"),
    "too many cells": ("a.tsv", TSV + "line\tgood\tx\n", "a.tsv:10: the row has 3 cells, expected 2"),
    "too many cells in CSV": ("a.csv", CSV + "line, a, good\n", "a.csv:10: the row has 3 cells, expected 2"),
    "an empty text": ("a.tsv", TSV + "  \tgood\n", "a.tsv:10: the text is empty"),
    "a row without a label": ("a.tsv", TSV + "line\t\n", "a.tsv:10: the row has no label"),
    "no label column": (
        "a.csv",
        "sentence,x\na,good\nb,bad\n",
        "a.csv:2: no column 'label', the columns are sentence, x",
    ),
    "one label only": ("a.csv", "sentence,label\na,good\nb,good\n", "a.csv: every row has the label 'good'"),
    "labels of mixed types": ("a.jsonl", jsonl({"sentence": "a", "label": 1}), "a.jsonl:9: the label is 1.*'bad'"),
    "a truth among names": ("a.jsonl", jsonl({"sentence": "a", "label": True}), "a.jsonl:9: the label is True"),
    "a list for a label": ("a.jsonl", jsonl({"sentence": "a", "label": ["good"]}), "a.jsonl:9: the label is \\['good'"),
    "an object for a label": ("a.jsonl", jsonl({"sentence": "a", "label": {"x": 1}}), "a.jsonl:9: the label is {"),
    "a label of two lines": ("a.csv", CSV + 'a,"good\nbad"\n', "a.csv:10: the label 'good.nbad' holds a tab or a line"),
    "null for a label": ("a.jsonl", jsonl({"sentence": "a", "label": None}), "a.jsonl:9: the row has no label"),
    "NaN for a label": ("a.csv", "sentence,label\na,0.5\nb,nan\n", "a.csv:3: the label is 'nan', expected a number"),
    "1e400 for a label": ("a.jsonl", '{"sentence": "a", "label": 0.5}\n{"sentence": "b", "label": 1e400}', ":2: .*inf"),
    "a number for a text": ("a.jsonl", jsonl({"sentence": 5, "label": "good"}), "a.jsonl:9: .*holds 5, expected text"),
    "null for a text": ("a.jsonl", jsonl({"sentence": None, "label": "good"}), "a.jsonl:9: .*None, expected text"),
    "a list for a text": ("a.jsonl", jsonl({"sentence": ["a"], "label": "good"}), "a.jsonl:9: .*expected text"),
    "a missing key": ("a.jsonl", jsonl({"label": "good"}), "a.jsonl:9: no column 'sentence', the columns are label"),
    "half a surrogate pair": ("a.jsonl", jsonl('{"sentence": "\\ud800", "label": "good"}'), ":9: .*surrogate"),
    "half a pair in an id": (
        "a.jsonl",
        jsonl('{"sentence": "a", "label": "good", "id": "\\ud800"}'),
        ":9: .*surrogate",
    ),
    "half a pair in a name": ("a.jsonl", '{"\\uD800": "a", "label": "good"}', "a.jsonl:1: .*surrogate"),
    "too much for float32": (
        "a.csv",
        "sentence,label\na,0.5\nb,1e39\n",
        "a.csv:3: the label is '1e39', expected a number",
    ),
    "100,000 names, one twice": ("a.csv", ",".join(map(str, [*range(100_000), 0])), "a.csv:1: .*'0' twice"),
    "60,000 keys, one twice": ("a.jsonl", MANY_KEYS, "a.jsonl:1: .*'59999' twice"),
    "truncated JSON": ("a.jsonl", JSONL[:-10], "a.jsonl:8: broken JSON"),
    "a key twice": ("a.jsonl", jsonl('{"sentence": "a", "label": "good", "label": "bad"}'), ":9: .*'label' twice"),
    "an array of objects": ("a.jsonl", json.dumps(ROWS), "a.jsonl:1: holds a JSON list, expected one object per line"),
    "one object over many lines": ("a.jsonl", json.dumps(ROWS[0], indent=1), "a.jsonl:1: broken JSON"),
    "nested 100,000 deep": ("a.jsonl", jsonl("[" * 100_000), "a.jsonl:9: broken JSON"),
    "objects nested deep": ("a.jsonl", jsonl('{"a":' * 50_000), "a.jsonl:9: broken JSON"),
    "a number of 10,000 digits": ("a.jsonl", jsonl('{"sentence": "a", "label": ' + "9" * 10_000 + "}"), "a.jsonl:9: "),
    "gzip": ("a.tsv", gzip.compress(TSV.encode()), "a.tsv: is gzip-compressed.*unpack"),
    "gzip in .jsonl": ("a.jsonl", gzip.compress(JSONL.encode()), "a.jsonl: is gzip-compressed"),
    "bzip2": ("a.csv", bz2.compress(CSV.encode()), "a.csv: is bzip2-compressed"),
    "xz": ("a.csv", lzma.compress(CSV.encode()), "a.csv: is xz-compressed"),
    "Zstandard": ("a.csv", b"\x28\xb5\x2f\xfd" + os.urandom(64), "a.csv: is Zstandard-compressed"),
    "a spreadsheet": ("a.csv", packed(in_zip), "a.csv: is a zip archive or a spreadsheet.*save"),
    "a pickle": ("a.csv", b"\x80\x04\x95" + os.urandom(64), "a.csv:1: byte 0x80"),
    "parquet in .csv": ("a.csv", GOOD_PARQUET, "a.csv: is a parquet file.*.parquet"),
    "text in .parquet": ("a.parquet", TSV, "a.parquet: broken parquet"),
    "truncated parquet": ("a.parquet", GOOD_PARQUET[: len(GOOD_PARQUET) // 2], "a.parquet: broken parquet"),
    "damaged parquet": ("a.parquet", b"PAR1" + bytes(600) + GOOD_PARQUET[-300:], "a.parquet: broken parquet"),
    "parquet with text that is not UTF-8": (
        "a.parquet",
        GOOD_PARQUET.replace(b"good", b"go\xffd"),
        "broken parquet.*0xff",
    ),
    "nested parquet": ("a.parquet", parquet({"sentence": [["a"], ["b"]], "label": ["x", "y"]}), "a.parquet:1: "),
    "a name twice in parquet": ("a.parquet", TWICE_IN_PARQUET, "a.parquet: names the column 'label' twice"),
    "a date beyond all calendars": (
        "a.parquet",
        parquet({"sentence": ["a", "b"], "label": ["x", "y"], "day": pyarrow.array([2**30, 0], pyarrow.date32())}),
        "a.parquet: broken parquet file \\(.*days=1073741824",
    ),
    "binary in parquet": ("a.parquet", parquet({"sentence": [b"\xff", b"b"], "label": ["x", "y"]}), "a.parquet:1: "),
    "another ending": ("a.xlsx", packed(in_zip), "a.xlsx: is a zip archive or a spreadsheet.*save it as .csv"),
    "no ending": ("data", TSV, "data: unknown kind of file ''"),
    "escape sequences": ("a.tsv", "\x1b[31msentence\x1b[0m\tx\na\tb\n", "'label'.*\\\\x1b\\[31msentence"),
}


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capfd, here, *flags, recipe=()):
    """The sentence of a run that has to be refused, at once, leaving nothing behind."""
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


def make_pipe(path):
    os.mkfifo(path)


def make_loop(path):
    path.symlink_to(path.name)


def make_dangling(path):
    path.symlink_to("nowhere.csv")


def make_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


NO_FILES = {
    "a folder": (lambda path: path.mkdir(), "a.csv: is a directory, expected a file"),
    "a pipe": (make_pipe, "a.csv: is no regular file"),
    "a device": (make_device, "a.csv: is no regular file"),
    "a socket": (make_socket, "a.csv: is no regular file"),
    "a loop of links": (make_loop, "a.csv: cannot be read: Too many levels of symbolic links"),
    "a link to nowhere": (make_dangling, "a.csv: no such file"),
    "nothing": (lambda path: None, "a.csv: no such file"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not on this system")
@pytest.mark.parametrize("case", NO_FILES)
@pytest.mark.parametrize("flag", ["--train_file", "--unlabeled_file"])
def test_what_is_no_file_is_one_sentence(case, flag, here, capfd):
    make, expected = NO_FILES[case]
    make(here / "a.csv")
    write(here / "train.tsv", TSV)
    flags = () if flag == "--train_file" else ("--train_file", "train.tsv")
    assert expected in refused(capfd, here, *flags, flag, "a.csv")


def test_a_name_that_is_too_long(here, capfd):
    assert "cannot be read: File name too long" in refused(capfd, here, "--train_file", "x" * 300 + ".csv")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(here, capfd):
    write(here / "a.csv", CSV).chmod(0)
    assert "a.csv: cannot be read: Permission denied" in refused(capfd, here, "--train_file", "a.csv")


# ---- Other splits, official files ----


@pytest.mark.parametrize(
    "flag, name, content, expected",
    [
        ("--validation_file", "b.tsv", TSV + "line\tbetter\n", "unknown label 'better', expected one of bad, good"),
        ("--validation_file", "b.csv", CSV + '"', "b.csv:10: broken CSV"),
        ("--test_file", "b.jsonl", jsonl("{"), "b.jsonl:9: broken JSON"),
        ("--unlabeled_file", "b.txt", "a\n\0\n", "b.txt:2: holds a NUL byte"),
        ("--unlabeled_file", "b.txt", HUGE, "b.txt:1: the line is 10,5"),
        ("--unlabeled_file", "b.txt", b"\xff\xfea\0", "b.txt:1: .*UTF-16"),
    ],
)  # fmt: skip
def test_other_splits(flag, name, content, expected, here, capfd):
    write(here / "train.tsv", TSV)
    write(here / name, content)
    message = refused(
        capfd, here, "--train_file", "train.tsv", flag, name, *(["--do_predict"] if "test" in flag else [])
    )
    assert re.search(expected, message), message


SQUAD = {"data": [{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "?", "answers": []}]}]}]}
CHID_COUNTED = '{"content": ["a #idiom1#"], "candidates": ["x", "y"], "answers": {"candidate_id": 5}}'
SPANS = {"span1_text": "de", "span1_index": -3, "span2_text": "a", "span2_index": 0}
WSC_FROM_BEHIND = {"text": "abcdef", "target": SPANS, "label": "true"}


@pytest.mark.parametrize(
    "task, name, content, expected",
    [
        ("cmrc2018", "train.json", json.dumps(SQUAD), "train.json:1, data 1, paragraphs 1, question 1: .* no answer"),
        ("cmrc2018", "train.json", json.dumps(SQUAD, indent=1)[:-9], "train.json:.*broken JSON"),
        ("cmrc2018", "train.json", '{"data": 5}', "train.json:1"),
        ("cmrc2018", "train.json", '{"context": "a", "qas": null}', "train.json:1: 'qas' holds None, expected a list"),
        ("cmrc2018", "train.json", '{"context": "a", "question": "?", "answers": 5}', ":1: the answers are 5"),
        ("cmrc2018", "train.json", json.dumps({"data": [[]]}), "train.json:1, data 1: holds a JSON list"),
        ("drcd", "train.json", "[" * 100_000, "train.json: broken JSON|train.json:1: broken JSON"),
        ("c3", "m-train.json", "[[1, 2]]", "expected \\[\\[lines\\], \\[questions\\], id\\]"),
        ("c3", "m-train.json", '[[["a"], [{"question": "?", "choice": ["x"], "answer": "z"}], "1"]]', "'z' is none"),
        ("chid", "train.json", '{"content": ["a #idiom1#"], "candidates": [1]}', "train.json:1: 'candidates' holds"),
        ("c3", "m-train.json", '[{"context": ["a"], "questions": 5}]', "item 1: 'questions' holds 5, expected a list"),
        ("chid", "train.json", CHID_COUNTED, "train.json:1: 'candidate_id' holds 5, expected a list"),
        ("cluener", "train.json", '{"text": "ab", "label": {"name": {"b": [[0, 0]]}}}', "train.json:1: the name 'b'"),
        ("cluener", "train.json", '{"text": "ab", "label": {"name": {"b": 7}}}', "train.json:1: the label is"),
        ("csl", "train.json", '{"keyword": "a", "abst": "b", "label": "1"}', ":1: .*expected a list of words"),
        ("cluewsc2020", "train.json", '{"text": "a", "target": {}, "label": "true"}', "train.json:1: .*'target'"),
        ("cluewsc2020", "train.json", json.dumps(WSC_FROM_BEHIND), "train.json:1: .*'target'"),
        ("sst2", "train.tsv", "sentence\tlabel\na film\t2\n", "train.tsv:2: unknown label '2'"),
        ("stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\tx\n", ":2: the label is 'x', expected a number"),
        ("csl_title", "csl_title_train.tsv", "a title\n", "csl_title_train.tsv:1: the row has 1 cells, expected 2"),
    ],
)  # fmt: skip
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
    "a list of itself": ("r.yaml", "seed: &a [*a]", "r.yaml: .*aliases"),
    "nested deep": ("r.yaml", "seed: " + "[" * 20_000, "r.yaml: .*nested too deep"),
    "nested deep in JSON": ("r.json", '{"seed": ' + "[" * 100_000, "r.json: not a recipe: .*recursion"),
    "a number of 5,000 digits": ("r.yaml", f"seed: {DIGITS}", "r.yaml: not a recipe: .*5000 digits"),
    "a number of 5,000 digits in JSON": ("r.json", f'{{"seed": {DIGITS}}}', "r.json: not a recipe: .*5000 digits"),
    "a day that is none": ("r.yaml", "seed: 2025-06-31", "r.yaml: not a recipe: day is out of range"),
    "a name twice": ("r.yaml", "seed: 1\nrdrop_alpha: 2\nseed: 3", "r.yaml: .*'seed' twice"),
    "a name twice in JSON": ("r.json", '{"seed": 1, "seed": 2}', "r.json: .*'seed' twice"),
    "NUL in a name of a file": (
        "r.json",
        '{"train_file": "a\\u0000.csv"}',
        "r.json: '--train_file=a.x00.csv' holds what is no text",
    ),
    "half a surrogate pair": ("r.yaml", 'output_dir: "\\ud800"', "r.yaml: '--output_dir=.ud800' holds what is no text"),
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
