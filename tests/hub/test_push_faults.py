"""push_checkpoint over a Hub with faults: the whole checkpoint once or nothing, and how to go on without secrets."""

import time
import traceback

import pytest

from rdrop_trainer.errors import HubError
from rdrop_trainer.hub import push_checkpoint
from rdrop_trainer.hub.client import connect, httpx, with_retries
from rdrop_trainer.hub.folder import read_checkpoint
from support.pushing import REPO, SENT, SHOWN, is_whole, state, written

# ---- That pass ----


LIMIT = {"status": 429, "headers": {"Retry-After": "41"}}
FAULTS = {
    "a refusal": [("fail", "commit", {"status": 503})],
    "a broken upload": [("drop", "upload", {"after": 1_000_000})],
    "a lost answer": [("lose_answer", "commit", {})],
    "a limit": [("fail", "commit", LIMIT)],
    "a limit of creations": [("fail", "create", LIMIT)],
    "a limit as the Hub says it": [("fail", "commit", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=41'}})],
    "a lost creation": [("lose_answer", "create", {})],
    "a conflict": [("fail", "commit", {"status": 409})],
    "everything once": [
        ("fail", route, {"status": 502})
        for route in "create info validate preupload batch upload verify commit".split()
    ],
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_that_pass(ada, trained, waits, case):
    before = state(trained)
    for fault, route, options in FAULTS[case]:
        getattr(ada, fault)(route, **options)
    commit = push_checkpoint(trained, REPO)
    assert is_whole(ada, trained) and state(trained) == before
    assert [c.title for c in ada.commits(REPO)] == ["Upload R-Drop checkpoint", "initial commit"]
    assert commit.oid == ada.commits(REPO)[0].sha
    assert waits and ("limit" not in case or 41 in waits)


@pytest.mark.parametrize("asked", ["\u00b3", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_that_makes_no_sense_is_no_reason_to_give_up(ada, trained, waits, asked):
    ada.fail("commit", status=429, headers={"Retry-After": asked})
    push_checkpoint(trained, REPO)
    assert waits == [1]


def test_a_commit_that_is_slower_than_its_answer_is_not_made_twice(ada, trained, monkeypatch):
    """A commit whose answer was lost arrives while the next try is under way, which must not make it again."""
    contents = read_checkpoint(trained).contents(REPO).items()
    client = type(connect())
    preupload, tries = client.preupload_lfs_files, []

    def late(self, *args, **kwargs):
        preupload(self, *args, **kwargs)
        tries.append(1)
        if len(tries) == 1:
            raise httpx.ReadError("lost")
        if len(tries) == 2:
            ada.repo(REPO, {name: c if isinstance(c, bytes) else c.read_bytes() for name, c in contents})

    monkeypatch.setattr(client, "preupload_lfs_files", late)
    push_checkpoint(trained, REPO)
    assert is_whole(ada, trained) and len(ada.commits(REPO)) == 2
    assert [request.status for request in ada.seen("commit")] == [412]


def test_somebody_elses_commit_in_between(ada, trained, monkeypatch):
    client = type(connect())
    create_commit, done = client.create_commit, []

    def create(self, *args, **kwargs):
        if not done:
            done.append(ada.repo(REPO, {"other.txt": "theirs"}))
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(client, "create_commit", create)
    push_checkpoint(trained, REPO)
    assert written(ada)["other.txt"] == b"theirs" and set(written(ada)) == {*SENT, *SHOWN, "other.txt"}


# ---- That stay ----


@pytest.mark.parametrize(
    ("fault", "route", "options", "said", "tries"),
    [
        ("fail", "commit", {"status": 503}, r"the Hub has a fault \(HTTP 503", 6),
        ("drop", "upload", {"after": 1000}, "the connection failed", None),
        ("drop", "commit", {}, "the connection failed", 6),
        ("fail", "commit", {"status": 403}, "this account may not do this there", 1),
        ("fail", "commit", {"status": 429, "headers": {"Retry-After": "9000"}}, "asks to wait", 1),
    ],
)
def test_faults_that_stay(ada, trained, fault, route, options, said, tries):
    before = state(trained)
    getattr(ada, fault)(route, times=None, **options)
    with pytest.raises(HubError, match=said) as error:
        push_checkpoint(trained, REPO, private=True)
    assert f"python -m rdrop_trainer.hub push {trained} {REPO} --private" in str(error.value)
    assert written(ada) == {} and state(trained) == before
    assert tries is None or len(ada.seen("commit")) == tries
    shown = "".join(traceback.format_exception(error.value))
    assert ada.url not in shown and "hf_ada" not in shown
    ada.faults.clear()
    push_checkpoint(trained, REPO, private=True)
    assert is_whole(ada, trained)


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [("hf_wrong", REPO, "hf auth login"), ("hf_eve", REPO, "may not do this"), (False, REPO, "hf auth login")],
)
def test_who_may_not_push(ada, trained, waits, token, repo, said):
    with pytest.raises(HubError, match=said) as error:
        push_checkpoint(trained, repo, token=token)
    assert waits == [] and "hf_" not in str(error.value).replace(str(trained), "")
    assert ("model", repo) not in ada.repos


def test_a_server_that_is_not_there(trained, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the connection failed"):
        push_checkpoint(trained, REPO, token="hf_ada")
    assert waits == [1, 2, 4], "out of reach within 10 s"


def test_a_push_that_is_interrupted_says_how_to_go_on(ada, trained, monkeypatch, caplog):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    ada.fail("commit", status=503)
    with pytest.raises(KeyboardInterrupt):
        push_checkpoint(trained, REPO)
    assert caplog.messages[-1].endswith(f"To go on: python -m rdrop_trainer.hub push {trained} {REPO}")
    assert written(ada) == {}


def test_a_token_that_the_server_repeats_is_not_shown(ada, trained):
    ada.fail("commit", status=403, message="no rights for hf_abcdefghijklmnopqrstuvwx there", times=None)
    with pytest.raises(HubError, match=r"no rights for \(a token\) there"):
        push_checkpoint(trained, REPO)


def test_patient_gives_up_on_what_does_not_pass(waits):
    calls = []

    def fails():
        calls.append(1)
        raise KeyError("ours")

    with pytest.raises(KeyError):
        with_retries(fails)
    assert len(calls) == 1 and waits == []
