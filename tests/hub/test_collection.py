"""Collections: found again by their title, given what they lack, and nothing else."""

import pytest

from rdrop_trainer.errors import HubError
from rdrop_trainer.hub.collection import keep_collection


def notes(hub):
    (collection,) = hub.collections.values()
    return {item["id"]: item.get("note", {}).get("text") for item in collection["items"]}


def changes(hub):
    return [(seen.method, seen.status) for seen in hub.requests if seen.route.startswith("collection")]


@pytest.fixture
def models(ada):
    for name in ("ada/a", "ada/b"):
        ada.repo(name)
    return ada


def test_a_collection_is_made_once_and_gets_what_it_lacks(models):
    kept = keep_collection("My models", "ada", {"ada/a": "one"}, description="d" * 200, private=True)
    assert kept.url.startswith(f"{models.url}/collections/ada/my-models-")
    (collection,) = models.collections.values()
    assert collection["private"] and collection["description"] == "d" * 150
    models.requests.clear()
    keep_collection("My models", "ada", {"ada/a": "one"}, description="d" * 200)
    assert changes(models) == [("POST", 409), ("GET", 200)]
    keep_collection("My models", "ada", {"ada/b": "n" * 600, "ada/a": "two"}, description="new")
    assert notes(models) == {"ada/a": "two", "ada/b": "n" * 500} and collection["description"] == "new"
    keep_collection("My models", "ada", {"ada/b": "n" * 600})
    assert notes(models)["ada/a"] == "two" and collection["description"] == "new"
    assert keep_collection("Others", "ada", {}).slug != kept.slug and len(models.collections) == 2


@pytest.mark.parametrize("lost", ["fail", "lose_answer"])
def test_what_fails_for_a_while_is_tried_again(lost, models):
    for route in ("collection", "collection-item"):
        getattr(models, lost)(route)
    keep_collection("My models", "ada", {"ada/a": "one"})
    assert notes(models) == {"ada/a": "one"}


def test_what_is_refused_is_one_sentence(models):
    for namespace, notes_, said in (
        ("eve", {}, "this account may not do this there"),
        ("ada", {"ada/none": ""}, "404"),
    ):
        with pytest.raises(HubError, match=f"the collection 'My models' of {namespace} is not complete: .*{said}"):
            keep_collection("My models", namespace, notes_)
