"""Faults of the tests' Hub, and what its clients do about each."""

from pathlib import Path

import huggingface_hub as hf
import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
)

from support.hub_calls import WEIGHTS, add, status


def stubborn(call, *args, **kwargs):
    """A second call where huggingface_hub 1.x gives up on a connection that 2.x opens again."""
    try:
        return call(*args, **kwargs)
    except Exception:
        if int(hf.__version__.split(".")[0]) > 1:
            raise
        return call(*args, **kwargs)


# ---- Pushing ----


def test_a_refused_commit_is_refused_once(hub, api):
    api.create_repo("m")
    hub.fail("commit", status=503, headers={"Retry-After": "1"})
    assert status(add, api) == 503
    assert "a.txt" not in hub.files("ada/m")
    add(api)
    assert hub.files("ada/m")["a.txt"] == b"a"
    assert [one.status for one in hub.seen("commit")] == [503, 200]


@pytest.mark.parametrize("route", ["preupload", "batch", "upload", "verify"])
def test_the_client_retries_the_rest_of_a_push(hub, api, route):
    api.create_repo("m")
    hub.fail(route, status=503, times=2)
    add(api, "model.bin", WEIGHTS)
    assert [one.status for one in hub.seen(route)] == [503, 503, 200]


def test_a_dropped_upload(hub, api):
    api.create_repo("m")
    hub.drop("upload", after=50_000)
    stubborn(add, api, "model.bin", WEIGHTS)
    assert hub.files("ada/m")["model.bin"] == WEIGHTS
    assert [one.status for one in hub.seen("upload")] == [None, 200]


def test_a_lost_answer(hub, api):
    api.create_repo("m")
    hub.lose_answer("commit")
    with pytest.raises(Exception) as error:
        add(api)
    assert not isinstance(error.value, HfHubHTTPError)
    assert hub.files("ada/m")["a.txt"] == b"a" and hub.seen("commit")[0].status is None
    count = len(hub.commits("ada/m"))
    add(api)
    assert len(hub.commits("ada/m")) == count  # nothing to commit, and the client knows


# ---- Loading ----


def test_a_dropped_download(hub, api):
    hub.repo("ada/m", {"model.bin": WEIGHTS})
    hub.drop("resolve", after=30_000, method="GET")
    with pytest.raises(Exception, match="reset by peer"):  # the client gives up
        hf.hf_hub_download("ada/m", "model.bin")
    hub.drop("resolve", after=30_000, method="GET", hard=False)
    path = stubborn(hf.hf_hub_download, "ada/m", "model.bin")  # here it tries again
    assert Path(path).read_bytes() == WEIGHTS
    assert [one.status for one in hub.seen("resolve", "GET")] == [None, None, 200]


def test_a_short_download_is_noticed(hub, api):
    hub.repo("ada/m", {"model.bin": WEIGHTS})
    hub.truncate("model.bin", keep=100)
    with pytest.raises(OSError, match="Consistency check"):
        hf.hf_hub_download("ada/m", "model.bin")


def test_a_corrupt_download_is_not_noticed_by_the_client(hub, api):
    hub.repo("ada/m", {"a.bin": WEIGHTS, "b.bin": WEIGHTS[:-1]})
    hub.corrupt("a.bin")
    a, b = (Path(hf.hf_hub_download("ada/m", name)).read_bytes() for name in ("a.bin", "b.bin"))
    assert len(a) == len(WEIGHTS) and sum(x != y for x, y in zip(a, WEIGHTS, strict=True)) == 1
    assert b == WEIGHTS[:-1]
    assert Path(hf.hf_hub_download("ada/m", "a.bin", force_download=True)).read_bytes() == WEIGHTS


def test_false_headers(hub, api):
    hub.repo("ada/m", {"a.txt": "a"})
    hub.lie("X-Repo-Commit", "0" * 40)
    hub.lie("ETag", '"beef"', path="a.txt")
    path = Path(hf.hf_hub_download("ada/m", "a.txt"))
    assert path.parent.name == "0" * 40 and path.resolve().name == "beef"


def test_a_listing_with_a_path_that_leads_out(hub, api, tmp_path):
    hub.repo("ada/m", {"config.json": "{}"})
    hub.rename("config.json", "../../evil.json")
    assert "../../evil.json" in [one.rfilename for one in api.model_info("ada/m").siblings]
    assert "../../evil.json" in api.list_repo_files("ada/m")
    with pytest.raises(Exception):  # noqa: B017 (which error, differs by version)
        hf.snapshot_download("ada/m", local_dir=tmp_path / "in" / "here")
    assert not list(tmp_path.glob("**/evil.json"))


def test_faults_pick_their_requests(hub, api):
    hub.repo("ada/m", {"a.txt": "a", "b.txt": "b"})
    hub.fail("resolve", status=500, path="b.txt", method="HEAD", times=None)
    assert Path(hf.hf_hub_download("ada/m", "a.txt")).read_text() == "a"
    with pytest.raises(Exception, match="500|locate the file"):
        hf.hf_hub_download("ada/m", "b.txt")
    hub.fail("info", status=502, skip=1)
    assert api.model_info("ada/m").id == "ada/m"
    assert status(api.model_info, "ada/m") == 502
    hub.delay("info", 0.3)
    with pytest.raises(Exception, match="(?i)timed out"):
        api.model_info("ada/m", timeout=0.05)
