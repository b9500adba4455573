"""Labels that are none of a head's classes, or of another kind than the class of the model says."""

import re

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

from rdrop_trainer import Head, Objective, RDropTrainer, StepSettings
from support import formulas, tiny, zoo

IDS = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name, label, classes", [("single_label", 4, 4), ("single_label", -1, 4), ("token", 5, 5), ("t5", 40, 40),
                             ("gpt2", 41, 40), ("choice", 3, 3)]
)  # fmt: skip
def test_a_label_outside_the_classes(name, label, classes):
    model, batch = zoo.build(name), zoo.batch(name)
    objective = Objective.of(model, [batch])  # a later window may bring it as well
    objective.window([batch])
    batch["labels"].view(-1)[-1] = label
    said = f"A label is {label}, but {type(model).__name__} knows {classes} classes"
    said += ".*: mend the labels" if label < 0 else ""
    for look in (lambda: Objective.of(model, [batch]), lambda: objective.window([batch])):
        with pytest.raises(ValueError, match=said):
            look()


@pytest.mark.parametrize(
    "name, labels, said",
    [
        ("single_label", torch.tensor([0.0, 1.0]), r"torch.float32 of the shape \(2,\), which .* of its 4 classes, .*"),
        ("single_label", torch.tensor([True, False]), r"torch.bool of the shape \(2,\), which .* so for \(2, 4\). .*"),
        ("multi_label", torch.tensor([0, 1]), r"torch.int64 of the shape \(2,\), which .* so for \(2, 4\). .*"),
        ("token", torch.zeros(2, 3), "torch.float32 of the shape .*, but .* takes classes as integers: make them .*"),
        ("multi_label", torch.ones(2, 4) == 1, "torch.bool of .*, but .* takes yes or no as 1.0 or 0.0: make them "),
    ],
)  # fmt: skip
def test_classes_that_are_no_integers(name, labels, said):
    """As pandas reads a column with a gap, or of True and False."""
    model = zoo.build(name)
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": labels}
    with pytest.raises(ValueError, match=f"The labels are {said}torch.(long|float)"):
        Objective.of(model, [batch])


@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_the_trainer_says_so(alpha, tmp_path):
    data = [{**row, "labels": 5} for row in tiny.dataset(rows=4)]
    with pytest.raises(ValueError, match="A label is 5, .*labeled 0 to 3 .*load the model with more num_labels"):
        tiny.trainer(tiny.bert(), data, tmp_path, rdrop_alpha=alpha).train()


def test_a_loss_of_the_user_may_know_other_labels(tmp_path):
    def without_4(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, ignore_index=4)

    data = [{**row, "labels": 4 - i % 2} for i, row in enumerate(tiny.dataset(rows=4))]
    trainer = tiny.trainer(tiny.bert(), data, tmp_path, RDropTrainer, compute_loss_func=without_4)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("name", ["masked_lm", "gpt2", "token"])
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_labels_of_rows_for_a_class_with_tokens(name, alpha, tmp_path):
    """A prompt: the logits of some words at one place tell the class of a row."""
    seen = []

    class Prompted(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            logits = model(**inputs).logits[:, 2, 1:4]
            seen.append(logits.detach().double().cpu())
            loss = torch.nn.functional.cross_entropy(logits, labels)
            return (loss, {"logits": logits}) if return_outputs else loss

    data = [{"input_ids": row.tolist(), "labels": i % 3} for i, row in enumerate(IDS)]
    settings = {"rdrop_alpha": alpha, "rdrop_forward_mode": "sequential", "train_sampling_strategy": "sequential"}
    trainer = tiny.trainer(zoo.build(name, 0.2), data, tmp_path, Prompted, logging_steps=1, **settings)
    trainer.train()
    passes = seen[-2:] if alpha else seen[-1:]
    loss, _, divergence = formulas.rdrop(passes * (2 // len(passes)), [0, 1, 2, 0], alpha)
    assert tiny.logged(trainer, "loss") == pytest.approx([loss.item()], rel=1e-5)
    assert tiny.logged(trainer, "divergence") == (pytest.approx([divergence.item()], rel=1e-4) if alpha else [])


def test_yes_or_no_of_each_class_as_integers(tmp_path):
    """The usual trainer of many labels: a stock class, whose own loss would take floating labels alone."""

    class Multilabel(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            seen.append(outputs.logits.detach().double().cpu())
            loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels.float())
            return (loss, outputs) if return_outputs else loss

    seen, labels = [], torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    data = [{"input_ids": ids.tolist(), "labels": row.tolist()} for ids, row in zip(IDS, labels, strict=True)]
    settings = {"rdrop_forward_mode": "sequential", "train_sampling_strategy": "sequential", "logging_steps": 1}
    settings["data_collator"] = default_data_collator
    trainer = tiny.trainer(tiny.bert(dropout=0.2), data, tmp_path, Multilabel, rdrop_alpha=3.0, **settings)
    trainer.train()
    loss, _, divergence = formulas.rdrop(seen[-2:], labels, 3.0, "multi_label")
    assert tiny.logged(trainer, "loss") == pytest.approx([loss.item()], rel=1e-5)
    assert tiny.logged(trainer, "divergence") == pytest.approx([divergence.item()], rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_the_configuration_of_a_part_does_not_say_how_many_classes_there_are(alpha, tmp_path):
    """A body with a head of one's own, and two classes by default in its configuration, which `Trainer` wants there."""

    class OnTop(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.dropout = BertConfig(), torch.nn.Dropout(0.3)
            self.embed, self.out = torch.nn.Embedding(40, 8), torch.nn.Linear(8, 3)

        def forward(self, input_ids, labels=None):
            logits = self.out(self.dropout(self.embed(input_ids)).mean(1))
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)

    data = [{"input_ids": row.tolist(), "labels": i % 3} for i, row in enumerate(IDS)]
    settings = {"data_collator": default_data_collator, "rdrop_alpha": alpha, "label_smoothing_factor": 0.1}
    trainer = tiny.trainer(OnTop(), data, tmp_path, **settings)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_tasks_with_labels_of_different_kinds_do_not_share_a_step(accumulation):
    """Their items are not the same, so that no one count could weigh them."""

    class Tasks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.dropout = torch.nn.Embedding(40, 8), torch.nn.Dropout(0.3)
            self.grade, self.choose = torch.nn.Linear(8, 1), torch.nn.Linear(8, 3)

        def forward(self, input_ids, labels):
            hidden = self.dropout(self.embed(input_ids)).mean(1)
            if labels.is_floating_point():
                logits = self.grade(hidden)[:, 0]
                return {"loss": torch.nn.functional.mse_loss(logits, labels), "logits": logits}
            logits = self.choose(hidden)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    batches = [{"input_ids": IDS, "labels": labels} for labels in (torch.tensor([0, 1, 2, 0]), torch.rand(4) * 5)]
    model = Tasks().train()
    objective = Objective.of(model, batches[:1])
    if accumulation == 2:
        window = objective.window(batches)
        with pytest.raises(ValueError, match="labels of different kinds.*gradient_accumulation_steps to 1"):
            objective(model, batches[0], window, StepSettings())
        torch.manual_seed(0)
        losses = [objective(model, batch, window, StepSettings(num_passes=1))[0].loss for batch in batches]
        torch.manual_seed(0)
        expected = [model(**batch)["loss"] / 2 for batch in batches]  # of as many rows each
        assert torch.allclose(torch.stack(losses), torch.stack(expected))
        return
    for batch, problem in zip(batches, ("single_label", "regression"), strict=True):
        terms, _ = objective(model, batch, objective.window([batch]), StepSettings())
        assert terms.divergence > 0 and objective.plan.head.problem == problem


class Levels(torch.nn.Module):
    """Of five grades, four logits say whether the grade is above the first, the second, ..."""

    def __init__(self):
        super().__init__()
        self.embed, self.dropout, self.out = torch.nn.Embedding(40, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 4)

    def forward(self, input_ids, labels):
        logits = self.out(self.dropout(self.embed(input_ids)).mean(1))
        above = (labels[:, None] > torch.arange(4, device=labels.device)).float()
        return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, above), "logits": logits}


SAYS_SO = {"problem": "multi_label"}, {"problem": "single_label"}, {"heads": [Head(problem="multi_label")]}


@pytest.mark.parametrize(
    "grades, said_so, warns",
    [([0, 1, 4, 2], {}, True), ([0, 1, 3, 2], {}, False), *(([0, 1, 4, 2], said_so, False) for said_so in SAYS_SO)],
)
def test_more_labels_than_logits_are_not_taken_for_classes_in_silence(grades, said_so, warns, caplog):
    logging.enable_propagation()
    logging.get_logger("rdrop_trainer.objective.labels").warning_once.__func__.cache_clear()
    try:
        model, batch = Levels().train(), {"input_ids": IDS, "labels": torch.tensor(grades)}
        objective = Objective.of(model, [batch], **said_so)
        objective(model, batch, objective.window([batch]), StepSettings())
    finally:
        logging.disable_propagation()
    warning = 'A label is 4, but there are 4 logits for a row.*rdrop_problem="single_label".*"multi_label"'
    assert [bool(re.search(warning, text)) for text in caplog.messages] == [True] * warns


@pytest.mark.parametrize(
    "classes, labels, problem, warning",
    [
        (1, torch.tensor([0, 1, 1, 0]), "regression", 'labels of this batch are all 0 or 1.*="multi_label"'),
        (1, torch.tensor([0, 5, 1, 0]), "regression", None),  # stars
        (1, torch.tensor([1, 1, 1, 1]), "regression", None),  # which of two is better
        (1, torch.tensor([0.0, 1.0, 1.0, 0.0]), "regression", None),
        (3, torch.tensor([0.1, 0.9, 0.5, 0.3]), "regression", None),  # quantiles, or a mean and a variance
        (3, torch.tensor([0.0, 2.0, 1.0, 0.0]), "regression", 'whole numbers from 0 to 2.*="single_label"'),
        (3, torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]), "multi_label", None),
    ],
)
def test_a_stock_classifier_under_a_loss_of_the_user(classes, labels, problem, warning, caplog):
    model = BertForSequenceClassification(BertConfig(**tiny.SIZES, num_labels=classes)).train()
    batch = {"input_ids": IDS, "labels": labels}
    logging.enable_propagation()
    logging.get_logger("rdrop_trainer.objective.labels").warning_once.__func__.cache_clear()
    try:
        objective = Objective.of(
            model, [batch], loss_function=lambda outputs, labels, num_items_in_batch: outputs.logits.square().mean()
        )
        for passes in (1, 2):
            assert not caplog.messages  # nothing is compared in one pass
            objective(model, batch, objective.window([batch]), StepSettings(num_passes=passes))
    finally:
        logging.disable_propagation()
    assert objective.plan.head.problem == problem
    assert [bool(re.search(warning or "", text)) for text in caplog.messages] == [True] * bool(warning)


def test_integers_that_are_no_yes_or_no_of_a_stock_classifier_are_not_compared():
    labels = torch.tensor([[0, 7], [1, 3], [1, 9], [0, 2]])
    model, batch = BertForSequenceClassification(BertConfig(**tiny.SIZES)).train(), {"input_ids": IDS, "labels": labels}
    objective = Objective.of(model, [batch], loss_function=lambda *args, **kwargs: model.classifier.weight.sum())
    window = objective.window([batch])
    assert objective(model, batch, window, StepSettings(num_passes=1))[0].loss.isfinite()
    with pytest.raises(ValueError, match=r"integers of the shape \(4, 2\), .* neither 0 nor 1"):
        objective(model, batch, window, StepSettings())


def test_tags_of_a_stock_classifier_of_rows_are_refused():
    model = BertForSequenceClassification(BertConfig(**tiny.SIZES)).train()
    batch = {"input_ids": IDS, "labels": torch.zeros(4, 6, dtype=torch.long)}
    objective = Objective.of(model, [batch], loss_function=lambda *args, **kwargs: model.classifier.weight.sum())
    with pytest.raises(ValueError, match=r"single-label classification.* for labels \(24,\)"):
        objective(model, batch, objective.window([batch]), StepSettings())


def test_a_problem_that_transformers_writes_at_the_first_forward_is_not_stated(tmp_path, caplog):
    """The commonest trainer hands the labels on to the model too."""

    class OwnLoss(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            labels = inputs.get("labels").float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits[:, 0], labels)
            return (loss, outputs) if return_outputs else loss

    model = BertForSequenceClassification(BertConfig(**tiny.SIZES, num_labels=1))
    data = [{"input_ids": row.tolist(), "labels": i % 2} for i, row in enumerate(IDS)]
    trainer = tiny.trainer(model, data, tmp_path, OwnLoss, data_collator=default_data_collator)
    logging.enable_propagation()
    logging.get_logger("rdrop_trainer.objective.labels").warning_once.__func__.cache_clear()
    try:
        trainer.train()
    finally:
        logging.disable_propagation()
    assert model.config.problem_type == "regression" and "labels of this batch are all 0 or 1" in caplog.text
