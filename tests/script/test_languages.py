"""Models of many languages: every text gets the mark of its language, in training and where the model writes."""

import json
import re

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    set_seed,
)

from rdrop_trainer import RDropSeq2SeqTrainer
from rdrop_trainer.script.scratch import make_bart
from support.device import USE_CPU
from support.runs import script

SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
ROWS = [("der Hund", "the dog"), ("der Baum", "the tree"), ("ein Hund", "a dog"), ("ein Baum", "a tree")]
LANGUAGES = {"mbart": ("de_DE", "ro_RO"), "nllb": ("deu_Latn", "ron_Latn")}


def make(kind, folder):
    """A model from scratch, with a tokenizer that knows the letters of the rows."""
    pieces = ["▁", *sorted(set("".join(a + b for a, b in ROWS)))]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "mbart":
        tokenizer = MBartTokenizer(vocab=[(token, 0.0) for token in special] + [(piece, -2.0) for piece in pieces])
        cls, config = MBartForConditionalGeneration, MBartConfig
    else:
        tokenizer = NllbTokenizer(vocab={token: i for i, token in enumerate(special + pieces)}, merges=[])
        cls, config = M2M100ForConditionalGeneration, M2M100Config
    tokenizer.model_max_length = 32
    set_seed(0)
    cls(config(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("de\tro\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS))
    return tmp_path


def run(model, *flags):
    words = f"--task_type seq2seq --model_name_or_path {model} --source_column de --target_column ro --num_beams 1"
    words += f" --use_cpu {USE_CPU} --disable_tqdm True --save_strategy no --max_target_length 8"
    return script.main([*words.split(), *map(str, flags)])


@pytest.mark.parametrize("kind", LANGUAGES)
def test_each_text_gets_its_languages_mark(kind, here, monkeypatch):
    make(kind, here / "model")
    batches, compute_loss = [], RDropSeq2SeqTrainer.compute_loss

    def watch(self, model, inputs, *args, **options):
        batches.append({key: value.tolist() for key, value in inputs.items()})
        return compute_loss(self, model, inputs, *args, **options)

    monkeypatch.setattr(RDropSeq2SeqTrainer, "compute_loss", watch)
    source, target = LANGUAGES[kind]
    files = ["--train_file", "train.tsv", "--num_train_epochs", 1, "--output_dir", "out"]
    assert run("model", *files, "--source_lang", source, "--target_lang", target) == 0
    tokenizer = AutoTokenizer.from_pretrained("out")
    source, target = tokenizer.convert_tokens_to_ids([source, target])
    for batch in batches:
        for column, mark in (("input_ids", source), ("labels", target)):
            for row in batch[column]:
                tokens = [i for i in row if i not in (-100, tokenizer.pad_token_id)]
                assert (tokens[-2:] == [2, mark]) if kind == "mbart" else (tokens[0] == mark and tokens[-1] == 2)
    # What it writes begins with the mark, which mBART's decoder starts from, and other decoders write first
    settings = GenerationConfig.from_pretrained("out")
    model = AutoModelForSeq2SeqLM.from_pretrained("out")
    written = model.generate(torch.tensor([[5, 2]]), max_length=4)[0].tolist()
    assert written[:2].index(target) == (0 if kind == "mbart" else 1)
    assert settings.forced_bos_token_id == (None if kind == "mbart" else target)
    # Its files hold both languages, so they need not be said again
    assert run("out", "--test_file", "dev.tsv", "--do_predict", "--output_dir", "again") == 0
    with open("again/custom_test_predict.jsonl") as file:
        assert len([json.loads(line) for line in file]) == len(ROWS)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "NllbTokenizer marks the languages of texts, .*give --source_lang and --target_lang, of ace_Arab, "),
        ("--source_lang deu_Latn", "NllbTokenizer marks the languages of texts"),
        ("--source_lang deu_Latn --target_lang en", "--target_lang en: NllbTokenizer does not know it, but eng_Latn$"),
        ("--source_lang german", "NllbTokenizer does not know it, but ace_Arab, .*deu_Latn, "),
    ],
)
def test_languages_that_are_not_said(flags, message, here, capsys):
    make("nllb", here / "model")
    assert run("model", "--train_file", "train.tsv", *flags.split()) == 2
    error = capsys.readouterr().err
    assert not (here / "runs").exists()
    assert re.search(message, error.strip()), error


def test_a_prefix_is_read_before_each_text_and_kept(here, monkeypatch, capsys):
    texts = [text for row in ROWS for text in row]
    make_bart(here / "model", [*texts, "translate: "], hidden_size=16, layers=1, heads=2, max_length=32)
    seen, generate = [], BartForConditionalGeneration.generate

    def watch(self, **options):
        seen.extend(options["input_ids"].tolist())
        return generate(self, **options)

    monkeypatch.setattr(BartForConditionalGeneration, "generate", watch)
    assert run("model", "--train_file", "train.tsv", "--source_prefix", "translate: ", "--output_dir", "out") == 0
    assert BartConfig.from_pretrained("out").prefix == "translate: "
    tokenizer = AutoTokenizer.from_pretrained("out")
    expected = tokenizer([f"translate: {text}" for text, _ in ROWS])["input_ids"]
    for flags in ([], ["--source_prefix", ""]):
        seen.clear()
        out = f"again{len(flags)}"
        assert run("out", "--test_file", "dev.tsv", "--do_predict", *flags, "--output_dir", out) == 0
        assert ([[i for i in row if i != tokenizer.pad_token_id] for row in seen] == expected) is not bool(flags)
    capsys.readouterr()
    assert run("model", "--train_file", "train.tsv", "--source_lang", "de", "--output_dir", "other") == 2
    assert "--source_lang: " in (error := capsys.readouterr().err) and "marks no languages; leave it out" in error
