"""The pages on one's own data from the first line to the last: commands and Python blocks in order, in one folder."""

import csv
import json
import random
import re
import shlex

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rdrop_trainer.glue.conll import read_conll
from rdrop_trainer.hub import load_checkpoint
from rdrop_trainer.run_folder import read_results
from rdrop_trainer.script.demo import make_sentences
from rdrop_trainer.script.scratch import make_bart, make_bert
from support import ROOT
from support.runs import FAST, script

QUICK = [flag for flag in FAST if flag not in ("--save_strategy", "no", "--num_train_epochs", "1")]


def run_page(name, model, *more):
    """Run a page; the models that it names are `model`, or folders by their names."""
    names = {}
    for language, text in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", (ROOT / "docs" / name).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, name, "exec"), names)
        elif language == "bash" and "--use_peft" not in text:  # as in test_adapter.py
            python, program, *flags = shlex.split(text.replace("\\\n", " "))
            assert (python, program) == ("python", "run_glue_rdrop.py")
            at = flags.index("--model_name_or_path") + 1
            folder = model.get(flags[at]) if isinstance(model, dict) else model
            flags[at] = flags[at] if flags[at].startswith("runs/") else str(folder)
            flags = ["2" if flag == "10" else flag for flag in flags]
            assert script.main([*flags, *QUICK, *more]) == 0


def test_classification(model, here, capsys):
    for name, rows in (("train", 32), ("dev", 16), ("new", 8)):
        with open(here / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            sentences = enumerate(make_sentences(rows, seed=rows))
            csv.writer(file).writerows([("id", "review", "sentiment"), *((f"a{i}", *one) for i, one in sentences)])
    run_page("your-own-data.md", model)
    screen = capsys.readouterr().out
    assert "columns   text: review; label: sentiment" in screen and "positive was predicted as" in screen
    assert "'label': 'positive'" in screen or "'label': 'negative'" in screen
    written = (here / "runs/reviews-new/custom_test_predict.tsv").read_text().splitlines()
    assert written[0] == "id\tprediction" and len(written) == 9 and written[1].startswith("a0\t")


PEOPLE, PLACES = ("Anna Berg", "Paul", "Eva Lind"), ("Oslo", "New York")


def write_names(path, rows, seed, tagged=True):
    """CoNLL columns: people and places in sentences of two forms."""
    choose, sentences = random.Random(seed).choice, []
    for _ in range(rows):
        who, verb, where = choose(PEOPLE).split(), choose(["lives", "is"]), choose(PLACES).split()
        tags = [
            f"{'I' if i else 'B'}-{kind}" for kind, name in (("PER", who), ("LOC", where)) for i in range(len(name))
        ]
        tags[len(who) : len(who)] = ["O", "O"]
        words = [*who, verb, "in", *where]
        sentences.append("".join(f"{w} {t}\n" if tagged else f"{w}\n" for w, t in zip(words, tags, strict=True)))
    path.write_text("-DOCSTART- O\n\n" * tagged + "\n".join(sentences), encoding="utf-8")


def test_tags(here, capsys):
    make_bert(here / "model", [*PEOPLE, *PLACES, "lives in is"], hidden_size=32, heads=2, max_length=32)
    # As those of many decoders; tags are found by the places of their tokens, counted from the left
    AutoTokenizer.from_pretrained("model", padding_side="left").save_pretrained("model")
    for name, rows in (("train.conll", 48), ("dev.conll", 12)):
        write_names(here / name, rows, seed=rows)
    write_names(here / "new.txt", 5, seed=1, tagged=False)
    run_page("your-own-tags.md", here / "model", "--learning_rate", "5e-3")
    assert "columns   text: 1; label: 2\n" in capsys.readouterr().out
    found = read_results("runs/names")
    assert list(found["headline"])[:2] == ["eval_f1", "eval_macro_f1"] and found["metrics"]["eval_f1"] > 0.9
    written = [row for _, row in read_conll("runs/names-new/custom_test_predict.conll")]
    assert [row["1"] for row in written] == [row["1"] for _, row in read_conll("new.txt")]
    assert {tag for row in written for tag in row["2"]} == {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}


PLACES_DE, NEWS = {"Oslo": "Oslo", "Bergen": "Bergen", "Rom": "Rome"}, {"Sturm": "storm", "Streik": "strike"}


def write_pairs(folder):
    """A sentence of an event in a place: in German, and in English at length and in short."""
    choose = random.Random(0).choice
    for kind, rows in (("", 48), ("-dev", 8), ("new", 4)):
        found = [(*choose([*PLACES_DE.items()]), *choose([*NEWS.items()])) for _ in range(rows)]
        lines = [
            f"t{i}\tDer Hafen von {o} ist zu\tThe harbour of {p} is closed" for i, (o, p, _, _) in enumerate(found)
        ]
        header = "id\tde\ten"
        if kind == "new":
            header, lines = "id\tde", [line.rsplit("\t", 1)[0] for line in lines]
        (folder / (f"pairs{kind}.tsv" if kind != "new" else "new.tsv")).write_text("\n".join([header, *lines]) + "\n")
        pairs = [(f"The harbour of {p} is closed because of a {e}.", f"{e} closes harbour") for _, p, _, e in found]
        name = {"": "train", "-dev": "dev"}.get(kind, "more")
        rows = (json.dumps({"document": text, "summary": short}) + "\n" for text, short in pairs)
        (folder / f"{name}.jsonl").write_text("".join(rows))
        yield from (text for pair in pairs for text in pair)
        yield from lines


def test_pairs(here, capsys):
    make_bart(here / "model", write_pairs(here), hidden_size=16, layers=1, heads=2, max_length=32)
    run_page("your-own-pairs.md", here / "model", *"--num_beams 1 --max_target_length 10 --learning_rate 1e-2".split())
    screen = capsys.readouterr().out
    assert "columns   source: document; target: summary\n" in screen
    assert "columns   source: de; target: en; id: id\n" in screen
    assert [*read_results("runs/summaries")["headline"]] == ["eval_rougeL", "eval_bleu", "eval_chrf"]
    assert [*read_results("runs/translations")["headline"]] == ["eval_bleu", "eval_chrf"]
    written = (here / "runs/translations-new/custom_test_predict.jsonl").read_text().splitlines()
    model, tokenizer, _ = load_checkpoint("runs/translations")
    with open("new.tsv") as file:
        rows = [{"id": row["id"], "prediction": row["de"]} for row in csv.DictReader(file, delimiter="\t")]
    for row in rows:
        tokens = tokenizer(
            row["prediction"], return_tensors="pt", return_token_type_ids=False, truncation=True, max_length=16
        )
        (target,) = model.generate(**tokens, num_beams=1, max_length=11)
        row["prediction"] = tokenizer.decode(target, skip_special_tokens=True).strip()
    assert list(map(json.loads, written)) == rows and len(rows) == 4


def write_questions(path, rows, labeled=True):
    """Where somebody lives, which the passage says, or does not."""
    choose, paragraphs = random.Random(rows).choice, []
    for i in range(rows):
        who, where, other = choose(PEOPLE), choose(PLACES), choose(PEOPLE)
        context = f"{who} lives in {where}"
        known = {"answers": [{"text": where, "answer_start": context.index(where)}], "is_impossible": False}
        unknown = {"answers": [], "is_impossible": True}
        question = {"id": f"q{i}", "question": f"in {other}"} | (
            (known if who == other else unknown) if labeled else {}
        )
        paragraphs.append({"context": context, "qas": [question]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))


def test_questions(here, capsys):
    make_bert(here / "model", [*PEOPLE, *PLACES, "lives in is"], hidden_size=16, heads=2, max_length=32)
    for name, rows in (("train", 48), ("dev", 12)):
        write_questions(here / f"{name}.json", rows)
    write_questions(here / "new.json", 4, labeled=False)
    run_page("your-own-questions.md", here / "model", "--doc_stride", "4")
    found = read_results("runs/questions")
    assert [*found["headline"]] == ["eval_exact_match", "eval_f1"] and found["columns"] is None
    assert found["settings"]["null_score_diff_threshold"] == 0
    answers = json.loads((here / "runs/questions-new/custom_test_predict.json").read_text())
    assert [*answers] == ["q0", "q1", "q2", "q3"] and str(answers) in capsys.readouterr().out


def test_texts(here, capsys):
    texts = [text for text, _ in make_sentences(60, seed=1)]
    for name, lines in (("train", texts[:40]), ("dev", texts[40:50]), ("new", [*texts[50:], "", "the"])):
        (here / f"{name}.txt").write_text("\n".join(lines) + "\n")
    make_bert(here / "masked", texts, hidden_size=16, heads=2, max_length=32)
    tokenizer = AutoTokenizer.from_pretrained("masked")
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, **ends)
    ).save_pretrained("causal")
    tokenizer.save_pretrained("causal")
    run_page("your-own-texts.md", {"gpt2": "causal", "bert-base-cased": "masked"}, "--learning_rate", "1e-2")
    found, masked = read_results("runs/texts"), read_results("runs/masked")
    assert [*found["headline"]] == [*masked["headline"]] == ["eval_perplexity"]
    assert not found["settings"]["greater_is_better"] and found["best_checkpoint"]["metric"] == "perplexity"
    # By hand: blocks of 16 tokens, the first of which is [CLS]
    model = AutoModelForCausalLM.from_pretrained("runs/texts").eval()
    lines = (here / "new.txt").read_text().splitlines()
    tokens = [
        (place, token)
        for place, line in enumerate(lines)
        for token in tokenizer(line, add_special_tokens=False)["input_ids"]
    ]
    losses = {place: [] for place in range(len(lines))}
    for start in range(0, len(tokens), 15):
        block = torch.tensor([tokenizer.cls_token_id, *(token for _, token in tokens[start : start + 15])])
        chances = model(block[None]).logits[0].double().log_softmax(-1)
        for i, (place, token) in enumerate(tokens[start : start + 15]):
            losses[place].append(-chances[i, token].item())
    written = map(json.loads, (here / "runs/texts-new/custom_test_predict.jsonl").read_text().splitlines())
    expected = [np.exp(np.mean(each)) if each else None for each in losses.values()]
    assert [row["perplexity"] for row in written] == [one and pytest.approx(one, rel=1e-4) for one in expected]
    whole = np.exp(np.mean(sum(losses.values(), [])))
    assert read_results("runs/texts-new")["metrics"]["test_perplexity"] == pytest.approx(whole, rel=1e-4)
