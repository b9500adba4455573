"""The user's own files: which columns are text, which is offered as the label, and what labels are classes."""

import csv
import datetime
import json
import random
import uuid

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.script.demo import make_sentences

ROWS = 60
DRAW = random.Random(0)
TEXTS = [f"{text} {i}" for i, (text, _) in enumerate(make_sentences(ROWS, seed=3))]  # English and Chinese
ENGLISH = TEXTS[::2] + [f"{text} again" for text in TEXTS[::2]]
CHINESE = [text.split()[0] + "，真的" * (i % 3) + str(i) for i, text in enumerate(TEXTS[1::2] * 2)]
STARS = [i % 5 for i in range(ROWS)]
MOOD = ["negative", "positive"] * (ROWS // 2)
COLUMNS = {
    "text": TEXTS,
    "english": ENGLISH,
    "chinese": CHINESE,
    "stars": STARS,
    "mood": MOOD,
    "count": list(range(ROWS)),
    "groups": [i // 7 for i in range(ROWS)],
    "prices": [f"${i},{i:03}.50" for i in range(ROWS)],
    "uuids": [str(uuid.UUID(int=DRAW.getrandbits(128))) for _ in range(ROWS)],
    "movies": [f"tt{i:07}" for i in range(ROWS)],
    "编号": [f"编号{i:03}" for i in range(ROWS)],
    "urls": [f"https://example.org/a?b={i}" for i in range(ROWS)],
    "users": ["".join(DRAW.choices("abcdefgh", k=7)) for _ in range(ROWS)],
    "days": [f"2024-01-{i % 28 + 1:02}" for i in range(ROWS)],
    "us days": [f"Jan {i % 28 + 1}, 2024 10:{i:02} PM" for i in range(ROWS)],
    "zh days": [f"2024年1月{i % 28 + 1}日" for i in range(ROWS)],
    "words with numbers": ["10", "90s", *ENGLISH[2:]],
    "left over": [ENGLISH[i] if i % 9 == 0 else "" for i in range(ROWS)],
    # OCNLI's premises stand for three pairs each
    "premises": [CHINESE[i // 3] for i in range(ROWS)],
}


def cut(text):
    return text if len(text) <= 40 else text[:37] + "..."


def table(**names):
    """A table whose columns, by name, hold what `COLUMNS` has under another name."""
    return {name: COLUMNS[kind] for name, kind in names.items()}


# Name of the case: (columns, flags, what is read, or a part of the error)
CASES = {
    "Rotten Tomatoes": (
        {"PhraseId": "count", "SentenceId": "groups", "Phrase": "words with numbers", "Sentiment": "stars"},
        {"label_column": "Sentiment"},
        ("Phrase",),
    ),
    "Rotten Tomatoes, no label named": (
        {"PhraseId": "count", "SentenceId": "groups", "Phrase": "english", "Sentiment": "stars"},
        {},
        "no column 'label', the columns are PhraseId, SentenceId, Phrase, Sentiment; did you mean --label_column "
        "Sentiment?",
    ),
    "reviews, no label named": (
        {"id": "count", "review": "text", "sentiment": "mood"},
        {},
        "the columns are id, review, sentiment; did you mean --label_column sentiment?",
    ),
    "a mistyped label": (
        {"review": "text", "sentiment": "mood"},
        {"label_column": "sentimnet"},
        "no column 'sentimnet', the columns are review, sentiment; did you mean --label_column sentiment?",
    ),
    "reviews": ({"id": "count", "review": "text", "sentiment": "mood"}, {"label_column": "sentiment"}, ("review",)),
    "an index of pandas": ({"": "count", "review": "text", "label": "mood"}, {}, ("review",)),
    "an index of names": ({"": "english", "review": "text", "label": "mood"}, {}, ("review",)),
    "an index read and saved again": ({"Unnamed: 0": "english", "review": "text", "label": "mood"}, {}, ("review",)),
    "a pair": ({"premise": "chinese", "hypothesis": "text", "label": "mood"}, {}, ("premise", "hypothesis")),
    "a pair in capitals": (
        {"Premise": "text", "Hypothesis": "chinese", "label": "mood"},
        {},
        ("Premise", "Hypothesis"),
    ),
    "a Chinese pair": (
        {"句子1": "premises", "句子2": "chinese", "标签": "mood"},
        {"label_column": "标签"},
        ("句子1", "句子2"),
    ),
    "Chinese": ({"编号": "编号", "评论": "chinese", "标签": "mood"}, {"label_column": "标签"}, ("评论",)),
    "Chinese, no label named": ({"评论": "chinese", "情感": "mood"}, {}, "did you mean --label_column 情感?"),
    "all kinds of others": (
        {
            "uuid": "uuids", "movie": "movies", "link": "urls", "user": "users", "day": "days", "seen": "us days",
            "日期": "zh days", "price": "prices", "stars": "stars", "label": "mood", "body": "text",
        },
        {},
        ("body",),
    ),
    "SMS spam": ({"v1": "mood", "v2": "english", "Unnamed: 2": "left over"}, {"label_column": "v1"}, ("v2",)),
    "a usual name beside other texts": ({"text": "text", "location": "english", "label": "mood"}, {}, ("text",)),
    "a usual name above numbers": ({"text": "count", "body": "english", "label": "mood"}, {}, ("body",)),
    "names, and nothing else": ({"name": "users", "label": "mood"}, {}, ("name",)),
    "two texts": (
        {"title": "english", "body": "text", "day": "days", "label": "mood"},
        {},
        "title, body may all be text; name the one or two to read: --text_columns title. The columns: 'title' (text, "
        f"such as '{cut(ENGLISH[0])}'), 'body' (text, such as '{cut(TEXTS[0])}'), 'day' (dates, such as '2024-01-01'), "
        "'label' (few values that repeat, such as 'negative')",
    ),
    "two texts, both named": (
        {"title": "english", "body": "text", "label": "mood"},
        {"text_columns": ["title", "body"]},
        ("title", "body"),
    ),
    "premises alone look like texts": (
        {"前": "premises", "后": "chinese", "label": "mood"},
        {},
        "前, 后 may all be text",
    ),
    "no text": (
        {"id": "count", "price": "prices", "label": "mood"},
        {},
        "no column of text; if one is, name it with --text_columns. The columns: 'id' (ids, such as '0'), 'price' "
        "(numbers, such as '$0,000.50'), 'label' (few values that repeat, such as 'negative')",
    ),
}  # fmt: skip


def save(path, columns):
    names, rows = list(columns), list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path)
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t").writerows([names, *rows])
    else:
        lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows)
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_read(case, suffix, tmp_path):
    names, flags, expected = CASES[case]
    file = save(tmp_path / f"a.{suffix}", table(**names))
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            load_files(train_file=file, **flags)
        assert expected in str(error.value) and "\n" not in str(error.value)
        return
    splits, task = load_files(train_file=file, **flags)
    assert task.text_columns == expected
    assert [list(splits["train"][name]) for name in expected] == [COLUMNS[names[name]] for name in expected]


def test_parquet_types_and_the_index_of_pandas(tmp_path):
    when = [datetime.datetime(2024, 1, 1) + datetime.timedelta(i) for i in range(ROWS)]
    frame = pandas.DataFrame({"when": when, "tags": [["a"]] * ROWS, "review": TEXTS, "label": MOOD}, index=ENGLISH)
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(frame), tmp_path / "a.parquet")
    assert load_files(train_file=tmp_path / "a.parquet")[1].text_columns == ("review",)


def test_a_test_file_alone(tmp_path):
    """Its labels are those of a model, and its label column may be missing."""
    file = save(tmp_path / "a.csv", table(id="count", review="text", day="days"))
    splits, task = load_files(test_file=file, labels=["no", "yes"], label_column="sentiment")
    assert task.text_columns == ("review",) and set(splits["test"]["label"]) == {-1}


# ---- Labels ----


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_whole_numbers_with_decimals_are_classes(suffix, tmp_path, caplog):
    """pandas writes 0.0 and 1.0 where a column of whole numbers has gaps."""
    file = save(tmp_path / f"a.{suffix}", {"text": TEXTS, "label": [float(i % 3) for i in range(ROWS)]})
    other = save(tmp_path / f"b.{suffix}", {"text": TEXTS[:3], "label": [2, 0, 1]})
    frame = pandas.DataFrame({"text": TEXTS[:3], "label": [1.0, None, 2.0]})
    if suffix == "parquet":
        frame.to_parquet(tmp_path / "c.parquet")
    else:
        frame.to_csv(tmp_path / f"c.{suffix}", index=False, sep="\t" if suffix == "tsv" else ",")
        if suffix == "jsonl":
            (tmp_path / "c.jsonl").write_text(
                '{"text": "a", "label": 1.0}\n{"text": "b", "label": NaN}\n{"text": "c", "label": 2}'
            )
    splits, task = load_files(train_file=file, validation_file=other, test_file=tmp_path / f"c.{suffix}")
    assert task.labels == ("0", "1", "2") and list(splits["train"]["label"][:4]) == [0, 1, 2, 0]
    assert list(splits["validation"]["label"]) == [2, 0, 1] and list(splits["test"]["label"]) == [1, -1, 2]
    assert "are numbers such as 0.0, all of them whole, so these are 3 classes (0, 1, 2)" in caplog.text


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.5], [1.0, 2.0, 3.0], [1, 2, 3]])
def test_correlations_make_a_regression(labels, tmp_path):
    file = save(tmp_path / "a.csv", {"text": TEXTS[:3], "label": labels})
    splits, task = load_files(train_file=file, metrics=["spearmanr"])
    assert task.is_regression and task.headline == ("spearmanr",) and list(splits["train"]["label"]) == labels
    assert set(task.metrics) == {"pearson", "spearmanr"}


def test_minus_one_is_a_number_of_a_regression(tmp_path):
    file = save(tmp_path / "a.csv", {"text": TEXTS[:3], "label": [-1, 0.5, ""]})
    train = save(tmp_path / "b.csv", {"text": TEXTS[:2], "label": [-1.5, 0.5]})
    labels = list(load_files(train_file=train, test_file=file)[0]["test"]["label"])
    assert labels[:2] == [-1.0, 0.5] and labels[2] != labels[2]


# ---- Metrics and ids ----


def test_metrics_that_do_not_go_together(tmp_path, caplog):
    three = save(tmp_path / "a.csv", {"text": TEXTS, "label": [i % 3 for i in range(ROWS)]})
    two = save(tmp_path / "b.csv", {"text": TEXTS, "label": MOOD})
    numbers = save(tmp_path / "c.csv", {"text": TEXTS, "label": [i / 7 for i in range(ROWS)]})
    for file, metrics, message in (
        (three, ["f1"], "--metric f1: is of two labels, and custom has 3; choose macro_f1"),
        (two, ["f1", "pearson"], "--metric pearson: not a score of custom; expected accuracy, f1, macro_f1, matthews"),
        (two, ["pearson"], "a.csv:2|b.csv:2: the label is 'negative', expected a number"),
        (numbers, ["f1"], r"--metric f1: not a score of custom \(a regression\); expected pearson, spearmanr"),
        (two, ["mcc"], "--metric mcc: not a score"),
    ):
        with pytest.raises(InputError, match=message):
            load_files(train_file=file, metrics=metrics)
    task = load_files(train_file=two, metrics=["f1", "macro_f1"])[1]
    assert task.metrics == ("f1", "macro_f1", "accuracy") and task.headline == ("f1", "macro_f1")
    assert "f1 is that of the label 'positive'" in caplog.text


def test_ids_are_kept_as_they_are_written(tmp_path):
    train = save(tmp_path / "a.csv", {"text": TEXTS, "label": MOOD})
    test = save(tmp_path / "b.csv", {"key": ["007", "a b"], "id": [1, 2], "text": TEXTS[:2]})
    splits, _ = load_files(train_file=train, test_file=test, id_column="key")
    assert list(splits["test"]["idx"]) == ["007", "a b"] and list(splits["train"]["idx"]) == list(range(ROWS))
    for ids, message in ((["", "b"], "b.csv:2: the row has no id in 'key'"), (["a", "b\tc"], "b.csv:3: the id 'b.tc'")):
        save(tmp_path / "b.csv", {"key": ids, "text": TEXTS[:2]})
        with pytest.raises(InputError, match=message):
            load_files(train_file=train, test_file=test, id_column="key")
    with pytest.raises(InputError, match="b.csv:2: no column 'kye', the columns are key, text"):
        load_files(train_file=train, test_file=test, id_column="kye")
    with pytest.raises(InputError, match="a.csv:2: no column 'kye', the columns are text, label"):
        load_files(train_file=train, validation_file=test, id_column="kye")
    # Training needs none, and the rows to evaluate are named where they can be
    rows = save(tmp_path / "c.csv", {"key": ["007", "a b"], "text": TEXTS[:2], "label": MOOD[:2]})
    splits, _ = load_files(train_file=train, validation_file=rows, id_column="key")
    assert list(splits["validation"]["idx"]) == ["007", "a b"] and list(splits["train"]["idx"]) == list(range(ROWS))


# ---- Quotes in .tsv ----

QUOTED = ['He said "hi"', "a\ttab", "two\nlines", '"all quoted"', "plain", "it's 5'", "中文“引号”"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_quotes_that_pandas_wrote(quoting, tmp_path, caplog):
    frame = pandas.DataFrame({"text": QUOTED, "label": ["a", "b", "a", "b", "a", "b", "a"]})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False, quoting=quoting)
    assert list(load_files(train_file=tmp_path / "a.tsv")[0]["train"]["text"]) == QUOTED
    assert "quoted as pandas writes them" in caplog.text


@pytest.mark.parametrize(
    "texts",
    [
        ['"Great film."', "plain"],  # nothing in it needs quotes
        ['"a" "b', "plain"],
        ['He said "hi"', '"He said ""hi"""'],
        ['"never closed', "plain"],
        ['5" and 6"', "plain"],
    ],
)
def test_quotes_that_are_text(texts, tmp_path, caplog):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{i}\n" for i, t in enumerate(texts)))
    assert list(load_files(train_file=tmp_path / "a.tsv")[0]["train"]["text"]) == texts
    assert "pandas" not in caplog.text
