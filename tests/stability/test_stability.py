"""Stability under dropout and under edits, and calibration, against independent formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerFast

from rdrop_trainer import dropout_stability, perturbation_stability, set_dropout
from rdrop_trainer.errors import InputError
from rdrop_trainer.stability import EDITS, Stability, expected_calibration_error, mean_confidence
from rdrop_trainer.stability.running import batches_of
from support import tiny, zoo
from support.formulas import bernoulli, squared, symmetric_kl
from support.tiny import Drawn


def collator(head):
    return (DataCollatorForTokenClassification if head == "token" else DataCollatorWithPadding)(tiny.tokenizer())


def wide(model):
    """A classifier whose predictions do flip."""
    with torch.no_grad():
        torch.manual_seed(3)
        model.classifier.weight.normal_(std=1.0)
    return model


CASES = {
    "single_label": (symmetric_kl, lambda a, b: int(np.argmax(a) != np.argmax(b))),
    "multi_label": (bernoulli, lambda a, b: int(any((x > 0) != (y > 0) for x, y in zip(a, b, strict=True)))),
    "regression": (squared, lambda a, b: math.nan),
    "token": (symmetric_kl, lambda a, b: int(np.argmax(a) != np.argmax(b))),
}


@pytest.mark.parametrize("head", CASES)
def test_dropout_stability_by_the_definition(head):
    model = wide(tiny.bert(head, dropout=0.3))
    model.dropout = Drawn(0.3)
    data, samples = tiny.dataset(head, rows=7), 4
    found = dropout_stability(model, data, samples, data_collator=collator(head), batch_size=7, seed=5)
    weight, bias = model.classifier.weight.detach().double(), model.classifier.bias.detach().double()
    logits = [(hidden @ weight.T + bias).tolist() for hidden in model.dropout.seen]
    assert len(logits) == 1 + samples
    with torch.no_grad():
        alone = model.eval()(**{k: v for k, v in collator(head)(data).items() if k != "labels"}).logits
    assert torch.equal(alone, model.classifier(model.dropout.seen[0].float())), "its own prediction is without dropout"
    kl, flip = CASES[head]
    for i, row in enumerate(data):
        places = [t for t, y in enumerate(row["labels"]) if y != -100] if head == "token" else [None]
        own, *drawn = ([z[i] if t is None else z[i][t] for t in places] for z in logits)
        pairs = [[kl(a, b) for a, b in itertools.combinations(item, 2)] for item in zip(*drawn, strict=True)]
        flips = [[flip(o, z) for z in item] for o, *item in zip(own, *drawn, strict=True)]
        assert found.items[i] == len(places)
        assert found.divergence[i] == pytest.approx(np.mean(pairs), rel=1e-5)
        assert found.flips[i] == pytest.approx(np.mean(flips), nan_ok=True)
    weights = found.items / found.items.sum()
    assert found.mean_divergence == pytest.approx(float((found.divergence * weights).sum()))
    assert found.flip_rate == pytest.approx(float((found.flips * weights).sum()), nan_ok=True)
    assert head == "regression" or 0 < found.flip_rate < 1


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    model = tiny.bert()
    model.train()
    model.bert.encoder.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = dropout_stability(model, tiny.dataset(), data_collator=collator("single_label"))
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    again = dropout_stability(model, tiny.dataset(), data_collator=collator("single_label"))
    assert np.array_equal(first.divergence, again.divergence)
    other = dropout_stability(model, tiny.dataset(), data_collator=collator("single_label"), seed=2**32 + 1)
    assert not np.array_equal(first.divergence, other.divergence)


def test_norms_keep_their_statistics():
    model = tiny.bert()
    model.dropout = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(16))
    before = tiny.weights(model)
    dropout_stability(model, tiny.dataset(), data_collator=collator("single_label"))
    assert tiny.identical(tiny.weights(model), before)


def test_batches_do_not_matter_for_what_is_counted():
    data = tiny.dataset("token", rows=9, unlabeled=(2,))
    model = tiny.bert("token")
    one, many = (dropout_stability(model, data, 2, data_collator=collator("token"), batch_size=b) for b in (9, 2))
    assert np.array_equal(one.items, many.items) and one.items[2] == len(data[2]["input_ids"])


@pytest.mark.parametrize("head", ["single_label", "multi_label", "regression", "token"])
def test_rows_without_labels(head):
    model, data = (
        tiny.bert(head),
        [
            {key: value for key, value in row.items() if key != "labels"} | {"text": "not the model's"}
            for row in tiny.dataset(head)
        ],
    )
    model.config.problem_type = {"multi_label": "multi_label_classification"}.get(head)
    found = dropout_stability(model, data, data_collator=DataCollatorWithPadding(tiny.tokenizer()))
    expected = [len(row["input_ids"]) for row in data] if head == "token" else [1] * len(data)
    assert found.items.tolist() == expected and (found.divergence > 0).all()


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "masked_lm", "choice", "question", "vit", "wav2vec2"])
def test_every_head(name):
    model, rows = zoo.build(name, dropout=0.2), zoo.dataset(name, 5)
    found = dropout_stability(model, rows, 3, data_collator=zoo.collator(name, model), batch_size=2)
    assert len(found.items) == 5 and found.mean_divergence > 0 and 0 <= found.flip_rate <= 1
    set_dropout(model, 0.0)
    with pytest.raises(InputError, match="no active dropout"):
        dropout_stability(model, rows, data_collator=zoo.collator(name, model))


def test_what_cannot_be_measured():
    with pytest.raises(InputError, match="at least 2, got 1"):
        dropout_stability(tiny.bert(), tiny.dataset(), 1)
    with pytest.raises(InputError, match="empty"):
        dropout_stability(tiny.bert(), [])


@pytest.mark.parametrize("head", ["single_label", "multi_label", "regression"])
def test_predictions_that_are_known_are_not_made_again(head):
    model, data = wide(tiny.bert(head, dropout=0.3)), tiny.dataset(head, rows=7)
    options = {"data_collator": collator(head), "batch_size": 3}
    expected = dropout_stability(model, data, 4, **options)
    with torch.no_grad():
        inputs = {k: v for k, v in collator(head)(data).items() if k != "labels"}
        logits = model.eval()(**inputs).logits
    passes = []
    model.register_forward_hook(lambda *_: passes.append(model.training))
    found = dropout_stability(model, data, 4, logits=logits.numpy(), **options)
    assert passes == [True] * 4 * 3  # three batches
    assert np.array_equal(found.flips, expected.flips, equal_nan=True)
    assert np.array_equal(found.divergence, expected.divergence)
    with pytest.raises(InputError, match="a row for each of 7 rows, got 6"):
        dropout_stability(model, data, logits=logits[1:], **options)


def test_a_head_of_several_predictions_a_row_predicts_itself():
    model, data = tiny.bert("token"), tiny.dataset("token", rows=3)
    with pytest.raises(InputError, match="one prediction a row, not for token classification"):
        dropout_stability(model, data, logits=np.zeros((3, 4, 5)), data_collator=collator("token"))


@pytest.mark.parametrize(("flips", "n"), [(0, 9), (3, 40), (20, 20), (1, 1)])
def test_the_interval_of_a_rate_by_its_definition(flips, n):
    """Wilson's are the shares p that the rate is 1.96 standard errors away from, those of p."""
    found = Stability(
        np.array([1.0] * flips + [0.0] * (n - flips) + [math.nan]), np.zeros(n + 1), np.array([1] * n + [0])
    )
    for p in found.flip_interval:
        assert 0 <= p <= 1
        assert abs(found.flip_rate - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-6)
    assert found.flip_interval[0] <= found.flip_rate <= found.flip_interval[1]


def test_without_a_rate_there_is_no_interval():
    assert np.isnan(Stability(np.full(3, math.nan), np.ones(3), np.ones(3, dtype=int)).flip_interval).all()
    assert np.isnan(Stability(np.full(3, math.nan), np.full(3, math.nan), np.zeros(3, dtype=int)).flip_interval).all()


# ---- Edits ----


def characters(uncased=False):
    """A tokenizer that sees every character."""
    known = " .。" + "".join(map(str, range(10))) + "".join(chr(c) + chr(c - 32) for c in range(97, 123)) + "电影很好"
    vocab = {"[PAD]": 0, "[UNK]": 1} | {character: i for i, character in enumerate(known, 2)}
    splits = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    splits.pre_tokenizer = Split("", "isolated")
    if uncased:
        splits.normalizer = Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=splits, pad_token="[PAD]", unk_token="[UNK]")


def reader(head="single_label"):
    return wide(tiny.bert(head, dropout=0.1, vocab_size=80))


TEXTS = [{"text": f"w{5 + i} w{6 + i} w7"} for i in range(8)] + [{"text": "电影很好。"}, {"text": "7 8"}]


def test_edits_are_compared_with_the_text_they_were_made_of():
    model, tok = reader(), characters()
    found = perturbation_stability(model, TEXTS, tok, batch_size=3, seed=2)
    again = perturbation_stability(model, TEXTS, tok, batch_size=5, seed=2)
    assert [edit[:4] for edit in found.edits] == [edit[:4] for edit in again.edits]

    def logits(text):
        with torch.no_grad():
            return model.eval()(**tok(text, return_tensors="pt")).logits[0].double().tolist()

    for edit in found.edits:
        assert edit.text == TEXTS[edit.index]["text"] != edit.edited
        a, b = logits(edit.text), logits(edit.edited)
        assert edit.divergence == pytest.approx(symmetric_kl(a, b), rel=1e-4, abs=1e-9)
        assert edit.flipped == (np.argmax(a) != np.argmax(b))
    assert found.overall.flip_rate == pytest.approx(np.mean([edit.flipped for edit in found.edits]))
    swaps = [edit.divergence for edit in found.edits if edit.kind == "spacing"]
    assert found.by_kind["spacing"].mean_divergence == pytest.approx(np.mean(swaps))
    assert found.by_kind["other_character"].items.tolist() == [0] * 8 + [1, 0]
    assert found.by_kind["slip"].items.tolist() == [1] * 8 + [0, 0]
    assert found.overall.items[9] == 2  # a space, and a full stop
    assert not any(found.unseen.values())
    known = perturbation_stability(model, TEXTS, tok, seed=2, logits=[logits(row["text"]) for row in TEXTS])
    assert [edit[:5] for edit in known.edits] == [edit[:5] for edit in found.edits]
    assert np.allclose(known.overall.divergence, found.overall.divergence, rtol=1e-4)
    with pytest.raises(InputError, match="a row for each of 10 rows, got 1"):
        perturbation_stability(model, TEXTS, tok, logits=[[0.0, 1.0]])


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize(("uncased", "max_length"), [(True, None), (False, 5), (True, 5)])
def test_edits_that_the_model_cannot_see_do_not_count(uncased, max_length, most):
    model, tok = reader(), characters(uncased)
    options = {"max_length": max_length, "seed": 4}
    found = perturbation_stability(model, TEXTS, tok, num_edits=most, **options)

    def ids(text):
        return tok(text, truncation=True, max_length=max_length)["input_ids"]

    assert found.edits and all(ids(edit.edited) != ids(edit.text) for edit in found.edits)
    # The same edits for a model that sees them all
    made = perturbation_stability(model, TEXTS, characters(), seed=4).edits
    visible = [edit[:4] for edit in made if ids(edit.edited) != ids(edit.text)]
    if most is None:
        assert [edit[:4] for edit in found.edits] == visible
        hidden = {kind: sum(edit.kind == kind for edit in made) for kind in EDITS}
        assert found.unseen == {k: n - sum(edit.kind == k for edit in found.edits) for k, n in hidden.items()}
        assert found.unseen["case" if uncased else "punctuation"] == 8
    else:
        assert {edit[:4] for edit in found.edits} < set(visible)
        there = [sum(edit[0] == i for edit in visible) for i in range(len(TEXTS))]
        assert found.overall.items.tolist() == [min(n, most) for n in there]
        assert 0 < sum(found.unseen.values()) <= len(made) - len(visible)
    assert sum(found.by_kind[kind].items.sum() for kind in EDITS) == len(found.edits)


def test_a_few_edits_of_each_text_are_of_all_kinds():
    found = perturbation_stability(reader(), TEXTS, characters(), num_edits=1)
    assert found.overall.items.tolist() == [1] * len(TEXTS) and len({edit.kind for edit in found.edits}) > 3
    again = perturbation_stability(reader(), TEXTS, characters(), num_edits=1)
    assert again.edits == found.edits
    with pytest.raises(InputError, match="num_edits: expected at least 1, got 0"):
        perturbation_stability(reader(), TEXTS, characters(), num_edits=0)


def test_edits_of_ones_own_and_of_the_first_of_two_texts():
    rows = [{"a": "w5 w6", "b": "w7"}, {"a": "w8", "b": "w9"}]
    kinds = {"nothing": lambda text, rng: text, "new": lambda text, rng: "w10"}
    found = perturbation_stability(wide(tiny.bert()), rows, tiny.tokenizer(), text_columns=("a", "b"), kinds=kinds)
    assert [(edit.kind, edit.edited) for edit in found.edits] == [("new", "w10")] * 2
    assert found.unseen == {"nothing": 0, "new": 0}
    model, tok = wide(tiny.bert()).eval(), tiny.tokenizer()
    with torch.no_grad():
        a, b = (model(**tok(text, "w7", return_tensors="pt")).logits[0].tolist() for text in ("w5 w6", "w10"))
    assert found.edits[0].divergence == pytest.approx(symmetric_kl(a, b), rel=1e-4)
    only = perturbation_stability(
        wide(tiny.bert()), rows, tiny.tokenizer(), text_columns=("a",), kinds={"no": lambda *_: None}
    )
    assert only.edits == () and math.isnan(only.overall.flip_rate)


def test_a_regression_has_no_flips():
    found = perturbation_stability(reader("regression"), TEXTS, characters(), kinds=["spacing"])
    assert found.edits and not any(edit.flipped for edit in found.edits)
    assert math.isnan(found.overall.flip_rate) and found.overall.mean_divergence >= 0


def test_what_cannot_be_edited():
    with pytest.raises(InputError, match="no edit is called typo; there are swap, drop"):
        perturbation_stability(tiny.bert(), TEXTS, tiny.tokenizer(), kinds=["typo"])
    with pytest.raises(InputError, match="no column sentence"):
        perturbation_stability(tiny.bert(), TEXTS, tiny.tokenizer(), text_columns=("sentence",))
    with pytest.raises(InputError, match="sequence classification alone"):
        perturbation_stability(tiny.bert("token"), TEXTS, tiny.tokenizer())


# ---- Calibration ----


def test_calibration_error_by_its_definition():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 4, size=200)
    labels = rng.integers(0, 4, 200)
    labels[:5] = -100
    kept, classes = probabilities[5:], labels[5:]
    confidence, right = kept.max(1), kept.argmax(1) == classes
    expected = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & ((confidence < (b + 1) / 10) | (b == 9))
        if inside.any():
            expected += inside.sum() / len(classes) * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probabilities, labels, 10) == pytest.approx(expected)
    assert mean_confidence(probabilities, labels) == pytest.approx(confidence.mean())
    usual, fifteen = (expected_calibration_error(probabilities, labels, *bins) for bins in ((), (15,)))
    assert usual == fifteen != expected_calibration_error(probabilities, labels, 16)


def test_a_sure_and_right_classifier_is_calibrated():
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0
    assert expected_calibration_error(np.eye(3), [1, 2, 0]) == 1
    # A confidence of 1 is of the last bin, where a wrong 1.0 and a right 0.95 have one gap
    assert expected_calibration_error([[1.0, 0.0], [0.95, 0.05]], [1, 0], 10) == pytest.approx(0.475)
    with pytest.raises(InputError, match="apply softmax"):
        expected_calibration_error(np.ones((2, 3)), [0, 1])
    with pytest.raises(InputError, match=r"got \(2, 2\) and \(3,\)"):
        mean_confidence(np.eye(2), [0, 1, 0])
    with pytest.raises(InputError, match="no row has a label"):
        mean_confidence(np.eye(2), [-100, -100])


class Adapted(torch.nn.Module):
    """As PEFT's models: it names fewer inputs than it hands on."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return self.model(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    def get_base_model(self):
        return self.model


def test_an_adapter_gets_all_inputs_of_the_model_below_it():
    row = {"input_ids": [3, 4], "attention_mask": [1, 1], "token_type_ids": [0, 1], "labels": 1, "other": 2}
    (batch,) = batches_of(Adapted(tiny.bert()), [row], None, size=1)
    assert batch.keys() == row.keys() - {"other"}
