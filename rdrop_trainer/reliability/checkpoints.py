"""Checkpoints that hold the weights under other names than the model's, or those of another model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from .._mixin_base import MixinBase

Shapes = Mapping[str, tuple[int, ...]]


def other_model(checkpoint: str | Path, model: nn.Module) -> str | None:
    """Why the weights of a checkpoint are not those of a model, in words.

    Names and sizes are compared, where the weights are in files of safetensors, which are opened but not read through.
    Weights that are missing or too many count where the model is one of transformers. Other names alone do not count:
    `save_pretrained` gives some weights others than the model does.

    Args:
        checkpoint: its folder.
        model: not wrapped.

    Returns:
        How they differ; None where they do not, or where that cannot be told.
    """
    saved = dict(_saved_shapes(Path(checkpoint)))
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differ = [name for name in own if saved.get(name, own[name]) != own[name]]
    if differ:
        before, now = (" x ".join(map(str, shapes[differ[0]])) for shapes in (saved, own))
        return f"it holds {_told_apart(checkpoint, model)[1]} ({differ[0]} is {before} there, {now} here)"
    if not saved or not isinstance(model, PreTrainedModel):
        return None
    missing, more = _missing(saved, model), list(_left_over(saved, own, model))
    trained = [name for name, weight in missing.items() if weight.requires_grad]
    if not trained and not more:
        return None
    same_class, what = _told_apart(checkpoint, model)
    if missing and more and same_class:  # which saves its weights under other names
        return None
    evidence = f"it has no {trained[0]}" if trained else f"it has {more[0]}, which this model lacks"
    return f"it holds {what} ({evidence})"


def _told_apart(checkpoint: str | Path, model: nn.Module) -> tuple[bool, str]:
    """Whether a checkpoint is of the class of a model, as far as is known; and what it holds, if that is another."""
    config, file = getattr(model, "config", None), Path(checkpoint) / CONFIG_NAME
    if isinstance(config, PreTrainedConfig) and file.is_file():
        before, own_class = json.loads(file.read_text(encoding="utf-8")), type(model).__name__
        if own_class not in (classes := before.get("architectures") or [own_class]):
            return False, f"a {classes[0]}, and this is a {own_class}"
        labels = len(before.get("id2label") or (0, 1))  # which are not written where they are two
        if labels != config.num_labels:
            return True, f"a model of {labels} labels, and this one has {config.num_labels}"
    return True, "a model of another size"


def _saved_shapes(checkpoint: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path in (checkpoint / SAFE_WEIGHTS_NAME, *sorted(checkpoint.glob("model-*-of-*.safetensors"))):
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, a file is no mapping
                    yield name, tuple(file.get_slice(name).get_shape())


def _missing(saved: Shapes, model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that are not saved under any of their names; those that are tied have several."""
    names: dict[int, dict[str, nn.Parameter]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), {})[name] = weight
    return dict(next(iter(tied.items())) for tied in names.values() if not saved.keys() & tied.keys())


def _left_over(saved: Shapes, own: Shapes, model: PreTrainedModel) -> Iterator[str]:
    """What is saved and not of the model. Older versions also saved buffers that are made anew."""
    known = {*own, *(name for name, _ in model.named_buffers())}
    ignored = [r"(^|\.)(position_ids|inv_freq)$", *(model._keys_to_ignore_on_load_unexpected or ())]
    return (name for name in saved if name not in known and not any(re.search(one, name) for one in ignored))


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
        # That of FSDP is in parts
        if not self.is_fsdp_enabled and (fault := other_model(resume_from_checkpoint, self.model)):
            raise ValueError(
                f"Can't resume from {resume_from_checkpoint}: {fault}. Name a checkpoint of this model; to begin from "
                "those weights instead, load the model from there."
            )
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
