"""Four ways to spend less than a second pass of everything on R-Drop: what `cheap.py` measures.

Those that leave out a part of the second pass do it by hooks within the model: the trainer goes on seeing two passes of
all rows, so the loss, its normalisation over the optimizer step and all checks stay R-Drop's own.
"""

import math
from contextlib import contextmanager
from dataclasses import replace

import torch

from rdrop_trainer import RDropTrainer
from rdrop_trainer.objective.passes import take_rows


class LastPart(RDropTrainer):
    """R-Drop in the last part of the training, plain steps before.

    Args:
        start: share of the steps that are plain.
    """

    def __init__(self, *args, start, **kwargs):
        super().__init__(*args, **kwargs)
        self.start = start

    def _step_settings(self):
        settings = super()._step_settings()
        is_plain = self.state.global_step < self.start * self.state.max_steps
        return replace(settings, alpha=0.0, num_passes=1) if is_plain else settings


class PartOfRows(RDropTrainer):
    """A random share of the rows of each micro-batch has a second pass.

    The divergence is the mean over those of the whole optimizer step, the task loss that over all rows, where a row
    with two passes has the mean of both.

    Args:
        share: of the rows, rounded up.
    """

    def __init__(self, *args, share, **kwargs):
        super().__init__(*args, **kwargs)
        self.share = share

    def _chosen(self, rows):
        return math.ceil(self.share * rows)

    def _count_window(self, batches, shared=False):
        window = super()._count_window(batches, shared)
        chosen = sum(self._chosen(len(batch["labels"])) for batch in batches)
        return replace(window, divergence_items=torch.full_like(window.divergence_items, chosen))

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not model.training or self._step_settings().num_passes == 1:
            return super().compute_loss(model, inputs, *args, **kwargs)
        rows = len(inputs["labels"])
        with second_pass_of(self.model, torch.randperm(rows)[: self._chosen(rows)], rows):
            return super().compute_loss(model, inputs, *args, **kwargs)


class SharedLowerLayers(RDropTrainer):
    """The first layers run once, and the others once for each pass.

    Args:
        shared: how many layers run once, along with the embeddings.
    """

    def __init__(self, *args, shared, **kwargs):
        super().__init__(*args, **kwargs)
        self.shared = shared

    def compute_loss(self, model, inputs, *args, **kwargs):
        settings = self._step_settings()
        if not model.training or settings.num_passes == 1:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with shared_lower_layers(self.model, self.shared, len(inputs["labels"]), settings.num_passes):
            return super().compute_loss(model, inputs, *args, **kwargs)


# Name: (trainer, settings, its own arguments)
WAYS = {
    "every 2nd step": (RDropTrainer, {"rdrop_every_n_steps": 2}, {}),
    "second half": (LastPart, {}, {"start": 0.5}),
    "half of the rows": (PartOfRows, {}, {"share": 0.5}),
    "3 of 6 layers shared": (SharedLowerLayers, {}, {"shared": 3}),
    "4 of 6 layers shared": (SharedLowerLayers, {}, {"shared": 4}),
}


@contextmanager
def second_pass_of(model, chosen, rows):
    """Within it, a model of BERT's kind that is fed two passes of `rows` rows runs the second for the chosen only.

    The logits of all others are those of the first pass again, whose divergence is 0.
    """
    fed = torch.cat([torch.arange(rows), rows + chosen])
    source = torch.arange(rows).repeat(2)  # (2 * rows,): which of the fed rows each pair of logits comes from
    source[rows + chosen] = rows + torch.arange(len(chosen))
    handles = [
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: take_rows((args, kwargs), fed, 2 * rows), with_kwargs=True
        ),
        model.classifier.register_forward_hook(lambda module, args, logits: logits[source]),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def shared_lower_layers(model, shared, rows, num_passes):
    """Within it, a model of BERT's kind that is fed all passes of `rows` rows runs its first layers for one of them."""

    def repeat(value):
        is_of_rows = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows
        return value.repeat(num_passes, *[1] * (value.dim() - 1)) if is_of_rows else value

    def repeat_all(module, args, kwargs):
        return tuple(map(repeat, args)), {key: repeat(value) for key, value in kwargs.items()}

    handles = [
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: take_rows((args, kwargs), slice(rows), num_passes * rows), with_kwargs=True
        )
    ]
    for layer in model.base_model.encoder.layer[shared:]:
        handles.append(layer.register_forward_pre_hook(repeat_all, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
