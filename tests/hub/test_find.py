"""list_checkpoints with the real client against a local Hub, whose cards anybody wrote; and the command line."""

from dataclasses import replace

import pytest

from rdrop_trainer import RDropArguments
from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import CheckpointRecord, list_checkpoints
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.find import Result

CARD = """---
tags: [r-drop, text-classification, {task}]
base_model: google-bert/bert-base-cased
pipeline_tag: text-classification
r_drop: {{alpha: {alpha}, num_passes: 3, dropout: {{hidden_dropout_prob: 0.1}}, version: 1.2.0}}
model-index:
- name: m
  results:
  - task: {{type: text-classification}}
    dataset: {{type: nyu-mll/glue, name: GLUE {task}, config: {task}, split: validation}}
    metrics: [{{type: f1, name: macro_f1, value: 0.9}}, {{type: accuracy, value: 0.8}}]
---
# A model
"""


def card(alpha=2.0, task="mrpc"):
    return CARD.format(alpha=alpha, task=task)


def put(hub, name, text, **options):
    return hub.repo(name, {"README.md": text}, **options)


def names(records):
    return {record.repo_id for record in records}


# ---- What is found ----


def test_a_record_tells_what_the_card_tells(hub):
    put(hub, "ada/m", card())
    put(hub, "ada/other", card().replace("r-drop", "bert"))
    (record,) = list_checkpoints()
    assert record == CheckpointRecord(
        repo_id="ada/m",
        task="text-classification",
        base_model="google-bert/bert-base-cased",
        settings=RDropArguments(rdrop_alpha=2.0, rdrop_num_passes=3),
        results=(Result("macro_f1", 0.9), Result("accuracy", 0.8)),
    )
    assert record.alpha == 2.0 and len(hub.requests) == 1, "the Hub tells what is in the cards"


def test_filters(hub):
    put(hub, "ada/mrpc", card())
    put(hub, "ada/rte", card(task="rte", alpha=4))
    put(hub, "eve/mrpc", card().replace("google-bert/bert-base-cased", "eve/base"))
    assert names(list_checkpoints()) == {"ada/mrpc", "ada/rte", "eve/mrpc"}
    assert names(list_checkpoints(task="text-classification")) == {"ada/mrpc", "ada/rte", "eve/mrpc"}
    assert names(list_checkpoints("mrpc")) == {"ada/mrpc", "eve/mrpc"}
    assert names(list_checkpoints(base_model="eve/base")) == {"eve/mrpc"}
    assert names(list_checkpoints(author="ada")) == {"ada/mrpc", "ada/rte"}
    assert names(list_checkpoints(alpha=4.0)) == {"ada/rte"} and list_checkpoints(alpha=3) == []
    assert names(list_checkpoints("mrpc", "google-bert/bert-base-cased", "ada", alpha=2)) == {"ada/mrpc"}
    assert list_checkpoints("summarization") == []


def test_all_pages_and_one_that_fails(hub):
    for i in range(8):
        put(hub, f"ada/m{i}", card(alpha=i))
    hub.page_size = 3
    hub.fail("list", status=429, skip=1)
    hub.drop("list", skip=1)
    found = list_checkpoints()
    assert {record.repo_id: record.alpha for record in found} == {f"ada/m{i}": i for i in range(8)}


def test_private_ones(hub):
    hub.user("ada")
    put(hub, "ada/secret", card(), private=True)
    assert list_checkpoints() == []
    assert names(list_checkpoints(token="hf_ada")) == {"ada/secret"}


# ---- Cards that are not as they should be ----

BAD = {
    "no settings": (card().replace("r_drop:", "other:"), {"settings": None, "alpha": None}),
    "settings out of range": (card(alpha=-1), {"settings": None}),
    "settings of another type": (card(alpha="[1]"), {"settings": None}),
    "settings too large": (card(alpha=10**400), {"settings": None}),
    "settings nested too deep": (
        card().replace("r_drop: {", f'r_drop: {{heads: "{"[" * 10**5}", '),
        {"settings": None},
    ),
    "settings that are a text": (card().replace("r_drop: {", "r_drop: text\nx: {"), {"settings": None}),
    "a score that is none": (card().replace("0.9", ".nan"), {"results": 1}),
    "a score that is a text": (card().replace("0.9", "high"), {"results": 1}),
    "a score too large": (card().replace("0.9", str(10**400)), {"results": 1}),
    "a metric that is a number": (card().replace("metrics: [", "metrics: [7, "), {"results": 2}),
    "results that are a text": (card().replace("  results:", "  results: all good\n  other:"), {"results": 0}),
    "an index that is a text": (card().replace("model-index:", "model-index: good\nother:"), {"results": 0}),
    "two base models": (card().replace("google-bert/bert-base-cased", "[a/b, c/d]"), {"base_model": "a/b"}),
    "no base model": (card().replace("google-bert/bert-base-cased", "[{a: b}]"), {"base_model": None}),
    "a name that the client uses": (card().replace("tags:", "ignore_metadata_errors: 1\ntags:"), {"alpha": 2.0}),
    "results of another form": (card().replace("tags:", "eval_results: [1]\ntags:"), {"alpha": 2.0}),
    "escapes": (card().replace("google-bert/bert-base-cased", r'"\e[2J\a1"'), {"base_model": "?[2J?1"}),
}


def test_a_bad_card_costs_no_more_than_it_holds(hub, capsys):
    for place, (text, _) in enumerate(BAD.values()):
        put(hub, f"ada/bad{place}", text)
    put(hub, "ada/good", card().replace("macro_f1", r'"\e]0;x\u202e"'))
    found = {record.repo_id: record for record in list_checkpoints()}
    assert found["ada/good"].alpha == 2 and len(found["ada/good"].results) == 2
    for place, (case, (_, expected)) in enumerate(BAD.items()):
        bad = found[f"ada/bad{place}"]
        told = {name: len(bad.results) if name == "results" else getattr(bad, name) for name in expected}
        assert told == expected, case
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert not [c for c in out if not c.isprintable() and c != "\n"] and max(map(len, out.splitlines())) <= 100


def test_a_listing_of_odd_facts(hub):
    put(hub, "ada/m", card())
    odd = [{"id": "ada/no-card"}, {"id": "ada/text", "cardData": "text"}, {"cardData": [1]}]
    hub.lie("X-Any", "any", route="list").change = lambda answer: replace(answer, body=[*answer.body, *odd])
    found = list_checkpoints()
    assert [record.repo_id for record in found] == ["ada/m", "ada/no-card", "ada/text", ""]
    assert [record.alpha for record in found] == [2.0, None, None, None]


# ---- Failures, and the command line ----


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("fail", {"status": 503}, "the Hub has a fault"),
        ("drop", {}, "the connection failed"),
        ("fail", {"status": 403}, "this account may not"),
    ],
)
def test_a_hub_that_fails(hub, fault, options, said, capsys):
    getattr(hub, fault)("*", times=None, **options)
    with pytest.raises(HubError, match=said) as error:
        list_checkpoints()
    assert "http" not in str(error.value) and "\n" not in str(error.value)
    assert main(["list"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("rdrop_trainer.hub: error: the Hub's list could not be")


def test_wrong_input_is_not_sent(hub):
    for options in ({"base_model": "../x"}, {"token": "a\nb"}):
        with pytest.raises(InputError):
            list_checkpoints(**options)
    assert hub.requests == []


def test_the_list_as_a_table(hub, capsys):
    put(hub, "ada/m", card())
    put(hub, f"ada/{'long' * 20}", card(1.5, task="rte" * 30))
    assert main(["list", "--author", "ada"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 100
    row = next(line for line in lines if "ada/m " in line)
    assert row.split()[:3] == ["2", "text-classification", "ada/m"] and "macro_f1 0.9" in row
    assert main(["list", "--alpha", "1.5"]) == 0
    assert "ada/m " not in capsys.readouterr().out
    assert main(["list", "--task", "summarization"]) == 0
    assert capsys.readouterr() == ("", "none found\n")


def test_exit_codes(hub, capsys, monkeypatch):
    assert main(["download", "ada/none", "--token", "hf_secret"]) == 3 and main(["download", "no name"]) == 2
    assert main(["list", "--base_model", "../x"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and "hf_secret" not in out.err and "Traceback" not in out.err
    for wrong in ([], ["steal"], ["list", "--alpha", "x"], ["download"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2

    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("rdrop_trainer.hub.find.list_checkpoints", interrupt)
    assert main(["list"]) == 130
