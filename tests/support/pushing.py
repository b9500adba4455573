"""Trainings that push to the tests' own Hub, and what has come there."""

from support import tiny
from support.hub_files import REPO


def trainer_of(folder, **arguments):
    """A trainer that pushes at every epoch."""
    arguments = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "epoch", **arguments}
    return tiny.trainer(tiny.bert(), tiny.dataset(), folder / "run", eval_dataset=tiny.dataset(seed=3), **arguments)


def written(hub, revision="main"):
    """Files of the repository, as they were pushed."""
    return {name: content for name, content in hub.files(REPO, revision).items() if name != ".gitattributes"}
