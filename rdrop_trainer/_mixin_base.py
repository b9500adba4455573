"""The base class of the trainer's mixins: `Trainer` to a type checker, nothing at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer as MixinBase
else:
    MixinBase = object
