"""Running a model several times over the same batch, each time with fresh dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..losses import devices
from .snapshot import Snapshot

# Entries that describe sequences packed into one row: repeating rows would leave them pointing into the first pass.
PACKING_KEYS = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "max_length_q", "max_length_k", "seq_idx"})


@dataclass(frozen=True)
class Passes:
    """What m passes over a batch of B rows returned.

    Attributes:
        runs: the outputs as dictionaries: one of m·B rows (all rows of pass 1 first), or m of B rows.
        raw: the model's own output objects, in the same order.
        num_passes: m.
        batch_size: B.
    """

    runs: list[dict[str, Any]]
    raw: list[Any]
    num_passes: int
    batch_size: int

    @classmethod
    def of(cls, outputs: Any) -> Passes:
        """One pass, by what the model returned for a batch with labels."""
        return cls([_as_dict(outputs, has_loss=True)], [outputs], 1, 1)

    def __getitem__(self, key: str) -> tuple[torch.Tensor, ...]:
        """An output of all passes: one tensor of m·B rows, or m of B rows."""
        missing = [run for run in self.runs if run.get(key) is None]
        if missing:
            raise ValueError(
                f"R-Drop needs the model to return {key!r}, but {type(self.raw[0]).__name__} only holds: "
                f"{', '.join(k for k, v in missing[0].items() if v is not None) or 'nothing'}."
            )
        return tuple(run[key] for run in self.runs)

    def loss(self) -> torch.Tensor | None:
        """The model's own loss, mean over passes; None where the model computed none."""
        if any(run.get("loss") is None for run in self.runs):
            return None
        return torch.stack([run["loss"] for run in self.runs]).mean()

    def output(self, k: int) -> Any:
        """The output of pass k alone, in the model's own type, of B rows."""
        if len(self.runs) == self.num_passes:
            return self.raw[k]
        rows = slice(k * self.batch_size, (k + 1) * self.batch_size)
        return take_rows(self.raw[0], rows, self.num_passes * self.batch_size)

    def first_output(self, loss: torch.Tensor) -> Any:
        """The output of the first pass with another loss, which stands first, as `Trainer` expects it."""
        return with_loss(self.output(0), loss, "loss" in self.runs[0])


def with_loss(output: Any, loss: torch.Tensor, has_loss: bool) -> Any:
    """An output in its own type, with a loss in front, in the place of its own where it has one."""
    if isinstance(output, Mapping):
        merged = {"loss": loss, **{k: v for k, v in output.items() if k != "loss"}}
        takes_loss = not is_dataclass(output) or "loss" in {field.name for field in fields(output)}
        return type(output)(**merged) if takes_loss else merged
    rest = output if isinstance(output, tuple) else (output,)
    return (loss, *(rest[1:] if has_loss else rest))


def call_model(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """One forward of a model."""
    return model(**inputs)


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def run_passes(
    model: nn.Module,
    inputs: Mapping[str, Any],
    num_passes: int,
    mode: str,
    call: Callable[[nn.Module, dict[str, Any]], Any] = call_model,
) -> Passes:
    """Run the model `num_passes` times over `inputs`.

    Args:
        model: the model, or its wrapper for distributed training.
        inputs: keyword arguments of its forward, for B rows; never changed.
        num_passes: m, at least 1.
        mode: "concat" (one forward of m·B rows), "sequential" (m forwards) or "recompute" (m forwards, all but the
            last checkpointed without reentrance, so that they keep no activations). Sequential and recompute draw
            the same noise from the same random state: torch's, NumPy's and Python's.
        call: how the model is run on inputs.

    Raises:
        ValueError: concat, and an entry whose rows cannot be repeated safely.
    """
    batch_size = find_batch_size(model, inputs)
    if num_passes == 1:
        outputs = [call(model, dict(inputs))]
    elif mode == "concat":
        outputs = [call(model, repeat_rows(inputs, num_passes, batch_size))]
    else:
        # DistributedDataParallel synchronises buffers and arms its gradient reduction at every call, so exactly one
        # pass goes through the wrapper. When recomputing, that is the last one: a checkpointed pass runs again in the
        # middle of the backward.
        inner = without_ddp(model)
        if mode == "recompute":
            again = [checkpoint(_Repeatable(call, inner, inputs), use_reentrant=False) for _ in range(num_passes - 1)]
            outputs = [*again, call(model, dict(inputs))]
        else:
            outputs = [call(model, dict(inputs))] + [call(inner, dict(inputs)) for _ in range(num_passes - 1)]
    has_loss = any(inputs.get(key) is not None for key in ("labels", "start_positions"))
    return Passes([_as_dict(o, has_loss) for o in outputs], outputs, num_passes, batch_size)


class _Repeatable:
    """A pass that runs again in the backward as it ran at first, and then leaves everything as it found it."""

    def __init__(self, call: Callable[[nn.Module, dict[str, Any]], Any], model: nn.Module, inputs: Mapping[str, Any]):
        self.call, self.model, self.inputs = call, model, inputs
        self.start: Snapshot | None = None

    def __call__(self) -> Any:
        # A copy for each run: what a call takes out of its inputs must be there when it runs again
        if self.start is None:
            self.start = Snapshot(self.model)
            return self.call(self.model, dict(self.inputs))
        now = Snapshot(self.model)
        self.start.restore()
        try:
            return self.call(self.model, dict(self.inputs))
        finally:
            now.restore()


def find_batch_size(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """B, the rows of the model's main input, or of the first tensor where the model does not say which that is."""
    main = inputs.get(getattr(model, "main_input_name", "input_ids"))
    for value in [main, *inputs.values()]:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value.shape[0]
    raise ValueError(f"No tensor with rows among the inputs: {', '.join(inputs)}.")


def repeat_rows(inputs: Mapping[str, Any], num_passes: int, batch_size: int) -> dict[str, Any]:
    """The batch `num_passes` times over, whole batch after whole batch; the inputs themselves stay as they are.

    Tensors and lists of B rows are repeated, whatever is no batch entry (numbers, flags, single-row tensors that
    broadcast) is passed on.

    Raises:
        ValueError: packed sequences, or a tensor or list with another number of rows than the batch.
    """

    refuse_packed(inputs, batch_size)

    def repeat(key: str, value: Any) -> Any:
        if key in PACKING_KEYS and value is not None:
            raise _unrepeatable(f"{key!r} describes sequences packed into rows")
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            if key == "position_ids" and value.dim() == 3:  # (axes, B, T) of multi-axis rotary embeddings
                if value.shape[1] != batch_size:
                    raise _unrepeatable(f"{key!r} has {value.shape[1]} rows, shape {tuple(value.shape)}")
                return value.repeat(1, num_passes, 1)
            if value.shape[0] == batch_size:
                return value.repeat(num_passes, *[1] * (value.dim() - 1))
            if value.shape[0] == 1 and value.dim() > 1:
                return value
            raise _unrepeatable(f"{key!r} has {value.shape[0]} rows, shape {tuple(value.shape)}")
        if isinstance(value, Mapping):
            made: Callable[[dict[str, Any]], Any] = type(value)
            return made({k: repeat(f"{key}.{k}", v) for k, v in value.items()})
        if type(value) in (list, tuple) and value:
            if any(isinstance(v, torch.Tensor) for v in value) and type(value) is tuple:
                return tuple(repeat(f"{key}[{i}]", v) for i, v in enumerate(value))
            if all(isinstance(v, (bool, int, float)) for v in value):  # a setting, such as a list of layers
                return value
            if len(value) == batch_size:
                return value * num_passes
            raise _unrepeatable(f"{key!r} is a {type(value).__name__} of {len(value)} entries")
        return value

    def _unrepeatable(what: str) -> ValueError:
        return ValueError(
            f"The batch of {batch_size} rows cannot be repeated for R-Drop's single forward: {what}. "
            'Use rdrop_forward_mode="sequential", which calls the model once per pass with the inputs as they are.'
        )

    return {key: repeat(key, value) for key, value in inputs.items()}


def refuse_packed(inputs: Mapping[str, Any], batch_size: int, wait: bool = False) -> None:
    """Refuse several sequences in one row: flash attention tells them apart only where the batch is that one row.

    Args:
        inputs: of B rows.
        batch_size: B.
        wait: as in `devices.require`.

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


def _as_dict(outputs: Any, has_loss: bool) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, torch.Tensor):
        return {"logits": outputs}
    names = ("loss", "logits") if has_loss else ("logits",)
    return dict(zip(names, outputs, strict=False))


def take_rows(value: Any, rows: slice, total: int) -> Any:
    """Some rows of an input or output, wherever tensors of `total` rows stand in it; all else as it is."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() > 0 and value.shape[0] == total else value
    if isinstance(value, Mapping):
        return type(value)(**{k: take_rows(v, rows, total) for k, v in value.items()})
    if isinstance(value, tuple):
        return tuple(take_rows(v, rows, total) for v in value)
    return value
