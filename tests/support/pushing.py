"""Trainings that push to the tests' own Hub, and what has come there."""

from huggingface_hub import ModelCard, get_session

from support import tiny
from support.hub_files import REPO


def trainer_of(folder, **arguments):
    """A trainer that pushes at every epoch."""
    arguments = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "epoch", **arguments}
    return tiny.trainer(tiny.bert(), tiny.dataset(), folder / "run", eval_dataset=tiny.dataset(seed=3), **arguments)


def written(hub, revision="main"):
    """Files of the repository, as they were pushed."""
    return {name: content for name, content in hub.files(REPO, revision).items() if name != ".gitattributes"}


def pushed_card(hub):
    return ModelCard(hub.files(REPO)["README.md"].decode())


def valid(card, hub):
    """The server's word on a card."""
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"repoType": "model", "content": str(card)})
    assert answer.status_code == 200, answer.text
    return not answer.json()["errors"]


def scores_of(card):
    return {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
