"""Texts alone: blocks, masks, the loss of tokens and lines, and what is refused."""

import math

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BartConfig, BertConfig, GPT2Config, TrainerState, TrainingArguments, ViTConfig

from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.language_models import (
    MaskingCollator,
    losses_of_lines,
    make_block_features,
    mask,
    perplexity,
    token_losses,
)
from rdrop_trainer.glue.own_files import load_files
from rdrop_trainer.script.arguments import ModelArguments
from rdrop_trainer.script.command_line import parse_arguments
from rdrop_trainer.script.model_labels import language_model_head
from rdrop_trainer.script.resolve import resolve
from rdrop_trainer.script.scratch import make_bert


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_bert(folder, ["a b c d e f g h"], hidden_size=8, layers=1, heads=1, max_length=64)
    return AutoTokenizer.from_pretrained(folder)


def test_blocks(tokenizer):
    rows = datasets.Dataset.from_dict({"text": ["a b c", "", "d e f g"]})
    blocks = make_block_features(rows, tokenizer, 5, with_end=True)
    assert tokenizer.batch_decode(blocks["input_ids"][:]) == ["[CLS] a b c [SEP]", "[CLS] d e f [SEP]", "[CLS] g [SEP]"]
    assert blocks["line"][:] == [[-1, 0, 0, 0, -1], [-1, 2, 2, 2, -1], [-1, 2, -1]]
    blocks = make_block_features(rows, tokenizer, 5, with_end=False)
    assert tokenizer.batch_decode(blocks["input_ids"][:]) == ["[CLS] a b c d", "[CLS] e f g"]
    with pytest.raises(InputError, match="max_seq_length must be at least 4 for a language model, got 3"):
        make_block_features(rows, tokenizer, 3, with_end=True)
    with pytest.raises(InputError, match="the texts have no tokens"):
        make_block_features(rows.select([1]), tokenizer, 5, with_end=True)


def test_masks(tokenizer):
    ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    ids = [tokenizer.cls_token_id, *np.random.default_rng(0).choice(ordinary, 20_000), tokenizer.sep_token_id]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    found = mask(row, tokenizer, 0.15, seed=(1, 0))
    before, after, labels = (np.array(values) for values in (ids, found["input_ids"], found["labels"]))
    chosen = labels != -100
    assert not chosen[0] and not chosen[-1] and (labels[chosen] == before[chosen]).all()
    assert (after[~chosen] == before[~chosen]).all() and chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert (after[chosen] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (after[chosen] == before[chosen]).mean() == pytest.approx(0.1, abs=0.03)
    assert mask(row, tokenizer, 0.15, seed=(1, 0)) == found != mask(row, tokenizer, 0.15, seed=(1, 1))
    short = {"input_ids": ids[:3], "attention_mask": [1] * 3}
    assert sum(label != -100 for label in mask(short, tokenizer, 1e-9, seed=(0,))["labels"]) == 1


def test_the_masks_of_an_epoch_are_those_of_a_run_that_goes_on(tokenizer, tmp_path):
    """Whatever was drawn before; and a row that is evaluated has its own in every epoch."""
    row = {"input_ids": list(range(5, 25)), "attention_mask": [1] * 20}
    evaluated = {**row, "labels": row["input_ids"]}
    found, persistent = [], {"num_workers": 1, "persistent_workers": True}
    for epochs, workers in (([0.0, 1.0, 2.0], {}), ([2.4], {}), ([1.0, 2.0], persistent)):
        collator = MaskingCollator(list, tokenizer, 0.5)
        loader = DataLoader([row, evaluated], 2, collate_fn=collator, **workers)
        args = TrainingArguments(tmp_path, seed=7, dataloader_num_workers=loader.num_workers)
        for epoch in epochs:
            collator.on_epoch_begin(args, TrainerState(epoch=epoch), None)
            found += loader
    assert found[0] != found[1] == found[4] and found[2] == found[3] == found[5]
    assert all(batch[1] == evaluated for batch in found)


@pytest.mark.parametrize("shifted", [True, False])
def test_losses(shifted):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[1, 2, -100, 3], [4, -100, 0, -100]])
    losses = token_losses(logits.bfloat16(), labels, shifted=shifted)
    for row in range(2):
        for place in range(4):
            label = labels[row, place].item()
            if label == -100 or (shifted and place == 0):
                assert losses[row, place] == -1
                continue
            scores = logits.bfloat16()[row, place - shifted].double().numpy()
            assert losses[row, place].item() == pytest.approx(math.log(np.exp(scores).sum()) - scores[label], rel=1e-5)


def test_lines_and_their_perplexity():
    features = datasets.Dataset.from_dict({"line": [[-1, 0, 0, 2], [2, 3]]})
    losses = np.array([[9.0, 1.0, -1.0, 2.0], [4.0, -1.0, -100.0, -100.0]])
    lines = losses_of_lines(losses, features, 4)
    assert lines == [(1.0, 1), (0.0, 0), (6.0, 2), (0.0, 0)]
    assert perplexity(lines) == pytest.approx(math.exp(7 / 3)) and math.isnan(perplexity(lines[1:2]))
    losses[0, 1] = math.nan  # is not left out
    assert math.isnan(perplexity(losses_of_lines(losses, features, 4)))


@pytest.mark.parametrize(
    "config, architectures, head",
    [
        (BertConfig(), ["BertModel"], "masked"),
        (BertConfig(), ["BertForPreTraining"], "masked"),
        (BertConfig(is_decoder=True), ["BertLMHeadModel"], "causal"),
        (GPT2Config(), None, "causal"),
        (BartConfig(), ["BartForConditionalGeneration"], None),
        (ViTConfig(), ["ViTModel"], None),
    ],
)
def test_the_model_says_which(config, architectures, head, tmp_path):
    config.architectures = architectures
    config.save_pretrained(tmp_path)
    if head:
        assert language_model_head(ModelArguments(str(tmp_path))) == head
        return
    with pytest.raises(InputError, match="is no language model of texts alone; choose one such as GPT-2"):
        language_model_head(ModelArguments(str(tmp_path)))


def test_a_causal_model_has_no_masks(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    (tmp_path / "a.txt").write_text("a\n")
    flags = f"--task_type lm --model_name_or_path {tmp_path} --train_file {tmp_path}/a.txt --mlm_probability 0.2"
    with pytest.raises(InputError, match="--mlm_probability: .* is a causal language model, .* leave it out"):
        resolve(parse_arguments(flags.split()))


def test_texts_of_a_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "A storm.\\nIt was long.", "url": "x"}\n{"text": "", "url": "y"}\n')
    (tmp_path / "b.csv").write_text('body,url\n"Calm, now.",x\n')
    (tmp_path / "long.jsonl").write_text('{"text": "' + 2**19 * "Storm. " + '"}\n')
    assert len(load_files(task_type="lm", train_file=tmp_path / "long.jsonl")[0]["train"]["text"][0]) == 7 * 2**19
    data, _ = load_files(task_type="lm", train_file=tmp_path / "a.jsonl")
    assert data["train"]["text"][:] == ["A storm.\nIt was long.", ""]
    data, _ = load_files(task_type="lm", train_file=tmp_path / "b.csv", text_columns=["body"])
    assert data["train"]["text"][:] == ["Calm, now."]
    (tmp_path / "c.txt").write_text("Calm.\n")
    with pytest.raises(InputError, match="text column body: .*c.txt is plain text and has no columns; leave it out"):
        load_files(task_type="lm", train_file=tmp_path / "c.txt", text_columns=["body"])
    with pytest.raises(InputError, match="text columns body, url: expected one, that of the texts"):
        load_files(task_type="lm", train_file=tmp_path / "b.csv", text_columns=["body", "url"])


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", b"texts\na\n", "a.csv:2: no column 'text', the columns are texts; --text_columns names that of"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: the column 'text' holds 3, expected text"),
        ("a.txt", b"\n \n", "a.txt: is empty, expected text"),
        ("a.txt", b"a\n\xff\n", "a.txt:2: byte 0xff"),
    ],
)
def test_wrong_files(name, text, message, tmp_path):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=message):
        load_files(task_type="lm", train_file=tmp_path / name)
