"""Labels that are none of a head's classes."""

import pytest
import torch

from rdrop_trainer import Objective, RDropTrainer
from support import tiny, zoo


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
