"""The commonest override of a trainer, and one step of training with it."""

import torch
from torch import nn

from support import tiny, zoo

WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
# Of one class, so that the weighted means of batches average to the whole's
OF_CLASS_2 = [{**row, "labels": 2} for row in tiny.dataset(rows=8)]


def weighted(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """Class weights."""
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    loss = nn.functional.cross_entropy(outputs.logits, labels, WEIGHTS.to(outputs.logits)) * 3
    return (loss, outputs) if return_outputs else loss


def run(cls, tmp_path, rows=2, steps=4, data=OF_CLASS_2, **arguments):
    """One step of SGD: minus the gradient, and what was logged."""
    model = zoo.noisy("single_label")
    trainer = tiny.trainer(
        model, data, tmp_path, cls, per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
        logging_steps=1, train_sampling_strategy="sequential", **tiny.PURE_SGD, **arguments,
    )  # fmt: skip
    return tiny.trained(trainer), trainer
