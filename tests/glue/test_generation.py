"""Texts from texts: the files, the scores, and whole runs of the script with titles of abstracts."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from transformers import AutoTokenizer, BartForConditionalGeneration

from rdrop_trainer import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.metrics import load_metric
from rdrop_trainer.glue.overlap import bleu, chrf, rouge, without_blanks, words_of
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.glue.tasks import get_task
from rdrop_trainer.script.arguments import DataArguments
from rdrop_trainer.script.processors import TextProcessor
from rdrop_trainer.script.scratch import make_bart, make_bert
from support.device import USE_CPU
from support.runs import script

FAST = [
    "--use_cpu",
    str(USE_CPU),
    "--disable_tqdm",
    "True",
    "--save_strategy",
    "no",
    "--per_device_train_batch_size",
    "16",
]
FAST += ["--max_seq_length", "32", "--max_target_length", "16", "--num_beams", "2", "--num_train_epochs", "1"]
TASK = get_task("csl_title")


# ---- Scores ----


def test_units():
    assert words_of("基于BERT-base的 2D 方法。") == ["基", "于", "bert", "base", "的", "2d", "方", "法"]
    assert words_of("naïve Ünit ひらがな") == ["naïve", "ünit", "ひ", "ら", "が", "な"]


def test_blanks():
    assert without_blanks(" 基 于 BERT 的 方 法 ， 有 效 ") == "基于BERT的方法，有效"
    assert without_blanks("two words ") == "two words"


def test_rouge_by_hand():
    """6 of 6 units against 6 of 8; 4 of 5 pairs against 4 of 7; the longest common subsequence has 6 units."""
    scores = rouge(["基于BERT的方法", "一"], ["基于bert的分类方法", "二"])
    assert scores == pytest.approx({"rouge1": 6 / 14, "rouge2": 4 / 12, "rougeL": 6 / 14})
    english = rouge(["the cat sat"], ["the cat sat on a mat"])
    assert english == pytest.approx({"rouge1": 6 / 9, "rouge2": 4 / 7, "rougeL": 6 / 9})
    assert rouge([""], ["一"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_bleu_takes_its_tokenizer_from_the_references():
    chinese, english = "基于注意力机制的文本分类方法", "a method for the classification of texts"
    assert bleu([chinese], [chinese]) == pytest.approx(100)
    other = "基于注意力机制的图像分类"
    assert bleu([other], [chinese]) == sacrebleu.corpus_bleu([other], [[chinese]], tokenize="zh").score > 0
    assert bleu(["a method for classification"], [english]) == pytest.approx(
        sacrebleu.corpus_bleu(["a method for classification"], [[english]], tokenize="13a").score
    )


def test_chrf_by_hand():
    """Of "ab" and "abc": runs of 1 and 2 characters all right, 2 of 3 and 1 of 2 found; longer ones there are none."""
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    assert chrf(["a b"], ["abc"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_the_metric():
    scores = load_metric(TASK).compute(predictions=["深度学习", "a b"], references=["深度学习", "a b"])
    assert list(scores) == list(TASK.metrics)
    assert [scores[name] for name in ("rouge1", "rouge2", "rougeL")] == [1, 1, 1] and scores["bleu"] > 50


@pytest.mark.parametrize("package", ["rouge_score", "sacrebleu"])
def test_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf'{package} is needed and not installed: pip install "rdrop-trainer\[seq2seq\]"'
    ):
        load_metric(TASK)


# ---- Files ----


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_folder_of_tsv_without_headers(tmp_path):
    for split in ("train", "dev", "test"):
        lines(tmp_path / "csl_title_public" / f"csl_title_{split}.tsv", f"题目{split}\t摘要 one", "b\t二")
    data = load_task(TASK, data_dir=tmp_path)
    assert {split: rows["target"] for split, rows in data.items()} == {
        "train": ["题目train", "b"],
        "validation": ["题目dev", "b"],
        "test": ["题目test", "b"],
    }
    assert data["test"]["abstract"] == ["摘要 one", "二"] and data["test"]["idx"] == [0, 1]


def test_a_tsv_that_has_a_header(tmp_path):
    data = load_task(TASK, train_file=lines(tmp_path / "a.tsv", "content\ttitle", "text\tname"))["train"]
    assert (data["abstract"], data["target"]) == (["text"], ["name"])


@pytest.mark.parametrize("source", ["abst", "abstract", "content"])
def test_json_lines(source, tmp_path):
    row = {"id": 7, "title": " 题目 ", source: "摘要"}
    train = lines(tmp_path / "a.jsonl", json.dumps(row))
    test = lines(tmp_path / "b.json", json.dumps({"id": 8, source: "摘要"}))
    data = load_task(TASK, train_file=train, test_file=test)
    assert data["train"][0] == {"abstract": "摘要", "idx": 7, "target": "题目"}
    assert data["test"][0] == {"abstract": "摘要", "idx": 8, "target": None}


def test_columns_of_the_user(tmp_path):
    file = lines(tmp_path / "a.tsv", "de\ten", "ein Hund\ta dog")
    data = load_task(TASK, train_file=file, text_columns=["de"], label_column="en")["train"]
    assert data[0] == {"abstract": "ein Hund", "idx": 0, "target": "a dog"}


@pytest.mark.parametrize(
    "content, message",
    [
        (['{"title": "", "abst": "x"}'], r"a.jsonl:1: the row has no label \(''\), expected a text"),
        (['{"title": "x", "abst": ""}'], "a.jsonl:1: the text is empty"),
        (['{"title": 3, "abst": "x"}'], "a.jsonl:1: the column 'title' holds 3, expected text"),
        (['{"title": "x", "text": "x"}'], "a.jsonl:1: no column 'abstract' or 'abst' or 'content'"),
        (['{"name": "x", "abst": "x"}'], "a.jsonl:1: no column 'title'"),
    ],
)
def test_wrong_rows(content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_task(TASK, train_file=lines(tmp_path / "a.jsonl", *content))


def test_no_unlabeled_rows(tmp_path):
    file = lines(tmp_path / "a.tsv", "title\ttext")
    with pytest.raises(InputError, match="csl_title writes texts"):
        load_task(TASK, train_file=file, unlabeled_file=file)


# ---- Files of one's own ----

DE, EN = [f"Der {w} ist neu." for w in "Hund Baum Weg".split()], [f"The {w} is new." for w in "dog tree way".split()]


def own(path, columns, **options):
    names, rows = list(columns), zip(*columns.values(), strict=True)
    return load_files(task_type="seq2seq", train_file=lines(path, *map("\t".join, [names, *rows])), **options)


@pytest.mark.parametrize(
    "columns, given, found",
    [
        ({"Source": DE, "target": EN}, {}, ("Source", "target")),
        ({"id": "abc", "summary": EN, "document": DE}, {}, ("document", "summary")),
        ({"de": DE, "en": EN}, {"text_columns": ["en"]}, ("en", "de")),
        ({"de": DE, "en": EN, "count": "123"}, {"label_column": "de"}, ("en", "de")),
        ({"de": DE, "en": EN, "fr": EN}, {"text_columns": ["de"], "label_column": "fr"}, ("de", "fr")),
        ({"text": DE, "summary": EN, "note": EN}, {"label_column": "note"}, ("text", "note")),
    ],
)
def test_which_column_is_read_and_which_is_written(columns, given, found, tmp_path):
    data, task = own(tmp_path / "a.tsv", columns, **given)
    assert (*task.sources("source"), *task.label_sources) == found
    assert (data["train"]["source"][:], data["train"]["target"][:]) == tuple(list(columns[name]) for name in found)


@pytest.mark.parametrize(
    "columns, given, message",
    [
        (
            {"de": DE, "en": EN},
            {},
            r"a.tsv:2: which text is read.*Give --source_column and --target_column. .*'de' \(text",
        ),
        (
            {"de": DE, "en": EN, "fr": EN},
            {"text_columns": ["de"]},
            "a.tsv:2: which .* Give --target_column. The columns",
        ),
        (
            {"de": DE, "en": EN},
            {"text_columns": ["fr"]},
            r"a.tsv:2: no column 'fr' \(--source_column\). The columns: 'de'",
        ),
        ({"de": DE, "en": EN}, {"text_columns": ["de"], "label_column": "de"}, "are both 'de', expected two columns"),
        ({"source": DE, "target": ["x", "", "y"]}, {}, r"a.tsv:3: the row has no label \(''\), expected a text"),
    ],
)
def test_columns_that_are_not_plain(columns, given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        own(tmp_path / "a.tsv", columns, **given)


def test_translations_of_the_hub_and_a_file_without_targets(tmp_path):
    row = {"translation": {"de": "ein Hund", "en": "a dog"}}
    file, test = lines(tmp_path / "a.jsonl", json.dumps(row)), lines(tmp_path / "b.tsv", "de", "ein Baum")
    columns = {"text_columns": ["de"], "label_column": "en"}
    data, task = load_files(task_type="seq2seq", train_file=file, test_file=test, **columns)
    assert data["train"][0] == {"source": "ein Hund", "idx": 0, "target": "a dog"}
    assert data["test"][0] == {"source": "ein Baum", "idx": 0, "target": None}
    assert load_files(task_type="seq2seq", test_file=test)[1].sources("source") == ("de",)


# ---- The script ----


def pairs(number, seed):
    choose = random.Random(seed).choice
    for _ in range(number):
        what, how = choose("图像 文本 语音 土壤 桥梁".split()), choose("分类 检测 预测".split())
        yield f"{what}{how}的BERT方法", f"针对{what}{how}问题，提出一种方法。"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    texts = (text for pair in pairs(100, seed=0) for text in pair)
    make_bart(folder, texts, hidden_size=32, layers=1, heads=2, max_length=32)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (split, number) in enumerate({"train": 160, "dev": 10, "test": 6}.items()):
        rows = (f"{title}\t{text}" for title, text in pairs(number, seed))
        lines(tmp_path / "csl_title_public" / f"csl_title_{split}.tsv", *rows)
    return tmp_path


def run(model, *flags):
    words = ["--model_name_or_path", str(model), "--task_name", "csl_title", *FAST, "--output_dir", "out"]
    return script.main([*words, *map(str, flags)])


def results():
    return json.loads(Path("out/all_results.json").read_text(encoding="utf-8"))


def test_training_evaluation_and_prediction(model, here, capsys):
    flags = ["--do_train", "--do_eval", "--do_predict", "--learning_rate", "1e-2", "--num_train_epochs", 12]
    flags += ["--measure", "quick", "--label_smoothing_factor", 0.1, "--rdrop_alpha", 1]
    assert run(model, "--data_dir", ".", *flags) == 0
    found = results()
    assert found["stability"]["dropout"]["divergence"] > 0 and found["stability"]["calibration"] is None
    assert found["rows"] == {"train": 160, "validation": 10, "test": 6}
    # Not trained, it scores under 0.1
    assert found["headline"]["eval_rougeL"] > 0.6 and found["headline"]["test_rougeL"] > 0.6
    assert {f"eval_{name}" for name in TASK.metrics} <= found["metrics"].keys()
    written = [json.loads(line) for line in Path("out/csl_title_predict.json").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in written] == list(range(6)) and all(list(row) == ["id", "title"] for row in written)
    titles = [row["title"] for row in written]
    assert all(title and " " not in title and "##" not in title for title in titles)
    assert "score     eval_rougeL" in capsys.readouterr().out
    # The trained model, evaluated again, scores the same; with one beam and a short limit it writes shorter titles
    again = ["--do_eval", "--model_name_or_path", "out", "--output_dir", "again"]
    assert run(model, "--data_dir", ".", *again) == 0
    scores = json.loads(Path("again/all_results.json").read_text(encoding="utf-8"))["headline"]
    assert scores["eval_rougeL"] == found["headline"]["eval_rougeL"]
    short = ["--do_predict", "--num_beams", 1, "--max_target_length", 4, "--model_name_or_path", "out"]
    assert run(model, "--data_dir", ".", *short, "--output_dir", "short") == 0
    written = [json.loads(line)["title"] for line in Path("short/csl_title_predict.json").open(encoding="utf-8")]
    assert all(len(words_of(title)) <= 4 for title in written)


@pytest.mark.parametrize("alpha", [0, 4])
def test_the_best_epoch_by_rouge(alpha, model, here):
    best = ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "True"]
    train, dev = (f"csl_title_public/csl_title_{split}.tsv" for split in ("train", "dev"))
    files = ["--train_file", train, "--validation_file", dev, "--max_train_samples", 16]
    assert run(model, "--do_train", *files, *best, "--rdrop_alpha", alpha) == 0
    assert results()["settings"]["metric_for_best_model"] == "rougeL" and results()["metrics"]["steps"] == 1


def test_rows_repeated_to_fill_the_last_batch_are_left_out(model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = load_task(TASK, train_file=lines(tmp_path / "a.tsv", "图像分类\tx", "语音检测\tx"))["train"]
    processor = TextProcessor(TASK, tokenizer, None, DataArguments(max_target_length=8, source_prefix=""), 32)
    labels = processor.features(rows)["labels"]
    predictions = np.array([*labels, labels[0]])
    predictions[1, -1] = -100
    assert processor.answers(predictions, None, rows) == ["图像分类", "语音检测"]


def test_a_test_set_without_titles(model, here):
    rows = ({"id": i, "content": text} for i, (_, text) in enumerate(pairs(3, seed=5)))
    test = lines(here / "test.json", *map(json.dumps, rows))
    assert run(model, "--do_predict", "--test_file", test) == 0
    assert not results()["headline"] and len(Path("out/csl_title_predict.json").read_text().splitlines()) == 3


def test_the_search_has_the_beams_and_the_length_asked_for(model, here, monkeypatch):
    seen, generate = [], BartForConditionalGeneration.generate

    def watch(self, *args, **options):
        seen.append((options["num_beams"], options["max_length"]))
        return generate(self, *args, **options)

    monkeypatch.setattr(BartForConditionalGeneration, "generate", watch)
    assert run(model, "--data_dir", ".", "--do_predict", "--num_beams", 3, "--max_target_length", 9) == 0
    assert set(seen) == {(3, 10)}  # nine tokens after the start token


def test_a_missing_package_is_missed_before_training(model, here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    assert run(model, "--data_dir", ".", "--do_train", "--do_predict") == 2
    assert 'rouge_score is needed and not installed: pip install "rdrop-trainer[seq2seq]"' in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_model_that_cannot_write(here, tmp_path, capsys):
    make_bert(tmp_path / "bert", ["图像"], hidden_size=16, heads=2)
    assert run(tmp_path / "bert", "--data_dir", ".", "--do_train") == 2
    assert "(bert) is no encoder-decoder, and csl_title writes texts" in capsys.readouterr().err


def test_wrong_settings(model, here, capsys):
    (here / "x.txt").write_text("one\n")
    for flags, message in ((["--num_beams", 0], "num_beams must be"), (["--unlabeled_file", "x.txt"], "writes texts")):
        assert run(model, "--data_dir", ".", *flags) == 2
        assert message in capsys.readouterr().err
