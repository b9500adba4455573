"""What is said about broken files of named tasks: one line that begins with file and line."""

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.tasks import TASKS
from support.task_files import NEWS, WSC, jsonl, write

RTE = "sentence1\tsentence2\tlabel\n"
GOOD = "a\tb\tentailment\n"
NER = {"text": "小明", "label": {"name": {"小明": [[0, 1]]}}}
# task, file, content, what the message says after the file's name
BROKEN = {
    "short row": ("rte", "train.tsv", RTE + GOOD + "a\tb\n", ":3: the row has 2 cells, expected 3"),
    "long row": ("rte", "train.tsv", RTE + "a\tb\tc\tentailment\n", ":2: the row has 4 cells, expected 3"),
    "short test row": ("qqp", "test.tsv", "id\tquestion1\tquestion2\n0\ta\n", ":2: the row has 2 cells"),
    "short headerless row": ("cola", "train.tsv", "gj04\t1\t\tFine.\ngj04\t1\n", ":2: the row has 2 cells, expected 4"),
    "missing column": (
        "rte",
        "train.tsv",
        "sentence1\tlabel\na\tentailment\n",
        ":2: no column 'sentence2', the columns",
    ),
    "doubled column": ("rte", "train.tsv", "sentence1\tsentence1\tlabel\n", ":1: the header names 'sentence1' twice"),
    "no label column": ("rte", "train.csv", "sentence1,sentence2\na,b\n", ":2: no column 'label', the columns are s"),
    "no label column in dev": ("rte", "dev.csv", "sentence1,sentence2\na,b\n", ":2: no column 'label'"),
    "unknown label": (
        "rte",
        "train.tsv",
        RTE + GOOD + "a\tb\tmaybe\n",
        ":3: unknown label 'maybe', expected one of ent",
    ),
    "unknown label in test": ("rte", "test.tsv", RTE + "a\tb\tmaybe\n", ":2: unknown label 'maybe'"),
    "label of no category": (
        "tnews",
        "dev.json",
        jsonl(NEWS | {"label": 105}),
        ":1: unknown label 105, expected one of 1",
    ),
    "empty label": ("rte", "dev.tsv", RTE + "a\tb\t\n", ":2: the row has no label ('')"),
    "null label": (
        "afqmc",
        "train.json",
        '{"sentence1": "a", "sentence2": "b", "label": null}',
        ":1: the row has no label",
    ),
    "empty text": ("rte", "train.tsv", RTE + GOOD + "a\t \tentailment\n", ":3: the text is empty"),
    "text is a number": (
        "eprstmt",
        "dev.json",
        '{"sentence": 5, "label": "Positive"}',
        ":1: the column 'sentence' holds 5",
    ),
    "surrogate": ("eprstmt", "test.json", '{"sentence": "\\ud83d"}', ":1: broken JSON (it holds half"),
    "empty file": ("rte", "train.tsv", "", ":1: is empty"),
    "header only": ("rte", "train.tsv", RTE, ": is empty"),
    "empty json": ("tnews", "train.json", "\n\n", ": is empty"),
    "only rows without label": (
        "ocnli",
        "train.json",
        jsonl({"sentence1": "a", "sentence2": "b", "label": "-"}),
        ": is empty",
    ),
    "broken json": ("tnews", "train.json", jsonl(NEWS) + '{"id": 1, \n', ":2: broken JSON"),
    "deep json": ("tnews", "train.json", "[" * 200_000, ":1: broken JSON"),
    "json list": ("tnews", "train.json", "[1]\n", ":1: holds a JSON list, expected one object per line"),
    "json key missing later": (
        "tnews",
        "test.json",
        jsonl(NEWS, {"text": "a"}),
        ":2: no column 'sentence', the columns",
    ),
    "not utf-8": (
        "rte",
        "train.tsv",
        (RTE + GOOD).encode() + b"caf\xe9\tb\tentailment\n",
        ":3: byte 0xe9 at position 4",
    ),
    "utf-16": ("rte", "train.tsv", (RTE + GOOD).encode("utf-16"), ":1: begins with the mark of UTF-16"),
    "nul byte": ("rte", "train.tsv", RTE + "a\0\tb\tentailment\n", ":2: holds a NUL byte"),
    "nul in csv": ("rte", "train.csv", "sentence1,sentence2,label\na\0,b,entailment\n", ":2: holds a NUL byte"),
    "gzip": ("rte", "train.tsv", b"\x1f\x8b\x08\0", ": is gzip-compressed"),
    "unclosed quote": ("rte", "train.csv", 'sentence1,sentence2,label\n"a,b,entailment\n', ":2: broken CSV"),
    "short csv row": ("rte", "train.csv", "sentence1,sentence2,label\na,b\n", ":2: the row has 2 cells, expected 3"),
    "not parquet": ("rte", "train.parquet", b"PAR1 no", ": broken parquet file"),
    "score is a word": (
        "stsb",
        "train.csv",
        "sentence1,sentence2,label\na,b,high\n",
        ":2: the label is 'high', expected a n",
    ),
    "score is infinite": (
        "stsb",
        "dev.csv",
        "sentence1,sentence2,label\na,b,inf\n",
        ":2: the label is 'inf', expected a nu",
    ),
    "span outside": ("cluener", "train.json", jsonl(NER | {"text": "小"}), ":1: the name '小明' is not at [0, 1]"),
    "span beside": ("cluener", "train.json", jsonl(NER | {"text": "明小明"}), ":1: the name '小明' is not at [0, 1]"),
    "span reversed": (
        "cluener",
        "dev.json",
        jsonl({"text": "小明", "label": {"name": {"": [[1, 0]]}}}),
        ":1: the name '' is not at [1, 0]",
    ),
    "unknown entity": (
        "cluener",
        "train.json",
        jsonl(NER, {"text": "小明", "label": {"animal": {"小明": [[0, 1]]}}}),
        ":2: unknown kind of entity 'animal', expected one of address, book",
    ),
    "no entities": ("cluener", "train.json", jsonl({"text": "小明", "label": "name"}), ":1: the label is 'name'"),
    "wsc without target": ("cluewsc2020", "dev.json", '{"text": "a", "label": "true"}', ":1: no column 'target'"),
    "wsc span beside": (
        "cluewsc2020",
        "dev.json",
        jsonl(WSC | {"text": "他", "label": "true"}),
        ":1: the column 'target'",
    ),
    "csl keywords": (
        "csl",
        "dev.json",
        '{"keyword": "a", "abst": "b", "label": "1"}',
        ":1: the column 'keyword' holds 'a'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    name, file, content, message = BROKEN[case]
    path = write(tmp_path / name / file, content)
    kind = {"train": "train_file", "dev": "validation_file", "test": "test_file"}[path.stem]
    for source in ({"data_dir": tmp_path}, {kind: path}):
        with pytest.raises(InputError) as error:
            load_task(TASKS[name], **source)
        text = str(error.value)
        assert text.startswith(f"{path}{message}") and "\n" not in text
