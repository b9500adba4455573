"""--load_in_4bit: what is trained whole, what comes back, and what the card says. Runs on the CPU, too."""

import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BitsAndBytesConfig,
)

from rdrop_trainer.hub import load_checkpoint
from support.runs import results, run, write_csv

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
LABELS = ("bad", "good", "mixed")
FILES = "--train_file a.csv --validation_file a.csv --use_peft --lora_r 4 --learning_rate 1e-2 --max_steps 2"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture
def here(here):
    write_csv(here / "a.csv", labels=LABELS)
    return here


def stored(cls, source, folder, **options):
    """A copy of a model, of another class or in few bits."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    cls.from_pretrained(source, **options).save_pretrained(folder)
    return folder


def test_an_adapter_over_4_bits_is_scored_as_it_was_trained(model, here):
    """Missing weights below it and modules that are asked for are trained whole; the card says how to load it so."""
    masked = stored(BertForMaskedLM, model, here / "masked")
    assert run(masked, FILES, "--load_in_4bit --lora_modules_to_save key --output_dir out") == 0
    saved = {name.removeprefix("base_model.model.") for name in load_file(here / "out" / "adapter_model.safetensors")}
    assert {"bert.pooler.dense.weight", "bert.encoder.layer.0.attention.self.key.weight", "classifier.weight"} <= saved
    score = "--validation_file a.csv --do_eval --use_peft"
    assert run("out", score, "--load_in_4bit --output_dir again") == 0
    assert results("again")["metrics"]["eval_loss"] == results("out")["metrics"]["eval_loss"]
    card = ModelCard.load(here / "out" / "README.md")
    assert card.data.to_dict()["r_drop"]["base_weights"] == "4 bits (nf4, computed in float32)"
    assert (
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")'
        in card.text
    )
    kinds = []
    few = {"quantization_config": BitsAndBytesConfig(**NF4)}
    for options in ({}, {**few, "dtype": "auto"}, {**few, "dtype": torch.bfloat16}):  # norms train in float32 there
        loaded = load_checkpoint("out", **options)
        kinds.append({p.dtype for p in loaded.model.parameters()})
        assert loaded.model(**loaded.processing_class("a good film", return_tensors="pt")).logits.isfinite().all()
    assert kinds == [{torch.float32}, *[{torch.float32, torch.uint8}] * 2]


def test_a_head_for_other_labels_is_a_new_one(model, here):
    names = {0: "x", 1: "y", 2: "z"}
    base = stored(BertForSequenceClassification, model, here / "classifier", num_labels=3, id2label=names)
    assert run(base, FILES, "--load_in_4bit --output_dir out --learning_rate 1e-9") == 0
    old = AutoModelForSequenceClassification.from_pretrained(base).classifier.weight
    new = load_file(here / "out" / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert (old - new).abs().max() > 1e-3


def test_bases_that_are_stored_in_few_bits(model, here, capsys):
    """With a whole head they train and load, however asked for; a head in few bits is refused in a sentence."""
    whole = stored(BertForSequenceClassification, model, here / "whole", num_labels=3)
    quantization = BitsAndBytesConfig(**NF4, llm_int8_skip_modules=["classifier"])
    base = stored(BertForSequenceClassification, whole, here / "base", quantization_config=quantization)
    assert run(base, FILES, "--output_dir out") == 0
    for options in ({}, {"dtype": "auto"}, {"quantization_config": BitsAndBytesConfig(**NF4)}):
        assert torch.uint8 in {p.dtype for p in load_checkpoint("out", **options).model.parameters()}
    for bits in ("4", "8"):
        few = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        base = stored(BertForSequenceClassification, whole, here / bits, quantization_config=few)
        assert run(base, FILES, f"--output_dir out{bits}") == 2
        assert "stored in few bits: then the head must be whole" in capsys.readouterr().err
