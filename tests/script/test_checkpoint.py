"""What is loaded to be trained: the type of the weights, heads for other labels, positions, and what is kept of it."""

import logging

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
)

from rdrop_trainer import trainer
from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.tasks import get_task
from rdrop_trainer.script.adapter import quantization_of
from rdrop_trainer.script.arguments import ModelArguments
from rdrop_trainer.script.checkpoint import load_checkpoint, max_positions
from rdrop_trainer.script.cost import peak_memory
from support.runs import run, write_csv, write_json


@pytest.fixture
def half(model, tmp_path):
    """The model, stored in half precision, with a head for three labels of its own."""
    config = AutoConfig.from_pretrained(model, num_labels=3)
    stored = AutoModelForSequenceClassification.from_pretrained(model, config=config).bfloat16()
    stored.save_pretrained(tmp_path / "half")
    for path in model.glob("*token*"):
        (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "half"


@pytest.mark.parametrize(
    "flags, dtype", [("", torch.float32), ("--bf16", torch.float32), ("--dtype auto", torch.bfloat16)]
)
def test_checkpoints_in_half_precision_are_trained_in_float32(flags, dtype, half, here, caplog):
    """At 2e-5 most weights in bfloat16 would never change."""
    logging.getLogger("transformers").propagate = True
    trainer.logger.warning_once.cache_clear()
    write_csv(here / "a.csv")
    assert run(half, f"--train_file a.csv --do_train --learning_rate 2e-5 --output_dir out {flags}") == 0
    before = AutoModelForSequenceClassification.from_pretrained(half, num_labels=2, ignore_mismatched_sizes=True)
    after = AutoModelForSequenceClassification.from_pretrained(here / "out")
    assert after.dtype == dtype
    name = "bert.encoder.layer.0.attention.self.query.weight"
    kept = (before.get_parameter(name).float() == after.get_parameter(name).float()).float().mean()
    assert kept < 0.05 if dtype == torch.float32 else kept > 0.5
    assert any("Trainable weights are in torch.bfloat16" in m for m in caplog.messages) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("task", ["mnli", "stsb", "mrpc"])
def test_a_head_that_is_said_to_be_replaced_is_replaced(task, half, caplog):
    """Also one with as many labels, of other names (three of natural language inference for three stars, say)."""
    stored = AutoModelForSequenceClassification.from_pretrained(half, dtype=torch.float32)
    names = {0: "one star", 1: "two stars", 2: "three stars"}
    stored.config.id2label, stored.config.label2id = names, {name: i for i, name in names.items()}
    stored.save_pretrained(half)
    model, _, _ = load_checkpoint(ModelArguments(str(half)), get_task(task), will_train=True)
    same = [torch.equal(a, b) for a, b in zip(model.bert.parameters(), stored.bert.parameters(), strict=True)]
    assert all(same) and model.num_labels == {"mnli": 3, "stsb": 1, "mrpc": 2}[task]
    if task == "mnli":
        assert (model.classifier.weight != stored.classifier.weight).all()


def test_memory_is_that_of_the_device_of_the_run():
    """A machine may have a GPU that a run does not use."""
    found = peak_memory(torch.device("cpu"))
    assert found is None or (found["of"] == "process" and found["bytes"] > 2**20)


# ---- Decoders ----


@pytest.mark.parametrize("own, padding", [(None, None), (0, None), (None, "[NEW]")], ids=["none", "other", "beyond"])
def test_the_padding_token_of_a_decoder_is_that_of_its_tokenizer(own, padding, model, tmp_path):
    """The classifier reads the last token that is no padding, so a row in a batch is the same row alone."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token, tokenizer.model_input_names = tokenizer.sep_token, ["input_ids", "attention_mask"]
    vocabulary, tokenizer.pad_token = len(tokenizer), padding
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=vocabulary, intermediate_size=16, pad_token_id=own, **size)
    tokenizer.save_pretrained(tmp_path)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    loaded, tokenizer, _ = load_checkpoint(ModelArguments(str(tmp_path)), get_task("sst2"), will_train=True)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == loaded.config.pad_token_id
    texts = ["a good film", "what a truly lovely day it was"]
    together = loaded.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    alone = [loaded(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    torch.testing.assert_close(together, torch.stack(alone))


# ---- Adapters ----


@pytest.mark.parametrize(
    "config, head",
    [
        (BertConfig, ["classifier"]),
        (DistilBertConfig, ["pre_classifier", "classifier"]),
        (DebertaV2Config, ["pooler", "classifier"]),
        (BartConfig, ["classification_head"]),
        (Qwen2Config, ["score"]),
    ],
)
def test_the_head_is_not_held_in_4_bits(config, head, monkeypatch):
    """It is trained whole."""
    monkeypatch.setattr("transformers.BitsAndBytesConfig", dict)  # which looks for bitsandbytes
    model, arguments = AutoModelForSequenceClassification, ModelArguments("base", dtype="bfloat16")
    made = quantization_of(model, config(), arguments, in_4_bits=True, whole=["k_proj"])
    assert made.pop("llm_int8_skip_modules") == [*head, "k_proj"]
    assert made == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}


def test_a_model_that_is_stored_in_few_bits_stays_in_them():
    """Its own list of whole modules is added to; other bits than its own are refused."""
    stored = {"load_in_4bit": True, "quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]}
    arguments = ModelArguments("base")
    for in_4_bits in (False, True):
        config = Qwen2Config(quantization_config=dict(stored))
        made = quantization_of(AutoModelForSequenceClassification, config, arguments, in_4_bits, [])
        assert made == {**stored, "llm_int8_skip_modules": ["lm_head", "score"]}
    made = quantization_of(AutoModelForCausalLM, Qwen2Config(), arguments, in_4_bits=False, whole=[])
    config = Qwen2Config(quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match=r"--load_in_4bit: base is stored in 8 bits \(LLM.int8\) already"):
        quantization_of(AutoModelForSequenceClassification, config, arguments, True, [])
    assert made is None


# ---- Positions ----


def positions(name, **changes):
    """A tiny model by the name of its configuration's class, and the most tokens that it takes."""
    small = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "d_model": 16}
    small |= {"intermediate_size": 16, "max_position_embeddings": 20, "pad_token_id": 1, "encoder_layers": 1}
    small |= {"decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    small |= {"decoder_ffn_dim": 16, "ffn_dim": 16, "eos_token_id": 2, "num_labels": 2, "word_embed_proj_dim": 16}
    config = AutoConfig.for_model(name, **{**small, **changes})
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize(
    "name, longest",
    [
        ("roberta", 18), ("xlm-roberta", 18), ("camembert", 18), ("data2vec-text", 18), ("roberta-prelayernorm", 18),
        ("mpnet", 18), ("ibert", 18), ("bart", 20), ("mbart", 20), ("opt", 20), ("yoso", 20), ("bert", 20),
        ("albert", 20), ("distilbert", 20), ("electra", 20), ("gpt2", 20), ("deberta-v2", 20),
    ],
)  # fmt: skip
def test_the_longest_input_is_what_the_table_of_positions_holds(name, longest):
    """One token more is one too many, in every family whose first rows are no positions."""
    model = positions(name)
    assert max_positions(model) == longest

    def predict(length):
        tokens = torch.randint(5, 30, (1, length))
        tokens[:, -1] = 2
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits

    assert predict(longest).shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        predict(longest + 1)


def test_a_roberta_with_another_padding_token():
    assert max_positions(positions("roberta", pad_token_id=4)) == 15


def test_no_positions_no_limit():
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, num_labels=2)
    assert max_positions(AutoModelForSequenceClassification.from_config(config)) is None


# ---- What is kept of an evaluation ----


def encoder_decoder(cls, folder, model):
    config = AutoConfig.for_model(
        "bart", d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, vocab_size=600, num_labels=2,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
    )  # fmt: skip
    cls(config).save_pretrained(folder)
    for path in model.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("head", ["sequence", "question"])
def test_logits_alone_are_kept_of_an_encoder_decoder(head, model, here, monkeypatch):
    """The states of the encoder of all rows take a thousand times the memory."""
    kept, loop = [], trainer.RDropTrainer.evaluation_loop

    def spied(self, *args, **kwargs):
        output = loop(self, *args, **kwargs)
        kept.append(output.predictions)
        return output

    monkeypatch.setattr(trainer.RDropTrainer, "evaluation_loop", spied)
    if head == "sequence":
        folder = encoder_decoder(BartForSequenceClassification, here / "bart", model)
        write_csv(here / "a.csv")
        flags = "--train_file a.csv --validation_file a.csv --test_file a.csv --do_train --do_eval --do_predict"
    else:
        folder = encoder_decoder(BartForQuestionAnswering, here / "bart", model)
        asked = [{"id": f"Q{i}", "question": "谁", "answers": [{"text": "猫", "answer_start": i}]} for i in range(8)]
        texts = [{"context": "天" * i + "猫去了上海", "qas": [asked[i]]} for i in range(8)]
        for name in ("train", "dev", "test"):
            write_json(here / "cmrc2018" / f"{name}.json", [{"data": [{"paragraphs": texts}]}])
        flags = "--task_name cmrc2018 --data_dir . --do_train --do_eval --do_predict --doc_stride 4"
    assert run(folder, flags, "--output_dir out --measure full") == 0
    assert len(kept) >= 2
    for predictions in kept:
        if head == "sequence":
            assert predictions.shape == (24, 2)
        else:
            start, end = predictions
            assert start.ndim == end.ndim == 2
