"""The ready-made views: what they change, what they keep, and what they refuse."""

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from rdrop_trainer.views import mask_tokens, random_crop, token_cutoff, word_dropout
from support import tiny, zoo
from support.operations import Operations


def tokenizer():
    tok = tiny.tokenizer()
    tok.add_special_tokens({"mask_token": "w3"})
    return tok


def bart():
    return zoo.build("bart")


VIEWS = {  # the view, the token that it puts in the place of others, and the special ones that it keeps
    "token_cutoff": (lambda p: token_cutoff(bart(), **p), 0, {0, 2, 3}, 0.05),
    "word_dropout": (lambda p: word_dropout(tokenizer(), **p), 1, {0, 1, 2, 3}, 0.1),
    "mask_tokens": (lambda p: mask_tokens(tokenizer(), **p), 3, {0, 1, 2, 3}, 0.15),
}


@pytest.mark.parametrize("name", VIEWS)
def test_tokens_are_replaced(name):
    make, token, kept, default = VIEWS[name]
    g = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(0, 40, (50, 40), generator=g),
        "decoder_input_ids": torch.randint(0, 40, (50, 20), generator=g),
        "labels": torch.arange(50),
    }
    before = {key: value.clone() for key, value in batch.items()}
    torch.manual_seed(0)
    for p in ({}, {"p": 0.5}, {"p": 1.0}):
        view = make(p)
        with Operations() as operations:
            after = view(batch, 1)
        assert not operations.that_wait  # for a device
        assert after["labels"] is batch["labels"] and all(torch.equal(batch[k], before[k]) for k in before)
        for key in ("input_ids", "decoder_input_ids"):
            may_change = ~torch.isin(batch[key], torch.tensor(sorted(kept)))
            changed = after[key] != batch[key]
            assert not changed[~may_change].any() and (after[key][changed] == token).all()
            share, wanted = changed[may_change].double().mean().item(), p.get("p", default)
            assert share == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / may_change.sum().item()) ** 0.5)


def test_cut_tokens_have_no_embedding_but_a_position():
    model = bart().eval()
    ids = torch.tensor([[3, 9, 8, 7, 2]])
    cut = token_cutoff(model, p=1.0)({"input_ids": ids}, 1)["input_ids"]
    kept = torch.tensor([1.0, 0, 0, 0, 1])[None, :, None]
    embeds = model.get_input_embeddings()(ids) * kept
    found = [model.model.encoder(attention_mask=torch.ones_like(ids), **given) for given in (
        {"input_ids": cut}, {"inputs_embeds": embeds * model.model.encoder.embed_tokens.embed_scale},
    )]  # fmt: skip
    assert torch.allclose(found[0].last_hidden_state, found[1].last_hidden_state, atol=1e-6)


def test_images_are_cropped_each_by_itself():
    images = torch.arange(1.0, 1 + 64 * 2 * 5 * 6).reshape(64, 2, 5, 6)
    torch.manual_seed(0)
    with Operations() as operations:
        cropped = random_crop(2)({"pixel_values": images}, 1)["pixel_values"]
    assert not operations.that_wait
    shifts = set()
    for before, after in zip(images, cropped, strict=True):
        bordered = torch.nn.functional.pad(before, (2, 2, 2, 2))
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(bordered[:, i : i + 5, j : j + 6], after)]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 20


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 30}
REFUSED = {
    "positions by the padding token": (
        lambda: token_cutoff(RobertaForSequenceClassification(RobertaConfig(**SIZES))), "positions are numbered by it",
    ),
    "a padding token that learns": (
        lambda: token_cutoff(zoo.build("t5")),
        "that is not 0 or that learns",
    ),
    "no mask token": (lambda: mask_tokens(tiny.tokenizer()), "has no mask_token"),
    "p": (lambda: word_dropout(tiny.tokenizer(), p=5), r"p must be a probability in \[0, 1\], got 5"),
    "padding": (lambda: random_crop(0), "at least 1 pixel, got 0"),
    "no text": (lambda: word_dropout(tiny.tokenizer())({"pixel_values": torch.ones(1)}, 1), "needs `input_ids`"),
    "no image": (lambda: random_crop()({"input_ids": torch.ones(1, 2)}, 1), "needs `pixel_values`"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    attempt, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        attempt()
