"""The files of checkpoints on the tests' Hub, and what has come of them to the disk."""

import hashlib
import json

REPO = "ada/model"
CARD = (
    "---\ntags: [r-drop]\npipeline_tag: {task}\nr_drop: {{alpha: 2.5, num_passes: 3, version: 1.0}}\n---\n# A model\n"
)


def model_files(folder, model, processor=None, task="text-classification"):
    """Save a model with a card, and its processor if there is one; the files of the folder, by name."""
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(task=task))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without(files, *names):
    """All files but these."""
    return {name: content for name, content in files.items() if name not in names}


def changed(**changes):
    """What makes a config.json with these settings changed, of the files."""
    return lambda files: {"config.json": json.dumps({**json.loads(files["config.json"]), **changes})}


def below(folder):
    """Every file below a folder, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def whole(files):
    """What `below` says of a folder that has just these files."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
