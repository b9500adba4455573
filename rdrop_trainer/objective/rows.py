"""The rows of a batch: how many there are, all of them several times over, some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from ..losses import devices

# Entries that describe sequences packed into one row: repeating rows would leave them pointing into the first pass.
PACKING_KEYS = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "max_length_q", "max_length_k", "seq_idx"})


def find_batch_size(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """B, the rows of the model's main input, or of the first tensor where the model does not say which that is."""
    main = inputs.get(getattr(model, "main_input_name", "input_ids"))
    for value in [main, *inputs.values()]:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value.shape[0]
    raise ValueError(f"No tensor with rows among the inputs: {', '.join(inputs)}.")


def _change_rows(
    inputs: Mapping[str, Any],
    batch_size: int,
    of_tensor: Callable[[torch.Tensor, int], torch.Tensor],
    of_list: Callable[[Any], Any],
    refused: Callable[[str], ValueError],
    follows: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """Inputs of which the tensors and lists of B rows are changed, and all else is passed on: numbers, flags, settings
    such as a list of layers, single-row tensors that broadcast.

    Args:
        inputs: of B rows.
        batch_size: B.
        of_tensor: changes a tensor, whose axis of the rows it is given.
        of_list: changes a list or tuple.
        refused: the error where it is not known what belongs to a row.
        follows: whether entries have a value for each row, where that is known; the others are judged by their form.
    """

    def change(key: str, value: Any, is_of_rows: bool = False) -> Any:
        if key in PACKING_KEYS and value is not None:
            raise refused(f"{key!r} describes sequences packed into rows")
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            axis = _axis_of_rows(key, value)
            if value.shape[axis] == batch_size:
                return of_tensor(value, axis)
            if value.shape[0] == 1 and value.dim() > 1 and axis == 0:
                return value
            raise refused(f"{key!r} has the shape {tuple(value.shape)}")
        if isinstance(value, Mapping):
            made: Callable[[dict[str, Any]], Any] = type(value)
            return made({k: change(f"{key}.{k}", v) for k, v in value.items()})
        if type(value) not in (list, tuple) or not value:
            return value
        if type(value) is tuple and any(isinstance(v, torch.Tensor) for v in value):
            return tuple(change(f"{key}[{i}]", v) for i, v in enumerate(value))
        if not is_of_rows and all(isinstance(v, (bool, int, float)) for v in value):
            return value
        if len(value) == batch_size:
            return of_list(value)
        raise refused(f"{key!r} is a {type(value).__name__} of {len(value)} entries")

    known = follows or {}
    return {
        key: value if known.get(key) is False else change(key, value, known.get(key, False))
        for key, value in inputs.items()
    }


def _axis_of_rows(key: str, value: torch.Tensor) -> int:
    """The position numbers of multi-axis rotary embeddings are (axes, B, T)."""
    return 1 if key == "position_ids" and value.dim() == 3 else 0


def device_of(inputs: Mapping[str, Any]) -> torch.device:
    """Where a batch is."""
    return next((value.device for value in inputs.values() if isinstance(value, torch.Tensor)), torch.device("cpu"))


def copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with tensors of their own, for code of the user's, which may write to what it gets."""
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}


@contextmanager
def refusing_writes(values: Mapping[str, Any], message: str) -> Iterator[None]:
    """Refuses code of the user's that writes to tensors among some values. Inference tensors do not show it.

    Args:
        values: by name.
        message: of the `ValueError`, with {} for the name of the tensor.
    """
    tensors = {name: v for name, v in values.items() if isinstance(v, torch.Tensor) and not v.is_inference()}
    before = {name: tensor._version for name, tensor in tensors.items()}
    yield
    for name, tensor in tensors.items():
        if tensor._version != before[name]:
            raise ValueError(message.format(repr(name)))


def repeat_rows(
    inputs: Mapping[str, Any], num_passes: int, batch_size: int, follows: Mapping[str, bool] | None = None
) -> dict[str, Any]:
    """The batch `num_passes` times over, whole batch after whole batch; the inputs themselves stay as they are.

    Raises:
        ValueError: packed sequences, or a tensor or list with another number of rows than the batch.
    """

    def repeated(value: torch.Tensor, axis: int) -> torch.Tensor:
        return value.repeat(*[num_passes if i == axis else 1 for i in range(value.dim())])

    def unrepeatable(what: str) -> ValueError:
        return ValueError(
            f"The batch of {batch_size} rows cannot be repeated for R-Drop's single forward: {what}. "
            'Use rdrop_forward_mode="sequential", which calls the model once per pass with the inputs as they are.'
        )

    refuse_packed(inputs, batch_size)
    return _change_rows(inputs, batch_size, repeated, lambda rows: rows * num_passes, unrepeatable, follows)


def stack_rows(
    of_passes: Sequence[Mapping[str, Any]], batch_size: int, follows: Mapping[str, bool] | None
) -> dict[str, Any]:
    """The inputs of all passes in one batch, those of the first pass first; see `repeat_rows`.

    Raises:
        ValueError: as `repeat_rows`; or passes with an entry of different shapes, or of one that is not for each row.
    """
    first = of_passes[0]
    together = repeat_rows(first, len(of_passes), batch_size, follows)
    for key, value in first.items():
        values = [inputs[key] for inputs in of_passes]
        if all(other is value for other in values):
            continue
        fault = None
        if not isinstance(value, torch.Tensor) or together[key] is value:
            fault = "has no value for each row"
        elif len(shapes := {tuple(other.shape): None for other in values}) > 1:
            fault = f"has the shapes {' and '.join(map(str, shapes))}"
        if fault:
            raise ValueError(
                f"The passes cannot run in one forward: {key!r}, which second_view changed, {fault}. Let it keep the "
                'shape, or use rdrop_forward_mode="sequential".'
            )
        together[key] = torch.cat(values, _axis_of_rows(key, value))
    return together


def doubtful_entries(inputs: Mapping[str, Any], batch_size: int, known: Collection[str]) -> dict[str, bool]:
    """The entries whose form does not tell whether they have a value for each row, and what they are taken for.

    These are lists of B numbers, and tensors with one dimension or square: weights of rows or of classes, say, or costs
    of pairs of classes. Of floating numbers any size is in doubt, of integers B, as others may point at rows.

    Args:
        known: keys of entries that are known to follow rows, such as labels.
    """
    doubtful = {}
    for key, value in inputs.items():
        if key in known or key in PACKING_KEYS:
            continue
        if isinstance(value, torch.Tensor):
            is_either = value.dim() == 1 or (value.dim() == 2 and value.shape[0] == value.shape[1] > 1)
            if is_either and (value.shape[0] == batch_size or value.is_floating_point()):
                doubtful[key] = value.shape[0] == batch_size
        elif type(value) in (list, tuple) and len(value) == batch_size:
            if all(isinstance(v, (int, float)) for v in value):
                doubtful[key] = False
    return doubtful


def refuse_packed(inputs: Mapping[str, Any], batch_size: int, wait: bool = False) -> None:
    """Refuse several sequences in one row: flash attention tells them apart only where the batch is that one row.

    Raises:
        ValueError: position numbers that start again within the row.
    """
    positions = inputs.get("position_ids")
    if not isinstance(positions, torch.Tensor) or positions.dim() != 2 or batch_size != 1:
        return
    if inputs.get("attention_mask") is None:
        devices.require(
            (positions.diff(dim=-1) > 0).all(),
            "The batch cannot be repeated for R-Drop's single forward: 'position_ids' start again within its row, so "
            'several sequences are packed into it. Use rdrop_forward_mode="sequential".',
            wait,
        )


def spread_rows(share: float, batch_size: int) -> list[int]:
    """A share of the rows of a batch, rounded up, evenly spaced, in order.

    They are as random as the order of the rows, and the same wherever they are asked for.
    """
    n = max(1, math.ceil(share * batch_size - 1e-9))
    return [i * batch_size // n for i in range(n)]


def rows_of(value: torch.Tensor, rows: Sequence[int], axis: int = 0) -> torch.Tensor:
    """Some rows of a tensor, without an index, which would have to be copied to its device."""
    each = value.unbind(axis)
    return torch.stack([each[row] for row in rows], axis)


def pick_rows(inputs: Mapping[str, Any], rows: Sequence[int], total: int) -> dict[str, Any]:
    """Some rows of a batch of `total` rows; what has a value for each row is told as in `repeat_rows`.

    Raises:
        ValueError: as `repeat_rows`.
    """

    def not_of_rows(what: str) -> ValueError:
        return ValueError(
            f"Some of the {total} rows alone cannot go through another pass: {what}, so its part of a row is not "
            "known. Leave rdrop_row_share at 1."
        )

    def picked(values: Any) -> Any:
        return type(values)(values[row] for row in rows)

    return _change_rows(inputs, total, lambda value, axis: rows_of(value, rows, axis), picked, not_of_rows)


def take_rows(value: Any, rows: slice, total: int) -> Any:
    """Some rows of an input or output, wherever tensors of `total` rows stand in it; all else as it is."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() > 0 and value.shape[0] == total else value
    if isinstance(value, Mapping):
        return type(value)(**{k: take_rows(v, rows, total) for k, v in value.items()})
    if isinstance(value, tuple):
        parts = (take_rows(v, rows, total) for v in value)
        made: Callable[..., Any] | None = getattr(value, "_make", None)
        return tuple(parts) if made is None else made(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: take_rows(getattr(value, f.name), rows, total) for f in fields(value) if f.init}
        )
    return value
