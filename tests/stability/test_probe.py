"""The divergence of a baseline while it trains, and models of several seeds compared, against independent formulas."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, Trainer

from rdrop_trainer import DivergenceProbe, RDropMixin, RDropTrainer
from rdrop_trainer.errors import InputError
from rdrop_trainer.stability import seed_stability
from support import tiny, zoo
from support.formulas import bernoulli, softmax, squared, symmetric_kl
from support.tiny import Drawn


def probed(trainer, rows, **options):
    trainer.add_callback(DivergenceProbe(trainer, rows, **options))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "probe_divergence" in entry]


@pytest.mark.parametrize("cls", [Trainer, RDropTrainer])
def test_training_is_that_without_the_probe(cls, tmp_path):
    data, runs = tiny.dataset(), []
    for probe in (False, True):
        trainer = tiny.trainer(tiny.bert(), data, tmp_path, cls, max_steps=7)
        seen = probed(trainer, data[:5], num_points=3) if probe else trainer.train()
        runs.append(tiny.weights(trainer.model))
    assert tiny.identical(*runs)
    assert [entry["step"] for entry in seen] == [0, 3, 5, 7]
    assert all(entry["probe_divergence"] > 0 for entry in seen)


@pytest.mark.parametrize("cls", [Trainer, RDropTrainer])
def test_what_training_logs_is_that_without_the_probe(cls, tmp_path):
    data, logs = tiny.dataset(), []
    for probe in (False, True):
        trainer = tiny.trainer(tiny.bert(), data, tmp_path, cls, max_steps=6, logging_steps=2, logging_first_step=True)
        probed(trainer, data[:5], num_points=6) if probe else trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert [entry["step"] for entry in logs[0]] == [1, 2, 4, 6] and logs[1] == logs[0]


def test_other_random_numbers_go_on_too(tmp_path):
    """Some models drop layers and mask spans by those of NumPy and of Python."""

    def draw(*_):
        return random.random(), np.random.random()

    model, data = tiny.bert(), tiny.dataset()
    trainer = tiny.trainer(model, data, tmp_path, max_steps=1)
    inside = []
    model.bert.register_forward_pre_hook(lambda *_: inside.append(draw()))
    probe = DivergenceProbe(trainer, data[:4], batch_size=4)
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        expected = draw()
        random.seed(seed)
        np.random.seed(seed)
        probe._measure(model)
        assert draw() == expected
    assert inside[:2] == inside[2:], "the same at every point"


KINDS = {"single_label": symmetric_kl, "multi_label": bernoulli, "regression": squared}
LOSSES = {
    "single_label": lambda z, label: -math.log(softmax(z)[label]),
    "multi_label": lambda z, labels: np.mean([math.log1p(math.exp(x)) - x * y for x, y in zip(z, labels, strict=True)]),
    "regression": lambda z, target: (z[0] - target) ** 2,
}


@pytest.mark.parametrize("head", [*KINDS, "token"])
def test_what_is_logged_by_its_definition(head, tmp_path):
    model = tiny.bert(head, dropout=0.3)
    model.dropout = drawn = Drawn(0.3)
    weight, bias = model.classifier.weight.detach().double().clone(), model.classifier.bias.detach().double().clone()
    data = tiny.dataset(head, rows=6, unlabeled=(2,))
    start = probed(tiny.trainer(model, data, tmp_path, Trainer, max_steps=1), data, batch_size=6)[0]
    first, second = ((hidden @ weight.T + bias).tolist() for hidden in drawn.seen[:2])
    problem, losses, divergences = "single_label" if head == "token" else head, [], []
    for i, row in enumerate(data):
        labels = row["labels"] if head == "token" else [row["labels"]]
        unlabeled = all(label == -100 for label in labels)
        for t, label in enumerate(labels):
            a, b = (z[i][t] if head == "token" else z[i] for z in (first, second))
            if label != -100:
                losses += [LOSSES[problem](z, label) for z in (a, b)]
            if label != -100 or unlabeled:
                divergences.append(KINDS[problem](a, b))
    assert start["probe_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert start["probe_divergence"] == pytest.approx(np.mean(divergences), rel=1e-5)


def halved(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels) / 2


class Halved(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (loss / 2, outputs) if return_outputs else loss / 2


class OwnLoss(BertForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return super().forward(input_ids, attention_mask, labels=labels)


@pytest.mark.parametrize("whose", ["function", "trainer", "trainer below R-Drop", "model", "head"])
def test_no_other_loss_is_logged_than_that_of_the_training(whose, tmp_path):
    model, settings = (zoo.build("ctc") if whose == "head" else tiny.bert()), {"max_steps": 1}
    if whose == "model":
        model.__class__ = OwnLoss
    cls = {"trainer": Halved, "trainer below R-Drop": type("Below", (RDropMixin, Halved), {})}.get(whose, RDropTrainer)
    if whose == "function":
        settings["compute_loss_func"] = halved
    if whose == "head":
        settings["data_collator"] = zoo.collator("ctc", model)
    data = zoo.dataset("ctc", 4) if whose == "head" else tiny.dataset()
    seen = probed(tiny.trainer(model, data, tmp_path, cls, **settings), data, num_points=1)
    assert len(seen) == 2 and not any("probe_loss" in entry for entry in seen)


@pytest.mark.parametrize("name", ["gpt2", "t5", "choice", "question", "vit"])
def test_every_head(name, tmp_path):
    rows = zoo.dataset(name, 4)
    model = zoo.build(name, dropout=0.2)
    trainer = zoo.trainer(name, model, rows, tmp_path, max_steps=2)
    seen = probed(trainer, rows, num_points=1)
    assert [entry["step"] for entry in seen] == [0, 2]
    assert all(entry["probe_divergence"] > 0 and entry["probe_loss"] > 0 for entry in seen)


def test_a_resumed_run_goes_on_with_its_curve(tmp_path):
    data = tiny.dataset()
    trainer = tiny.trainer(tiny.bert(), data, tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    whole = probed(trainer, data, num_points=2)
    again = tiny.trainer(tiny.bert(), data, tmp_path, max_steps=4)
    again.add_callback(DivergenceProbe(again, data, num_points=2))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    seen = [entry for entry in again.state.log_history if "probe_divergence" in entry]
    assert [entry["step"] for entry in seen] == [0, 2, 4] and seen == whole


def test_what_a_probe_needs(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path)
    with pytest.raises(InputError, match="got 0 rows"):
        DivergenceProbe(trainer, [])


@pytest.mark.parametrize("problem", KINDS)
def test_stability_across_seeds_by_its_definition(problem):
    logits = np.random.default_rng(0).normal(size=(4, 9, 3)).astype(np.float32)
    found = seed_stability(list(logits), problem)
    logits = logits.astype(np.float64)
    for i in range(9):
        pairs = list(itertools.combinations(logits[:, i], 2))
        assert found.divergence[i] == pytest.approx(np.mean([KINDS[problem](a, b) for a, b in pairs]), rel=1e-9)
        flips = {
            "single_label": [a.argmax() != b.argmax() for a, b in pairs],
            "multi_label": [((a > 0) != (b > 0)).any() for a, b in pairs],
            "regression": [math.nan],
        }
        assert found.flips[i] == pytest.approx(np.mean(flips[problem]), nan_ok=True)


def test_what_seeds_cannot_be_compared():
    for logits in ([torch.zeros(3, 2)], [torch.zeros(3, 2), torch.zeros(4, 2)], [torch.zeros(3), torch.zeros(3)]):
        with pytest.raises(InputError, match="at least two models for the same rows"):
            seed_stability(logits)
