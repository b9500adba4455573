"""Trainings that push to the tests' own Hub, and what has come there."""

import hashlib
import json

from huggingface_hub import ModelCard, get_session

from support import tiny
from support.hub_files import REPO


def trainer_of(folder, **arguments):
    """A trainer that pushes at every epoch."""
    arguments = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "epoch", **arguments}
    return tiny.trainer(tiny.bert(), tiny.dataset(), folder / "run", eval_dataset=tiny.dataset(seed=3), **arguments)


def written(hub, repo=REPO, revision="main"):
    """The files of a repository but the one that the Hub makes itself."""
    return {name: content for name, content in hub.files(repo, revision).items() if name != ".gitattributes"}


# What is sent of the folder that a training leaves; the second of it because the card shows it
SENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SHOWN = {"seen.png", "linked/report.md"}


def leave_training(folder):
    """Write what a training leaves: a model, 5 MB of it, and much that nobody else should get."""
    tiny.bert(vocab_size=80_000).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size > 5_000_000
    secret = ("training_args.bin", "optimizer.pt", "checkpoint-5/optimizer.pt", "trainer_state.json")
    others = dict.fromkeys(secret, "hf_secretsecretsecretsecret")
    others["all_results.json"] = json.dumps({"settings": {"data_dir": "/home/ada"}})
    others |= {"train.csv": "private data", "report.md": "of a comparison", "linked/report.md": "of another"}
    others |= {"seen.png": "PNG seen", "unseen.png": "PNG unseen"}
    others["README.md"] = (
        "---\nlibrary_name: transformers\ntags: [r-drop]\n---\n\n# Mine\n\n![a](seen.png) [report](linked/report.md)\n"
    )
    for name, content in others.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder


def is_whole(hub, folder, revision="main"):
    """Whether the repository has these files, as they are in the folder."""
    files = written(hub, revision=revision)
    same = all(files[name] == (folder / name).read_bytes() for name in files if name != "README.md")
    return set(files) == {*SENT, *SHOWN} and same


def state(folder):
    """Every file below a folder, by its hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pushed_card(hub):
    return ModelCard(hub.files(REPO)["README.md"].decode())


def valid(card, hub):
    """The server's word on a card."""
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"repoType": "model", "content": str(card)})
    assert answer.status_code == 200, answer.text
    return not answer.json()["errors"]


def scores_of(card):
    return {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
