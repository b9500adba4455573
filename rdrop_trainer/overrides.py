"""Methods that a subclass defines in front of R-Drop's own, and what they may do to it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def overriding(cls: type, method: str, ours: type) -> type | None:
    """The class whose method stands in front of that of `ours`, or None."""
    first = next(base for base in cls.__mro__ if method in vars(base))
    return None if first is ours else first


def name_of(cls: type) -> str:
    """A class for a message; with its package where it has the name of one of transformers', as many trainers have."""
    is_trainers = cls.__name__ in ("Trainer", "Seq2SeqTrainer")
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}" if is_trainers else cls.__name__


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


def calls_super(cls: type, method: str, ours: type) -> bool:
    """Whether the methods in front of that of `ours` all seem to call the one after them, and so ours."""
    in_front = cls.__mro__[: cls.__mro__.index(ours)]
    return all(_calls_next(owner, method) for owner in in_front if method in vars(owner))


def _calls_next(owner: type, method: str) -> bool:
    """By `super()`, or by the name of a base class."""
    code = getattr(inspect.unwrap(vars(owner)[method]), "__code__", None)
    names = () if code is None else code.co_names
    return method in names and not {"super", *(base.__name__ for base in owner.__mro__[1:])}.isdisjoint(names)


def own_loop(cls: type, ours: type, trainer: type, train_ran: bool) -> str | None:
    """The training loop that some class has in the place of `Trainer`'s, by name; None: there is none.

    Args:
        train_ran: its `train` was seen to go on to the loop, whatever the code of an override looks like.
    """
    known = {*ours.__mro__, *trainer.__mro__}
    for owner in cls.__mro__:
        for method in ("train", "_inner_training_loop", "_run_epoch")[train_ran:]:
            if owner not in known and method in vars(owner) and not _calls_next(owner, method):
                return f"{method} of {name_of(owner)}"
    return None


def check_not_divided_again(cls: type, ours: type, trainer: type) -> None:
    """Refuse a `training_step` that, unlike `Trainer`'s, divides the loss by the accumulation steps in any case.

    Raises:
        ValueError: the `training_step` of some class of `cls` does.
    """
    for owner in cls.__mro__:
        if owner in (ours, trainer) or "training_step" not in vars(owner):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(vars(owner)["training_step"]))))
        except (OSError, TypeError, SyntaxError):  # no source to read
            continue
        # What is detached is only logged
        divisors = [
            node.right if isinstance(node, ast.BinOp) else node.value
            for node in ast.walk(tree)
            if isinstance(node, (ast.BinOp, ast.AugAssign))
            and type(node.op) is ast.Div
            and "detach" not in ast.unparse(node)
        ]
        asks = any(getattr(node, "attr", "") == "loss_is_scaled_for_ga" for node in ast.walk(tree))
        if not asks and any("gradient_accumulation_steps" in ast.unparse(divisor) for divisor in divisors):
            raise ValueError(
                f"The training_step of {name_of(owner)} divides by the accumulation steps, but R-Drop's loss is this "
                "micro-batch's share of the step's already: do not divide it, or call super().training_step(...)."
            )


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes a keyword argument; those of an old signature may not."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind == p.VAR_KEYWORD or p.name == name for p in parameters)


def with_taken(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that a function does not take."""
    return {name: value for name, value in arguments.items() if takes(function, name)}
