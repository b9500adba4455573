"""Four ways to spend less than a second pass of everything on R-Drop: what `cheap.py` measures.

Shared layers are made by hooks within the model: the trainer goes on seeing two passes of all rows, so the loss, its
normalisation over the optimizer step and all checks stay R-Drop's own.
"""

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
    "half of the rows": (RDropTrainer, {"rdrop_row_share": 0.5}, {}),
    "quarter of the rows": (RDropTrainer, {"rdrop_row_share": 0.25}, {}),
    "3 of 6 layers shared": (SharedLowerLayers, {}, {"shared": 3}),
    "4 of 6 layers shared": (SharedLowerLayers, {}, {"shared": 4}),
}


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
