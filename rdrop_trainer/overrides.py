"""Methods that a subclass defines in front of R-Drop's own, and what they may do to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def overriding(cls: type, method: str, ours: type) -> type | None:
    """The class whose method stands in front of that of `ours`, or None."""
    first = next(base for base in cls.__mro__ if method in vars(base))
    return None if first is ours else first


def check_order(cls: type, ours: type, trainer: type) -> None:
    """Refuse a class in which `Trainer`'s own methods come before R-Drop's, which would then do nothing.

    Raises:
        TypeError: for `class Mine(MyTrainer, RDropMixin)`.
    """
    order = cls.__mro__
    if trainer in order and order.index(trainer) < order.index(ours):
        names = [base.__name__ for base in cls.__bases__ if not issubclass(base, ours)]
        raise TypeError(
            f"{cls.__name__} has {ours.__name__} after {', '.join(names)}, where R-Drop is off. Put it first: "
            f"class {cls.__name__}({ours.__name__}, {', '.join(names)})."
        )


def calls_super(owner: type, method: str) -> bool:
    """Whether a method of a class seems to call that of another: by `super()`, or by its name."""
    names = _names(vars(owner)[method])
    return "super" in names or method in names


def divides_again(cls: type, ours: type) -> bool:
    """Whether a `training_step` of its own seems to divide the loss by the accumulation steps."""
    owner = overriding(cls, "training_step", ours)
    if owner is None:
        return False
    names = _names(vars(owner)["training_step"])
    return "super" not in names and any("gradient_accumulation_steps" in name for name in names)


def _names(function: Any) -> tuple[str, ...]:
    """The names that the code of a function uses."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return () if code is None else code.co_names


def with_taken(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without `num_items_in_batch`, where a function of an old signature does not take it."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind == p.VAR_KEYWORD or p.name == "num_items_in_batch" for p in parameters):
        return arguments
    return {name: value for name, value in arguments.items() if name != "num_items_in_batch"}
