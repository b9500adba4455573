"""Reading C3, ChID, CMRC 2018 and DRCD: every layout, and what is said about broken files. All content is made up."""

import json

import datasets
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.passages import BLANK
from rdrop_trainer.glue.tasks import TASKS

TALK = [
    ["男：今天下雨了。", "女：我没带伞。"],
    [
        {"question": "天气怎么样？", "choice": ["晴天", "下雨"], "answer": "下雨"},
        {"question": "女的没带什么？", "choice": ["书", "伞", "水", "笔"], "answer": "伞"},
    ],
    "1-1",
]
STORY = [["小猫在睡觉。"], [{"question": "谁在睡觉？", "choice": ["小狗", "小猫", "小鸟"], "answer": "小猫"}], "m2"]
CLOZE = {
    "content": ["他#idiom000001#，终于成功；她却#idiom000002#。", "这里#idiom000003#。"],
    "candidates": ["坚持不懈", "半途而废", "山清水秀"],
}
ANSWERS = {"#idiom000001#": 0, "#idiom000002#": 1, "#idiom000003#": 2}
FEW = {"id": 7, "candidates": ["坚持不懈", "半途而废"], "content": "不能#idiom#。", "answer": 1}
SQUAD = {
    "version": "1",
    "data": [
        {
            "title": "李白",
            "paragraphs": [
                {
                    "id": "D1",
                    "context": "李白是唐代诗人。李白字太白。",
                    "qas": [
                        {"question": "谁是诗人？", "id": "D1_Q1", "answers": [{"text": "李白", "answer_start": 0}]},
                        {
                            "question": "字什么？",
                            "id": "D1_Q2",
                            "answers": [
                                {"id": "1", "text": "太白 ", "answer_start": 10},
                                {"id": "2", "text": "李白", "answer_start": 7},
                                {"id": "3", "text": "杜甫", "answer_start": 3},
                            ],
                        },
                    ],
                }
            ],
        }
    ],
}


def write(path, content, indent=None, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = content if lines else [content]
    path.write_text("".join(json.dumps(r, ensure_ascii=False, indent=indent) + "\n" for r in rows), encoding="utf-8")
    return path


def load(name, folder, **options):
    return load_task(TASKS[name], data_dir=folder, **options)


# ---- C3 ----


@pytest.mark.parametrize("prefix", ["", "c3-"])
@pytest.mark.parametrize("indent", [None, 1])
def test_c3_of_two_genres(tmp_path, prefix, indent):
    for kind in ("train", "dev"):
        write(tmp_path / "c3" / f"{prefix}d-{kind}.json", [TALK], indent)
        write(tmp_path / "c3" / f"{prefix}m-{kind}.json", [STORY], indent)
    data = load("c3", tmp_path)
    assert set(data) == {"train", "validation"}
    rows = data["train"].to_list()
    assert [row["question"] for row in rows] == ["天气怎么样？", "女的没带什么？", "谁在睡觉？"]
    assert [row["label"] for row in rows] == [1, 1, 1] and [row["idx"] for row in rows] == [0, 1, 2]
    assert rows[0]["context"] == "男：今天下雨了。\n女：我没带伞。" and rows[0]["choices"] == ["晴天", "下雨"]


def test_c3_test_sets_have_ids_and_the_newer_one_counts(tmp_path):
    question = {"question": "谁？", "choice": ["a", "b"], "id": 31}
    write(tmp_path / "test1.1.json", [[["x"], [question, question | {"id": 32}]]])
    write(tmp_path / "test1.0.json", [[["x"], [question]]])
    test = load("c3", tmp_path)["test"]
    assert list(test["idx"]) == [31, 32] and list(test["label"]) == [-1, -1]
    assert len(set(test["group"])) == 2  # questions about one text may have the same answer


def test_c3_answers_are_found_without_case_and_spaces(tmp_path):
    write(tmp_path / "train.json", [[["x"], [{"question": "q", "choice": ["A b", "c "], "answer": "a B "}], "1"]])
    assert list(load("c3", tmp_path)["train"]["label"]) == [0]


def test_one_genre_is_not_the_whole(tmp_path):
    write(tmp_path / "d-train.json", [TALK])
    with pytest.raises(InputError, match="m-train.json: no such file"):
        load("c3", tmp_path)


# ---- ChID ----


def test_chid_of_clue(tmp_path):
    write(tmp_path / "chid" / "train.json", [CLOZE], lines=True)
    write(tmp_path / "chid" / "train_answer.json", ANSWERS, indent=1)
    write(tmp_path / "chid" / "test1.1.json", [CLOZE], lines=True)
    data = load("chid", tmp_path)
    rows = data["train"].to_list()
    assert [(row["idx"], row["label"]) for row in rows] == list(ANSWERS.items())
    assert [row["context"] for row in rows] == [
        f"他{BLANK}，终于成功；她却____。",
        f"他____，终于成功；她却{BLANK}。",
        f"这里{BLANK}。",
    ]
    assert rows[2]["choices"] == CLOZE["candidates"] and set(data["test"]["label"]) == {-1}
    assert len(set(data["train"]["group"])) == 1  # the blanks of one item share their candidates


def test_chid_of_fewclue(tmp_path):
    unanswered = {key: value for key, value in FEW.items() if key != "answer"}
    write(tmp_path / "train_few_all.json", [FEW, FEW], lines=True)
    write(tmp_path / "test_public.json", [FEW], lines=True)
    write(tmp_path / "test.json", [unanswered], lines=True)
    write(tmp_path / "unlabeled.json", [unanswered], lines=True)
    data = load("chid", tmp_path)
    assert set(data) == {"train", "test", "test_public"}
    assert data["train"].to_list()[0] == {
        "idx": 7, "context": f"不能{BLANK}。", "question": "", "choices": FEW["candidates"], "label": 1,
        "group": f"{tmp_path / 'train_few_all.json'}:1",
    }  # fmt: skip
    assert list(data["test"]["label"]) == [-1]


# ---- CMRC 2018 and DRCD ----


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name, stem", [("cmrc2018", "train"), ("drcd", "DRCD_training")])
def test_questions(tmp_path, name, stem, indent, caplog):
    write(tmp_path / f"{stem}.json", SQUAD, indent)
    rows = load(name, tmp_path)["train"].to_list()
    assert [row["idx"] for row in rows] == ["D1_Q1", "D1_Q2"]
    assert rows[1]["answers"] == ["太白", "李白", "杜甫"]  # without the space around the first
    assert rows[1]["starts"] == [11, 8, -1]  # 10 and 7 are off by one; the nearest place counts
    assert (rows[0]["context"], rows[0]["question"]) == ("李白是唐代诗人。李白字太白。", "谁是诗人？")
    assert (rows[0]["answers"], rows[0]["starts"]) == (["李白"], [0])


def test_questions_whose_answer_is_not_in_the_passage(tmp_path, caplog):
    document = json.loads(json.dumps(SQUAD))
    document["data"][0]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "宋代", "answer_start": 3}]
    write(tmp_path / "train.json", document)
    write(tmp_path / "dev.json", document)
    data = load("cmrc2018", tmp_path)
    assert len(data["train"]) == 1 and "1 questions whose passage does not hold their answer" in caplog.text
    assert data["validation"].to_list()[0]["starts"] == [-1]  # nothing is dropped from what is scored


def test_questions_without_answers_and_the_trial_set(tmp_path):
    document = json.loads(json.dumps(SQUAD))
    first, second = document["data"][0]["paragraphs"][0]["qas"]
    del first["answers"]
    second["answers"] = [{"text": "", "answer_start": -1}]
    write(tmp_path / "cmrc2018_public" / "test.json", document)
    write(tmp_path / "cmrc2018_public" / "trial.json", SQUAD)
    data = load("cmrc2018", tmp_path)
    assert list(data["test"]["answers"]) == [[], []] and len(data["test_public"]) == 2


# ---- The Hub ----


def hub(monkeypatch, **splits):
    data = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: data)


def test_hub_c3(monkeypatch):
    row = {"id": 4, "context": ["甲", "乙"], "question": "谁？", "choice": ["丙", "乙"], "answer": "乙"}
    hub(monkeypatch, train=[row], test=[row | {"answer": ""}])
    data = load_task(TASKS["c3"])
    assert data["train"].to_list() == [
        {
            "idx": 4,
            "context": "甲\n乙",
            "question": "谁？",
            "choices": ["丙", "乙"],
            "label": 1,
            "group": "clue/clue c3 train:1",
        }
    ]
    assert list(data["test"]["label"]) == [-1]


@pytest.mark.parametrize("of_lists", [True, False])
def test_hub_chid(monkeypatch, of_lists):
    ids = list(ANSWERS.values())
    answers = {"text": ["x"] * 3, "candidate_id": ids} if of_lists else [{"text": "x", "candidate_id": i} for i in ids]
    none = {"text": [], "candidate_id": []} if of_lists else []
    hub(monkeypatch, train=[CLOZE | {"idx": 0, "answers": answers}], test=[CLOZE | {"idx": 0, "answers": none}])
    data = load_task(TASKS["chid"])
    assert list(data["train"]["label"]) == ids and list(data["train"]["idx"]) == list(ANSWERS)
    assert list(data["test"]["label"]) == [-1] * 3


def test_hub_cmrc2018(monkeypatch):
    row = {"id": "T", "context": "李白", "question": "谁？", "answers": {"text": ["李白"], "answer_start": [0]}}
    hub(monkeypatch, train=[row], trial=[row], test=[row | {"answers": {"text": [], "answer_start": []}}])
    data = load_task(TASKS["cmrc2018"])
    assert set(data) == {"train", "test", "test_public"}
    assert data["train"].to_list() == [
        {"idx": "T", "context": "李白", "question": "谁？", "answers": ["李白"], "starts": [0]}
    ]


# ---- Wrong input ----


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("c3", [TALK[:1]], r"train.json: item 1: expected \[\[lines\], \[questions\], id\]"),
        ("c3", [STORY, [["x"], [{"question": "q", "choice": ["a", "b"], "answer": "c"}], "1"]],
         "item 2, question 1: the answer 'c' is none of the choices a, b"),
        ("c3", [[["x"], [{"question": "q", "choice": ["a", "b"]}], "1"]], "question 1: the question has no answer"),
        ("c3", [[["x"], [{"question": "q", "choice": ["a"], "answer": "a"}], "1"]], "expected at least two"),
        ("c3", [[["x"], [{"choice": ["a", "b"], "answer": "a"}], "1"]], "question 1: has no 'question'"),
        ("c3", ["text"], "item 1: holds a JSON str, expected an object"),
        ("c3", [], "train.json: is empty"),
        ("chid", CLOZE, "train.json:1: the question #idiom000001# has no answer"),
        ("chid", CLOZE | {"answers": [1]}, "train.json:1: holds a JSON int, expected an object"),
        ("chid", CLOZE | {"answers": 1}, "train.json:1: the answers are 1, expected an object with one for each"),
        ("chid", FEW | {"answer": True}, "train.json:1: the answer is True, expected a number from 0 to 1"),
        ("chid", FEW | {"content": "没有空"}, "train.json:1: the content '没有空' is expected to hold one blank"),
        ("chid", FEW | {"answer": 2}, "train.json:1: the answer is 2, expected a number from 0 to 1"),
        ("chid", FEW | {"candidates": "ab"}, "train.json:1: 'candidates' holds 'ab', expected a list of texts"),
        ("cmrc2018", {"data": [{"paragraphs": [{"qas": [{"id": "1", "question": "q"}]}]}]},
         "train.json:1, data 1, paragraphs 1, question 1: has no 'context'"),
        ("cmrc2018", {"id": "1", "question": "q", "context": "c"}, "train.json:1: the question 1 has no answer"),
        ("cmrc2018", {"question": "q", "context": "c", "answers": {"text": ["c"]}}, "expected lists of text and"),
        ("cmrc2018", {"question": "q", "context": "c", "answers": {"text": [], "answer_start": [0]}},
         "train.json:1: the answers are .*, expected lists of text and answer_start"),
        ("cmrc2018", {"question": "q", "context": "c", "answers": [{"text": "x", "answer_start": 0}]},
         "train.json: no passage holds the answer to its question"),
        ("cmrc2018", {"question": "q", "context": " ", "answers": []}, "train.json:1: the context is empty"),
        ("cmrc2018", {"question": "q", "context": "c", "answers": ["c"]}, "the answer is 'c', expected its text and"),
    ],
)  # fmt: skip
def test_wrong_rows(tmp_path, name, content, message):
    write(tmp_path / "train.json", content)
    with pytest.raises(InputError, match=message):
        load(name, tmp_path)


def test_ids_that_occur_twice_are_refused_where_answers_go_by_ids(tmp_path):
    write(tmp_path / "test.json", [{"id": "Q", "question": "q", "context": "c"}] * 2)
    with pytest.raises(InputError, match="test.json: the id 'Q' occurs twice"):
        load("cmrc2018", tmp_path)
    write(tmp_path / "test_public.json", [FEW, FEW], lines=True)
    (tmp_path / "test.json").unlink()
    assert len(load("chid", tmp_path)["test_public"]) == 2


def test_a_document_in_another_encoding(tmp_path):
    (tmp_path / "train.json").write_bytes('[\n"甲"]'.encode("gbk"))
    with pytest.raises(InputError, match="train.json:2: byte 0xbc at position 2 of the line is not UTF-8[^)]*$"):
        load("c3", tmp_path)


def test_a_broken_document_names_the_line(tmp_path):
    (tmp_path / "train.json").write_text('[\n[["x"],\n oops]]', encoding="utf-8")
    with pytest.raises(InputError, match="train.json:3: broken JSON"):
        load("c3", tmp_path)


def test_unlabeled_rows_and_columns_are_refused(tmp_path):
    write(tmp_path / "train.json", [FEW], lines=True)
    with pytest.raises(InputError, match="unlabeled rows are for training a classifier, but chid asks about passages"):
        load("chid", tmp_path, unlabeled_file=tmp_path / "train.json")
    with pytest.raises(InputError, match="chid reads the fields of its own files"):
        load("chid", tmp_path, label_column="answer")
