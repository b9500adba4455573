"""Adapters: loaded over the model below them, with the labels that they name, or refused with a sentence."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import load_checkpoint
from rdrop_trainer.hub.adapter import Adapter
from support import tiny
from support.hub_files import REPO, changed, model_files


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter with a head of 3 labels, over a model with one of 4; its files and its logits."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    model_files(folder / "base", tiny.bert(), tiny.tokenizer())
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    settings = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, base_model_name_or_path=REPO)
    model = peft.get_peft_model(model, settings).eval()
    model.peft_config["default"].base_model_name_or_path = REPO
    logits = model(torch.tensor([[3, 4, 5]])).logits
    return model_files(folder / "adapter", model, tiny.tokenizer()), logits


def test_an_adapter_comes_with_the_model_below_it(public, adapter, tmp_path):
    files, logits = adapter
    public.repo("ada/adapter", files)
    loaded = load_checkpoint("ada/adapter")
    assert type(loaded.model).__name__ == "PeftModelForSequenceClassification" and not loaded.model.training
    torch.testing.assert_close(loaded.model(torch.tensor([[3, 4, 5]])).logits, logits)
    assert loaded.processing_class("w3")["input_ids"] == [3] and loaded.settings.rdrop_alpha == 2.5
    public.corrupt(f"{REPO}/resolve", times=None)
    for blob in (Path(os.environ["HF_HOME"]) / "hub" / "models--ada--model" / "blobs").iterdir():
        blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(HubError, match="has another hash than the server states"):
        load_checkpoint("ada/adapter")


def below_is_pickled(hub, files):
    hub.repos.clear()
    hub.repo(REPO, {"config.json": "{}", "pytorch_model.bin": "x"})


def below_is_code(hub, files):
    hub.repo(REPO, changed(auto_map={"AutoModel": "own.Own"})(hub.files(REPO)))


def is_pickled(hub, files):
    files["adapter_model.bin"] = files.pop("adapter_model.safetensors")


def adapter_config(**content):
    return lambda hub, files: files.update({"adapter_config.json": json.dumps(content)})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (below_is_pickled, "ada/model at main: holds pytorch_model.bin but no safetensors weights"),
        (lambda hub, files: hub.corrupt(f"{REPO}/resolve", times=None), "has another hash than the server states"),
        (below_is_code, "asks for code from the Hub"),
        (
            adapter_config(task_type="SEQ_CLS", base_model_name_or_path="/"),
            "is an adapter of the model in /, which is not there",
        ),
        (adapter_config(task_type="SEQ_CLS"), "does not name the model that it is an adapter of"),
        (is_pickled, "no safetensors weights"),
        (lambda _, files: files.update({"adapter_model.safetensors": b"x" * 99}), "_model.safetensors is damaged"),
    ],
)
def test_adapters_that_are_not_loaded(public, adapter, harm, said):
    files = dict(adapter[0])
    harm(public, files)
    public.repo("ada/adapter", files)
    with pytest.raises((InputError, HubError), match=said):
        load_checkpoint("ada/adapter")


NAMES = {str(i): f"name {i}" for i in range(12)}


@pytest.mark.parametrize(
    "known, expected",
    [
        ({"id2label": dict(sorted(NAMES.items())), "pad_token_id": 7}, list(NAMES.values())),  # as JSON is written
        ({"id2label": {"0": "a", "2": "b"}, "pad_token_id": "x"}, None),
        ({"id2label": {"0": "a", "1": ["b"]}, "pad_token_id": True}, None),
        ({"id2label": ["a", "b"]}, None),
        ("text", None),
        (None, None),
    ],
)
def test_the_labels_that_an_adapter_names(known, expected, tmp_path):
    found = Adapter(tmp_path, REPO, None, None, {"score.weight": [3, 8]}, {"auto_mapping": known}).model_arguments
    if expected is None:
        assert found == {"num_labels": 3, "ignore_mismatched_sizes": True}
    else:
        assert found["num_labels"] == 12 and found["pad_token_id"] == 7
        assert found["id2label"] == dict(enumerate(expected)) and found["label2id"]["name 11"] == 11


def test_an_adapter_without_peft(public, adapter, monkeypatch):
    public.repo("ada/adapter", adapter[0])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="ada/adapter: is an adapter; pip install peft to load it"):
        load_checkpoint("ada/adapter")
