"""Checkpoints that hold the weights under other names than the model's."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel

from .._mixin_base import MixinBase


class RenamedWeightsMixin(MixinBase):
    """The part of `RDropMixin` that loads such checkpoints whole, when a training resumes and when it ends.

    `save_pretrained` gives the weights of many models (ViT, vision-language models, ...) the names they have on the
    Hub. `Trainer` searches a checkpoint for the model's own names, does not find those layers, warns, and goes on with
    the weights that the model happens to have (transformers issue 43701).
    """

    _weights_missed = False  # by the current load

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        renamed = bool(load_result.missing_keys) and bool(load_result.unexpected_keys)
        self._weights_missed = renamed and isinstance(self.model, PreTrainedModel)
        if not self._weights_missed:
            super()._issue_warnings_after_load(load_result)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        # That of sentence-transformers takes the folder alone
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._load_missed(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_missed(self.state.best_model_checkpoint)

    def _load_missed(self, folder: str) -> None:
        if self._weights_missed:
            self._weights_missed = False
            model: Any = self.model
            saved, info = type(model).from_pretrained(
                folder, config=deepcopy(model.config), dtype="auto", output_loading_info=True
            )
            found = {name: value for name, value in saved.state_dict().items() if name not in info["missing_keys"]}
            super()._issue_warnings_after_load(model.load_state_dict(found, strict=False))
