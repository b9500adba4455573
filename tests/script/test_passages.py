"""run_glue_rdrop.py on C3, ChID, CMRC 2018 and DRCD, as a user runs it, on made-up files in the official layouts."""

import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertForMultipleChoice, BertForQuestionAnswering, EvalPrediction

from rdrop_trainer.glue.tasks import TASKS
from rdrop_trainer.script.command_line import parse_arguments
from rdrop_trainer.script.processors import ChoiceProcessor, TokenProcessor
from rdrop_trainer.script.scratch import make_bert
from support import runs
from support.device import USE_CPU
from support.runs import fails, results

run = partial(
    runs.run, fast=[f"--use_cpu {USE_CPU} --disable_tqdm True --save_strategy no --per_device_train_batch_size 8"]
)
NAMES = "小明 小红 小刚 小美".split()
PLACES = "学校 公园 商店 医院".split()
# Only the choice says whether it is right, so that a tiny model learns it
GOOD, BAD = "好好学习 天天向上".split(), "乱七八糟 不三不四 丢三落四 一塌糊涂".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    texts = [*NAMES, *PLACES, *GOOD, *BAD, "在哪里谁说他#她很______。，？：真的是吗今天去了昨天又3 km"]
    make_bert(folder, texts, hidden_size=16, heads=2, max_length=64)
    return folder


def dump(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_c3(folder, rows=48):
    def story(i, labeled):
        choices = [GOOD[i % 2], *BAD[: 1 + i % 3]]
        choices = choices[i % len(choices) :] + choices[: i % len(choices)]
        question = {"question": f"{NAMES[i % 4]}说？", "choice": choices}
        return [
            [f"{NAMES[i % 4]}说：", "真的。"],
            [question | ({"answer": GOOD[i % 2]} if labeled else {"id": 100 + i})],
        ]

    for stem, numbers in {"d-train": range(0, rows, 2), "m-train": range(1, rows, 2)}.items():
        dump(folder / f"{stem}.json", [[*story(i, True), str(i)] for i in numbers])
    for stem, numbers in {"d-dev": range(6), "m-dev": range(6, 12)}.items():
        dump(folder / f"{stem}.json", [[*story(i, True), str(i)] for i in numbers])
    dump(folder / "test1.1.json", [story(i, False) for i in range(7)])


def make_chid(folder, rows=24):
    for stem, size in {"train": rows, "dev": 6, "test1.1": 5}.items():
        contents, answers = [], {}
        for i in range(size):
            right = i % 2
            candidates = [*BAD, GOOD[0], GOOD[1]]
            tags = [f"#idiom{1000 * len(stem) + 2 * i + k:06d}#" for k in range(2)]
            contents.append({"content": [f"{NAMES[i % 4]}{tags[0]}，", f"很{tags[1]}。"], "candidates": candidates})
            answers |= {tags[0]: 4 + right, tags[1]: 4 + right}
        dump(folder / f"{stem}.json", *contents)
        if stem != "test1.1":
            dump(folder / f"{stem}_answer.json", answers)


def make_questions(folder, rows=64, stems=("train", "dev", "test")):
    def document(size, labeled):
        paragraphs = []
        for i in range(size):
            name, place = NAMES[i % 4], PLACES[i // 4 % 4]
            context = "今天" * (i % 3 * 8) + f"{name}去了{place}。" + "昨天" * (i % 2 * 10)
            question = {"id": f"Q{i}", "question": "谁去了？"}
            if labeled:
                question["answers"] = [{"text": name, "answer_start": context.index(name)}]
            paragraphs.append({"context": context, "id": f"P{i}", "qas": [question]})
        return {"version": "1.0", "data": [{"title": "t", "paragraphs": paragraphs}]}

    for stem, size, labeled in zip(stems, (rows, 12, 5), (True, True, False), strict=True):
        dump(folder / f"{stem}.json", document(size, labeled))


ALL = "--do_train --do_eval --do_predict --output_dir out"
LEARN = "--learning_rate 1e-2 --num_train_epochs 6 --max_seq_length 32"


def test_c3(model, here):
    make_c3(here / "CLUE" / "c3")
    assert run(model, "--task_name c3 --data_dir CLUE --rdrop_alpha 1 --measure quick", LEARN, ALL) == 0
    found = results("out")
    with np.load(here / "out" / "eval_logits.npz") as kept:
        right = (kept["logits"].argmax(1) == kept["labels"]).mean()
    assert right == pytest.approx(found["headline"]["eval_accuracy"])
    assert 1 / 4 < found["stability"]["calibration"]["mean_confidence"] <= 1
    assert found["rows"] == {"train": 48, "validation": 12, "test": 7}
    assert found["headline"]["eval_accuracy"] > 0.9 and "eval_loss" in found["metrics"]
    lines = [json.loads(line) for line in (here / "out" / "c311_predict.json").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == list(range(100, 107))
    assert all(set(line) == {"id", "label"} for line in lines)
    test = json.loads((here / "CLUE" / "c3" / "test1.1.json").read_text("utf-8"))
    chosen = [row[1][0]["choice"][line["label"]] for row, line in zip(test, lines, strict=True)]
    assert set(chosen) <= set(GOOD)
    assert found["complete_submissions"] == {"c311_predict.json": False}  # the leaderboard wants 1625
    assert BertForMultipleChoice.from_pretrained("out").config.architectures == ["BertForMultipleChoice"]


def test_chid_of_clue(model, here):
    make_chid(here / "chid")
    assert run(model, "--task_name chid --data_dir .", LEARN, ALL) == 0
    found = results("out")
    assert found["rows"] == {"train": 48, "validation": 12, "test": 10}
    written = json.loads((here / "out" / "chid11_predict.json").read_text("utf-8"))
    assert list(written)[:2] == ["#idiom007000#", "#idiom007001#"] and len(written) == 10
    assert all(isinstance(answer, int) and 0 <= answer < 6 for answer in written.values())


def test_chid_of_fewclue(model, here):
    rows = [
        {"id": i, "candidates": [*BAD[: i % 4], GOOD[0], *BAD[i % 4 :]], "content": "他#idiom#。", "answer": i % 4}
        for i in range(32)
    ]
    for stem in ("train", "dev", "test_public"):
        dump(here / "chid" / f"{stem}.json", *rows)
    dump(here / "chid" / "test.json", *({k: v for k, v in row.items() if k != "answer"} for row in rows[:3]))
    dump(here / "chid" / "unlabeled.json", *rows)
    assert run(model, "--task_name chid --data_dir .", LEARN, ALL) == 0
    found = results("out")
    assert found["headline"]["eval_accuracy"] == found["metrics"]["test_public_accuracy"] == 1
    lines = (here / "out" / "chidf_predict.json").read_text("utf-8").splitlines()
    assert lines == ['{"id": 0, "answer": 0}', '{"id": 1, "answer": 1}', '{"id": 2, "answer": 2}']


@pytest.mark.parametrize("pad, side", [(False, "left"), (True, "right")])
def test_cmrc2018(model, here, pad, side):
    make_questions(here / "cmrc2018")
    AutoTokenizer.from_pretrained(model, padding_side=side).save_pretrained("tokenizer")
    flags = f"--max_seq_length 24 --doc_stride 8 --tokenizer_name tokenizer --pad_to_max_length {pad}"
    learn = "--rdrop_alpha 1 --learning_rate 2e-2 --num_train_epochs 5 --measure quick"
    assert run(model, "--task_name cmrc2018 --data_dir .", flags, learn, ALL) == 0
    found = results("out")
    assert found["rows"] == {"train": 64, "validation": 12, "test": 5}  # questions, not windows
    assert found["stability"]["dropout"]["divergence"] > 0 and found["stability"]["edits"] is None
    assert list(found["headline"]) == ["eval_exact_match", "eval_f1"]
    assert found["metrics"]["eval_exact_match"] > 0.7
    written = json.loads((here / "out" / "cmrc2018_predict.json").read_text("utf-8"))
    assert list(written) == [f"Q{i}" for i in range(5)]
    assert sum(written[f"Q{i}"] == NAMES[i % 4] for i in range(5)) >= 4
    assert BertForQuestionAnswering.from_pretrained("out").config.num_labels == 2
    assert AutoTokenizer.from_pretrained("out").padding_side == "right"  # positions count from the left


def test_the_answer_equals_the_saved_models_own(model, here):
    """A passage of one window: the written answer against the saved model called by hand."""
    make_questions(here / "drcd", stems=("DRCD_training", "DRCD_dev", "DRCD_test"))
    assert run(model, "--task_name drcd --data_dir .", LEARN, ALL) == 0
    trained, tokenizer = BertForQuestionAnswering.from_pretrained("out").eval(), AutoTokenizer.from_pretrained("out")
    written = json.loads((here / "out" / "drcd_predict.json").read_text("utf-8"))
    context = "小明去了学校。"
    inputs = tokenizer("谁去了？", context, return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0].tolist()
    inside = [i for i, segment in enumerate(inputs.sequence_ids(0)) if segment == 1]
    with torch.no_grad():
        output = trained(**inputs)
    spans = {
        (float(output.start_logits[0, i] + output.end_logits[0, j])): context[offsets[i][0] : offsets[j][1]]
        for i in inside
        for j in inside
        if i <= j
    }
    assert written["Q0"] == spans[max(spans)]


def test_a_test_set_with_its_answers_is_scored(model, here):
    make_questions(here / "drcd")
    (here / "drcd" / "test.json").write_bytes((here / "drcd" / "dev.json").read_bytes())
    assert run(model, "--task_name drcd --data_dir .", LEARN, ALL) == 0
    found = results("out")
    assert found["headline"]["test_exact_match"] == found["headline"]["eval_exact_match"] > 0
    secret = [{"id": "Q", "question": "谁？", "context": "小明", "answers": [{"text": "FAKE", "answer_start": -1}]}]
    dump(here / "drcd" / "test.json", secret)
    assert run("out", "--task_name drcd --data_dir . --do_predict --output_dir again") == 0
    assert not results("again")["headline"]
    make_c3(here / "c3")
    (here / "c3" / "test1.1.json").write_bytes((here / "c3" / "m-dev.json").read_bytes())
    assert run(model, "--task_name c3 --data_dir .", LEARN, ALL, "--output_dir choices") == 0
    assert results("choices")["headline"]["test_accuracy"] > 0.5


def test_a_missing_package_is_missed_before_training(model, here, monkeypatch, capsys):
    make_chid(here / "chid")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    message = fails(capsys, "--model_name_or_path", model, "--task_name chid --data_dir . --do_train --output_dir out")
    assert 'scipy is needed and not installed: pip install "rdrop-trainer[glue]"' in message
    assert not Path("out").exists()


def test_a_trained_model_is_evaluated_alone_and_other_heads_are_replaced(model, here, capsys):
    make_c3(here / "c3")
    labels = ["neutral", "entailment", "contradiction"]
    dump(here / "cmnli" / "train.json", *({"sentence1": "好", "sentence2": "真", "label": label} for label in labels))
    assert run(model, "--task_name cmnli --data_dir . --num_train_epochs 1 --output_dir pairs") == 0
    c3 = "--task_name c3 --data_dir . --max_seq_length 32"
    message = fails(capsys, "--model_name_or_path pairs", c3, "--do_eval --output_dir x")
    assert "pairs has no trained head (ForMultipleChoice)" in message
    assert run("pairs", c3, "--do_train --num_train_epochs 1 --output_dir out") == 0
    assert run("out", c3, "--do_eval --do_predict --output_dir scores") == 0
    assert 0 <= results("scores")["metrics"]["eval_accuracy"] <= 1
    make_questions(here / "cmrc2018")
    questions = "--task_name cmrc2018 --data_dir . --max_seq_length 32 --num_train_epochs 1"
    assert run("pairs", questions, "--do_train --output_dir questions") == 0


def test_best_model_and_accumulation(model, here):
    make_questions(here / "cmrc2018")
    flags = "--max_seq_length 32 --num_train_epochs 2 --gradient_accumulation_steps 3"
    best = "--load_best_model_at_end --eval_strategy epoch --save_strategy epoch"
    assert run(model, "--task_name cmrc2018 --data_dir . --output_dir out", flags, best) == 0
    assert results("out")["settings"]["metric_for_best_model"] == "exact_match"


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--task_name c3 --data_dir . --unlabeled_file more.txt", "unlabeled rows are for training a classifier"),
        ("--task_name cmrc2018 --data_dir . --max_seq_length 8", "max_seq_length must be at least 16 for questions"),
        ("--task_name cmrc2018 --data_dir . --doc_stride -1", "doc_stride must be at least 0, got -1"),
        ("--task_name cmrc2018 --data_dir . --max_answer_length 0", "max_answer_length must be at least 1, got 0"),
        ("--task_name drcd --data_dir .", "no data for drcd, expected train, dev, test"),
        ("--task_name chid --train_file c3/d-train.json", "d-train.json: item 1: holds a JSON list, expected an obj"),
        ("--task_name c3 --data_dir . --text_columns a b", "c3 reads the fields of its own files"),
    ],
)
def test_wrong_input_is_one_sentence(flags, message, model, here, capsys):
    make_c3(here / "c3")
    make_questions(here / "cmrc2018")
    (here / "more.txt").write_text("好\n", encoding="utf-8")
    assert re.search(message, fails(capsys, "--model_name_or_path", model, flags))


def test_choices_and_tags_of_a_model_that_broke_down_are_not_scored():
    rows = Dataset.from_dict({"choices": [["a", "b"]] * 2, "label": [0, 1], "group": ["x", "y"]})
    compute = ChoiceProcessor(TASKS["c3"], None, None, parse_arguments([]).data, 16).compute_metrics(rows, rows)
    assert compute(EvalPrediction(np.eye(2), None)) == {"accuracy": 1.0}
    assert math.isnan(compute(EvalPrediction(np.array([[np.nan, 0.0], [0.0, 1.0]]), None))["accuracy"])
    task = TASKS["cluener"]
    rows = Dataset.from_dict({"labels": [[task.labels.index("B-name"), task.labels.index("O")]]})
    of_tags = TokenProcessor(task, None, None, parse_arguments([]).data, 16).compute_metrics(rows, rows)
    scores = of_tags(EvalPrediction(np.full((2, 3, 4), np.nan), None))
    assert {"f1", "f1_name"} <= scores.keys() and all(map(math.isnan, scores.values()))
