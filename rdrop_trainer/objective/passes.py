"""Running a model several times over the same batch, each time with fresh dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.utils import logging

from .lm_head import LMHead
from .outputs import by_name, entry_at, tensors_in, with_loss
from .recompute import recomputed
from .rows import copied, device_of, find_batch_size, pick_rows, rows_of, spread_rows, stack_rows, take_rows

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Passes:
    """What m passes over a batch of B rows returned.

    Attributes:
        runs: the outputs as dictionaries: one of m·B rows (all rows of pass 1 first), or m of B rows.
        raw: the model's own output objects, in the same order.
        num_passes: m.
        batch_size: B.
        chosen: the n rows that went through the passes behind the first, in order; None: all of them. With n of them,
            one run of all passes has B + (m - 1)·n rows, and one of a pass behind the first has n.
        lm_head: the output head in front of which the passes stopped, with its hidden states; None: they did not stop.
    """

    runs: list[dict[str, Any]]
    raw: list[Any]
    num_passes: int
    batch_size: int
    chosen: list[int] | None = None
    lm_head: LMHead | None = None

    @classmethod
    def of(cls, outputs: Any, names: Sequence[str] = ()) -> Passes:
        """One pass, by what the model returned for a batch with labels; `names` as in `run_passes`."""
        return cls([by_name(outputs, names)], [outputs], 1, 1)

    def __getitem__(self, key: str) -> tuple[torch.Tensor, ...]:
        """An output of all passes: one tensor of m·B rows, or m of B rows. "logits.1" is the second of "logits"."""
        found = self.get(key)
        if found is None:
            raise ValueError(self._why_missing(key))
        return found

    def _why_missing(self, key: str) -> str:
        if parts := tensors_in(self.runs[0].get(key), key):
            return (
                f"The model returns {len(parts)} tensors as {key!r}; which of them are logits, and of which "
                f'labels, say with rdrop_heads: Head(logits="{next(iter(parts))}", labels="..."), for example.'
            )
        held = [name for name, value in self.runs[0].items() if value is not None]
        remedy = (
            "rdrop_heads=[Head(logits=..., labels=...)] says which of its outputs are logits, and of which labels."
            if {*held} - {"loss"}
            else "Let its forward return its logits while it trains, or take a class that does: of XLNet, XLM "
            "and Flaubert the one that ends in ForQuestionAnsweringSimple."
        )
        return (
            f"R-Drop needs the model to return {key!r}, but {type(self.raw[0]).__name__} only holds: "
            f"{', '.join(held) or 'nothing'}. {remedy}"
        )

    def get(self, key: str) -> tuple[torch.Tensor, ...] | None:
        """The same; None if it is no tensor, or not there."""
        name, *path = key.split(".")
        found = [run.get(key, entry_at(run.get(name), path)) for run in self.runs]
        if not all(isinstance(value, torch.Tensor) for value in found):
            return None
        return tuple(found)

    def parts(self, names: Sequence[str]) -> list[tuple[Passes, list[int] | None]]:
        """Some outputs of the rows that went through all passes, and of those that went through the first alone.

        Each with the places of its rows in the batch; one part, and None, where all rows did the same.
        """
        if self.chosen is None:
            return [(self, None)]
        size, n = self.batch_size, len(self.chosen)
        rest = sorted({*range(size)} - {*self.chosen})
        pieces = {}
        for name in names:
            found = self[name]
            first, *later = found if len(found) > 1 else found[0].split([size, *[n] * (self.num_passes - 1)])
            pieces[name] = (rows_of(first, self.chosen), rows_of(first, rest), *later)
        chosen, others, *later = (
            {name: piece[i] for name, piece in pieces.items()} for i in range(self.num_passes + 1)
        )
        return [
            (replace(self, runs=[chosen, *later], batch_size=n, chosen=None), self.chosen),
            (replace(self, runs=[others], num_passes=1, batch_size=size - n, chosen=None), rest),
        ]

    @property
    def is_unnamed(self) -> bool:
        """The model returned a plain tuple."""
        return type(self.raw[0]) in (tuple, list)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All outputs that are tensors, one level deep, of the first run, by name; those of a tuple by position."""
        run = self.runs[0]
        keys = [key for key in run if key.isdigit()] if self.is_unnamed else [key for key in run if key != "loss"]
        return {name: value for key in keys for name, value in tensors_in(run[key], key).items()}

    def loss(self) -> torch.Tensor | None:
        """The model's own loss, mean over passes; None where the model computed none."""
        if any(run.get("loss") is None for run in self.runs):
            return None
        return torch.stack([run["loss"] for run in self.runs]).mean()

    def output(self, k: int) -> Any:
        """The output of pass k alone, in the model's own type, of B rows; behind the first, of the chosen ones."""
        if len(self.runs) == self.num_passes:
            return self.raw[k]
        n = self.batch_size if self.chosen is None else len(self.chosen)
        ends = [0, *range(self.batch_size, self.batch_size + self.num_passes * n, n)]
        return take_rows(self.raw[0], slice(ends[k], ends[k + 1]), ends[-1])

    def first_output(self, loss: torch.Tensor) -> Any:
        """The output of the first pass with another loss, which stands first, as `Trainer` expects it."""
        return with_loss(self.output(0), loss, "loss" in self.runs[0])


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, compiled where the wrapper is; or the model itself."""
    wrapper: Any = getattr(model, "_orig_mod", model)  # of torch.compile, which accelerate puts around all else
    if not isinstance(wrapper, DistributedDataParallel):
        return model
    inner = wrapper.module
    return inner if wrapper is model else type(model)(inner, model.dynamo_ctx)


def run_passes(
    model: nn.Module,
    inputs: Mapping[str, Any],
    num_passes: int,
    mode: str,
    call: Callable[[nn.Module, dict[str, Any]], Any] = lambda model, inputs: model(**inputs),
    names: Sequence[str] = ("logits",),
    follows: Mapping[str, bool] | None = None,
    later: Sequence[Mapping[str, Any]] = (),
    row_share: float = 1.0,
    one_row: bool | None = None,
) -> Passes:
    """Run the model `num_passes` times over `inputs`.

    Args:
        model: the model, or its wrapper for distributed training.
        inputs: keyword arguments of its forward, for B rows; never changed.
        num_passes: m, at least 1.
        mode: "concat" (one forward of m·B rows), "sequential" (m forwards) or "recompute" (m forwards, all but the
            last run again in the backward, so that they keep no activations). Sequential and recompute draw
            the same noise from the same random state: torch's, NumPy's and Python's. For one row, concat is sequential
            where the model `takes_one_row`.
        call: how the model is run on inputs.
        names: what the first entries of a plain tuple are called, behind its loss.
        follows: whether entries have a value for each row, where that is known; see `repeat_rows`.
        later: the inputs of the m - 1 passes behind the first one, where they differ; empty: all have the same.
        row_share: of the rows that go through those passes; see `spread_rows`.
        one_row: whether the model `takes_one_row`; None: it is looked at.

    Raises:
        ValueError: concat, and an entry whose rows cannot be repeated safely.
    """
    batch_size = find_batch_size(model, inputs)
    is_one_row = mode == "concat" and num_passes > 1 and batch_size == 1
    if is_one_row and (takes_one_row(model) if one_row is None else one_row):
        logger.warning_once(
            "The model has no padding token, so that it takes one row at a time: the passes run one after another, as "
            "with rdrop_forward_mode='sequential'."
        )
        mode = "sequential"
    of_passes = [inputs, *(later or [inputs] * (num_passes - 1))]
    some = spread_rows(row_share, batch_size)
    chosen = some if num_passes > 1 and len(some) < batch_size else None
    if mode == "concat" and num_passes > 1:
        together = stack_rows(of_passes, batch_size, follows)
        if chosen is not None:
            fed = [*range(batch_size), *(k * batch_size + row for k in range(1, num_passes) for row in chosen)]
            together = pick_rows(together, fed, num_passes * batch_size)
        outputs = [call(model, together)]
    else:
        if chosen is not None:
            of_passes[1:] = [pick_rows(rows, chosen, batch_size) for rows in of_passes[1:]]
        outputs = _one_by_one(model, of_passes, call, recompute=mode == "recompute")
    return Passes([by_name(o, names) for o in outputs], outputs, num_passes, batch_size, chosen)


def _one_by_one(
    model: nn.Module, of_passes: Sequence[Mapping[str, Any]], call: Callable[..., Any], recompute: bool
) -> list[Any]:
    """The outputs of a forward for each pass.

    DistributedDataParallel synchronises buffers and arms its gradient reduction at every call, so exactly one pass goes
    through the wrapper. When recomputing, that is the last one: the others run again in the middle of the backward.
    """
    inner = without_ddp(model)

    def forward(rows: Mapping[str, Any]) -> Any:
        return call(inner, copied(rows))

    if recompute:
        *first, last = of_passes
        again = [recomputed(partial(forward, rows), inner, device_of(rows)) for rows in first]
        return [*again, call(model, copied(last))]
    first, *others = of_passes
    return [call(model, copied(first)), *map(forward, others)]


def takes_one_row(model: nn.Module) -> bool:
    """Whether a model is a sequence classifier without a padding token.

    Where it is made of a decoder, it looks for the last token of every row, and refuses more rows than one.
    """
    modules: Iterator[Any] = model.modules()
    return any(
        any(base.__name__.endswith("ForSequenceClassification") for base in type(module).__mro__)
        and module.config.get_text_config().pad_token_id is None
        for module in modules
    )
