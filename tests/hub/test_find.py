"""list_checkpoints and show_checkpoint with the real client against a local Hub, whose cards anybody wrote."""

import json
import time
from dataclasses import replace

import pytest

from rdrop_trainer import RDropArguments
from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import CheckpointRecord, list_checkpoints
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.find import Result, show_checkpoint

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
    commit = put(hub, "ada/m", card()).resolve("main")
    put(hub, "ada/other", card().replace("r-drop", "bert"))
    (record,) = list_checkpoints()
    assert record == CheckpointRecord(
        repo_id="ada/m",
        task="text-classification",
        base_model="google-bert/bert-base-cased",
        settings=RDropArguments(rdrop_alpha=2.0, rdrop_num_passes=3),
        results=(
            Result("macro_f1", 0.9, "GLUE mrpc", "mrpc", "validation"),
            Result("accuracy", 0.8, "GLUE mrpc", "mrpc", "validation"),
        ),
        dropout={"hidden_dropout_prob": 0.1},
        version="1.2.0",
        revision=commit.sha,
        last_modified=record.last_modified,
        downloads=0,
        private=False,
    )
    assert record.alpha == 2.0 and record.last_modified.year >= 2024
    assert show_checkpoint("ada/m") == record
    assert len(hub.seen("resolve")) == 0, "the Hub tells what is in the cards"


def test_filters(hub):
    put(hub, "ada/mrpc", card())
    put(hub, "ada/rte", card(task="rte"))
    put(hub, "eve/mrpc", card().replace("google-bert/bert-base-cased", "eve/base"))
    assert names(list_checkpoints()) == {"ada/mrpc", "ada/rte", "eve/mrpc"}
    assert names(list_checkpoints(task="text-classification")) == {"ada/mrpc", "ada/rte", "eve/mrpc"}
    assert names(list_checkpoints("mrpc")) == {"ada/mrpc", "eve/mrpc"}
    assert names(list_checkpoints(base_model="eve/base")) == {"eve/mrpc"}
    assert names(list_checkpoints(author="ada")) == {"ada/mrpc", "ada/rte"}
    assert names(list_checkpoints("mrpc", "google-bert/bert-base-cased", "ada")) == {"ada/mrpc"}
    assert list_checkpoints("summarization") == []


def test_all_pages(hub):
    for i in range(11):
        put(hub, f"ada/m{i}", card(alpha=i))
    hub.page_size = 3
    found = list_checkpoints()
    assert len(hub.seen("list")) == 4
    assert {record.repo_id: record.alpha for record in found} == {f"ada/m{i}": i for i in range(11)}
    assert len(list_checkpoints(limit=5)) == 5
    assert names(list_checkpoints(limit=5)) == names(found[:5])


@pytest.mark.parametrize("skip", [0, 2])
def test_a_page_that_fails_is_asked_for_again(hub, skip):
    for i in range(8):
        put(hub, f"ada/m{i}", card())
    hub.page_size = 3
    hub.fail("list", status=429, skip=skip)
    hub.drop("list", skip=skip)
    assert len(list_checkpoints()) == 8


def test_private_ones(hub):
    hub.user("ada")
    put(hub, "ada/secret", card(), private=True)
    assert list_checkpoints() == []
    (record,) = list_checkpoints(token="hf_ada")
    assert record.private and record.alpha == 2
    assert show_checkpoint("ada/secret", token="hf_ada") == record
    hub.user("eve")
    refusals = {None: "hf auth login", "hf_eve": "no such repository", "hf_wrong": "token is missing, wr"}
    for token, said in refusals.items():
        with pytest.raises(HubError, match=said) as error:
            show_checkpoint("ada/secret", token=token)
        assert str(token) not in str(error.value)


def test_revisions(hub):
    old = put(hub, "ada/m", card(1)).resolve("main").sha
    put(hub, "ada/m", card(5))
    assert show_checkpoint("ada/m").alpha == 5 and show_checkpoint("ada/m", old).alpha == 1
    assert show_checkpoint("ada/m", old).revision == old
    with pytest.raises(HubError, match="ada/m at v9 cannot be shown: no such repository, revision") as error:
        show_checkpoint("ada/m", "v9")
    assert "\n" not in str(error.value)


# ---- Cards that are not as they should be ----

BAD = {
    "no settings": (card().replace("r_drop:", "other:"), {"settings": None, "version": None}),
    "settings out of range": (card(alpha=-1), {"settings": None}),
    "settings of another type": (card(alpha="[1]"), {"settings": None}),
    "settings too large": (card(alpha=10**400), {"settings": None}),
    "settings that are a text": (card().replace("r_drop: {", "r_drop: text\nx: {"), {"settings": None, "dropout": {}}),
    "a score that is none": (card().replace("0.9", ".nan"), {"results": 1}),
    "a score that is a text": (card().replace("0.9", "high"), {"results": 1}),
    "a score too large": (card().replace("0.9", str(10**400)), {"results": 1}),
    "a metric that is a number": (card().replace("metrics: [", "metrics: [7, "), {"results": 2}),
    "results that are a text": (card().replace("  results:", "  results: all good\n  other:"), {"results": 0}),
    "an index that is a text": (card().replace("model-index:", "model-index: good\nother:"), {"results": 0}),
    "data that is a list": (card().replace("dataset: {", "dataset: [1]\n    x: {"), {"results": 2}),
    "two base models": (card().replace("google-bert/bert-base-cased", "[a/b, c/d]"), {"base_model": "a/b"}),
    "no base model": (card().replace("google-bert/bert-base-cased", "[{a: b}]"), {"base_model": None}),
    "a version that is a number": (card().replace("1.2.0", "1.5"), {"version": "1.5"}),
    "a name that the client uses": (card().replace("tags:", "ignore_metadata_errors: 1\ntags:"), {"alpha": 2.0}),
    "results of another form": (card().replace("tags:", "eval_results: [1]\ntags:"), {"alpha": 2.0}),
    "escapes": (card().replace("1.2.0", r'"\e[2J\a1"').replace("GLUE mrpc", r'"\e]0;x\u202e"'), {"version": "?[2J?1"}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_card_costs_no_more_than_it_holds(hub, case, capsys):
    text, expected = BAD[case]
    put(hub, "ada/bad", text)
    put(hub, "ada/good", card())
    found = {record.repo_id: record for record in list_checkpoints()}
    assert found["ada/good"].alpha == 2 and len(found["ada/good"].results) == 2
    bad = found["ada/bad"]
    for name, value in expected.items():
        told = getattr(bad, name)
        assert (len(told) if name == "results" else told) == value, name
    assert show_checkpoint("ada/bad") == bad
    assert main(["list"]) == main(["show", "ada/bad"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\a" not in out and "\u202e" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert main(["list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def serve(hub, route, change):
    """Other answers than the Hub's."""
    hub.lie("X-Any", "any", route=route).change = change


def listed_without_cards(hub, text):
    """A listing that has tags but no cards, so that each is read."""
    serve(hub, "list", lambda answer: replace(answer, body=[{**facts, "cardData": None} for facts in answer.body]))
    return put(hub, "ada/m", text)


def test_cards_that_a_listing_lacks_are_read(hub):
    listed_without_cards(hub, card(3))
    (record,) = list_checkpoints()
    assert record.alpha == 3 and len(record.results) == 2 and record.base_model == "google-bert/bert-base-cased"
    assert record == show_checkpoint("ada/m")


# Ten lists of ten of the one before: 10^10 entries in a few hundred bytes
BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10 if i else ['x'])}]" for i in range(10))
UNREADABLE = {
    "no metadata": "# A model",
    "broken YAML": card().replace("r_drop: {", "r_drop: {{"),
    "a list": "---\n- 1\n---\n",
    "another encoding": card().encode("utf-16"),
    "large": card() + " " * 1_000_000,
    "repeated by reference": f"---\n{BOMB}\nbase_model: *a9\npipeline_tag: *a9\n"
    "r_drop: {alpha: *a9, version: *a9, dropout: {a: *a9}}\nmodel-index: *a9\n---\n",
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_card_that_cannot_be_read(hub, case):
    """The Hub lists the repository by the card that was, and serves the one that is."""
    repo = listed_without_cards(hub, card())
    text = UNREADABLE[case]
    file = replace(repo.resolve("main").tree["README.md"], content=text if isinstance(text, bytes) else text.encode())
    size = len(file.content)
    serve(hub, "resolve", lambda answer: replace(answer, status=200, body=file.content))
    serve(hub, "paths-info", lambda answer: replace(answer, body=[{**facts, "size": size} for facts in answer.body]))
    started = time.monotonic()
    (record,) = list_checkpoints()
    assert time.monotonic() - started < 5
    assert record == CheckpointRecord(
        "ada/m",
        "text-classification",
        revision=repo.resolve("main").sha,
        last_modified=record.last_modified,
        downloads=0,
    )
    assert bool(hub.seen("resolve", "GET")) == (case != "large")


def test_a_card_with_a_billion_results(hub):
    def entries(name, key, inner):
        return f"{name}: [&{name} {{{key}: {inner}}}{f', *{name}' * 999}]"

    lines = [entries("a", "type", "f1, value: 1"), entries("b", "metrics", "[" + "*a, " * 1000 + "]")]
    text = "\n".join(["---", *lines, entries("model-index", "results", "[" + "*b, " * 1000 + "]"), "---", ""])
    listed_without_cards(hub, card())
    file = replace(hub.repos["model", "ada/m"].resolve("main").tree["README.md"], content=text.encode())
    serve(hub, "resolve", lambda answer: replace(answer, body=file.content))
    serve(hub, "paths-info", lambda answer: replace(answer, body=[{**one, "size": len(text)} for one in answer.body]))
    (record,) = list_checkpoints()
    assert record.results == (Result("f1", 1.0, "unknown", None, None),) * 100


def test_a_card_that_the_hub_does_not_give(hub, caplog):
    listed_without_cards(hub, card())
    hub.fail("resolve", status=403, times=None)
    (record,) = list_checkpoints()
    assert record.repo_id == "ada/m" and record.alpha is None and record.revision
    assert "the card of ada/m could not be read: this account may not" in caplog.text


def test_a_name_that_is_none_is_left_out(hub, caplog):
    put(hub, "ada/m", card())
    put(hub, "ada/../../etc", card())
    assert names(list_checkpoints()) == {"ada/m"}
    assert "left out" in caplog.text


# ---- Failures ----


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
    for call in (list_checkpoints, lambda: show_checkpoint("ada/m")):
        with pytest.raises(HubError, match=said) as error:
            call()
        assert "http" not in str(error.value) and "\n" not in str(error.value)
    assert main(["list"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("rdrop_trainer.hub: error: the Hub's list could not be")


def test_wrong_input_is_not_sent(hub):
    for options in ({"limit": 0}, {"base_model": "../x"}, {"token": "a\nb"}):
        with pytest.raises(InputError):
            list_checkpoints(**options)
    for name in ("../x", "m"):
        with pytest.raises(InputError):
            show_checkpoint(name)
    assert hub.requests == []


# ---- The command line ----


def test_the_list_as_a_table(hub, capsys):
    put(hub, "ada/m", card())
    put(hub, f"ada/{'long' * 20}", card(1.5, task="rte" * 30))
    assert main(["list", "--author", "ada"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 100
    row = next(line for line in lines if "ada/m " in line)
    assert row.split()[:3] == ["2", "text-classification", "ada/m"] and "macro_f1 0.9" in row
    assert main(["list", "--task", "summarization"]) == 0
    assert capsys.readouterr() == ("", "none found\n")


def test_the_list_and_a_record_as_json(hub, capsys):
    put(hub, "ada/m", card())
    assert main(["list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert main(["show", "ada/m", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == listed
    assert shown["alpha"] == 2 and shown["settings"]["rdrop_num_passes"] == 3
    assert shown["results"][0] == Result("macro_f1", 0.9, "GLUE mrpc", "mrpc", "validation")._asdict()


def test_show(hub, capsys):
    put(hub, "ada/m", card())
    assert main(["show", "ada/m"]) == 0
    out = capsys.readouterr().out
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert shown["alpha"] == "2.0" and shown["num_passes"] == "3" and shown["version"] == "1.2.0"
    assert shown["dropout"] == "hidden_dropout_prob 0.1" and shown["macro_f1"].startswith("0.9000")
    assert "fused_head" not in shown, "a card does not tell it"


def test_exit_codes(hub, capsys, monkeypatch):
    assert main(["show", "ada/none"]) == 3 and main(["show", "no name"]) == 2
    hub.user("ada", "hf_secret")
    assert main(["show", "ada/none", "--token", "hf_secret"]) == 3
    assert main(["list", "--limit", "0"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and "hf_secret" not in out.err and "Traceback" not in out.err
    for wrong in ([], ["steal"], ["list", "--limit", "x"], ["show"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2

    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("rdrop_trainer.hub.find.list_checkpoints", interrupt)
    assert main(["list"]) == 130


@pytest.mark.parametrize("command", ["push", "list", "show", "download"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "--token" in capsys.readouterr().out
