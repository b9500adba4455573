"""The loss without R-Drop: `Trainer`'s, or that of a `compute_loss` of the user's, below R-Drop's class or in front."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from inspect import getattr_static
from typing import Any

from torch import nn
from transformers import Trainer

from ._mixin_base import MixinBase
from .objective.head_of import base_model
from .objective.task_loss import TrainerLoss, decoder_inputs
from .overrides import calls_super, name_of, overriding, takes, with_taken


class BaseLossMixin(MixinBase):
    """Finds and calls the `compute_loss` that R-Drop's takes the place of."""

    _phase: str | None = None  # "train", "evaluate", or "loss": within the compute_loss of another class
    _override: type | None = None  # the class of one in front that does not call ours; ours then calls it

    def _base_loss(self, model: nn.Module, inputs: dict[str, Any], **arguments: Any) -> Any:
        """`compute_loss` without R-Drop."""
        if self.label_smoother is not None or self.compute_loss_func is not None:
            # It may take the labels away, and with them what a decoder's inputs are made of
            inputs = {**inputs, **(decoder_inputs(self._base_model(), inputs) or {})}
        compute_loss = super().compute_loss
        if self._override is not None and self._phase != "loss":
            compute_loss = getattr_static(type(self), "compute_loss")
            if hasattr(compute_loss, "__get__"):
                compute_loss = compute_loss.__get__(self, type(self))
        with self._in_phase("loss"):
            return compute_loss(model, inputs, **with_taken(compute_loss, arguments))

    def _trainer_loss(self) -> TrainerLoss | None:
        """The same as a source of the task loss; None where it is that of `Trainer` itself."""
        owner = self._override
        below: Any = super().compute_loss
        if owner is None and getattr(below, "__func__", below) is not Trainer.compute_loss:
            order = type(self).__mro__
            owner = next(cls for cls in order[order.index(BaseLossMixin) + 1 :] if issubclass(cls, Trainer))
        if owner is None:
            return None
        return TrainerLoss(self._base_model(), self._base_loss, name_of(owner), type(self).__name__)

    @contextmanager
    def _before_overrides(self, ours: type):
        """Within it, `Trainer` calls the `compute_loss` of R-Drop's class, `ours`, even if one in front of it would not
        call it: R-Drop's then calls that one, for the task loss.
        """
        owner = overriding(type(self), "compute_loss", ours)
        is_set = "compute_loss" in vars(self)  # by us already, or on this one trainer by its user
        takes_count = takes(type(self).compute_loss, "num_items_in_batch")
        calls_ours = takes_count and calls_super(type(self), "compute_loss", ours)
        if owner is None or is_set or calls_ours:
            yield
            return
        self._override, vars(self)["compute_loss"] = owner, partial(vars(ours)["compute_loss"], self)
        try:
            yield
        finally:
            self._override = None
            del vars(self)["compute_loss"]

    @contextmanager
    def _in_phase(self, phase: str):
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    def _base_model(self) -> nn.Module:
        return base_model(self.accelerator.unwrap_model(self.model))
