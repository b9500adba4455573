"""Is a loss what it is taken for, and are the logits those of the output head alone?

Each check takes a plan, and returns a better one.

`model` is what `compute_loss` gets, without `DistributedDataParallel`; `batch` a micro-batch. All processes make the
same checks in the same micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers.utils import logging

from .heads import PredictionHead
from .items import Items
from .lm_head import CannotFuse, LMHead
from .passes import Passes
from .plan import Plan
from .rows import copied, find_batch_size, take_rows
from .task_loss import FunctionLoss, ModelLoss, StockLoss, TrainerLoss, decoder_inputs
from .training import Training
from .window import StepSettings, Window

logger = logging.get_logger(__name__)


def compare_model_loss(
    training: Training, plan: Plan, passes: Passes, items: Sequence[Items], batch: Mapping[str, Any]
) -> Plan:
    """Is the loss that the model returned the stock loss of its head? If it is not, it is kept from here on."""
    stock = plan.task_loss
    if not isinstance(stock, StockLoss) or stock.comparison is None:
        return plan
    if passes.chosen is not None:  # the model's loss counted some rows more often than others
        passes = training.probe(training.model, batch, stock, plan.head)
        [items] = plan.items(passes, batch)
    own = passes.loss()
    if own is None:
        return replace(plan, task_loss=replace(stock, comparison=None))
    kept = replace(plan, task_loss=ModelLoss(stock.base))
    if any(key.endswith(("aux_loss", "z_loss")) and run[key] is not None for run in passes.runs for key in run):
        return kept  # a router adds to it, maybe less than the comparison would see
    loss = stock_loss(training, plan.head, passes, items, batch)
    if plan.head.misread_by_stock_code(batch):
        own = own.new_full((), torch.nan)  # so that this batch decides nothing
    if plan.head.summed:  # over the rows of all passes that ran together
        own = own * len(passes.runs) / passes.num_passes
    tolerance = training.tolerance(own, items[0].outputs[0])
    margin = max(training.margin(z) for z in items[0].outputs)
    comparison = stock.comparison.compare(own.detach(), loss, tolerance, training.on_any_process, margin)
    if not comparison.differs:
        return replace(plan, task_loss=replace(stock, comparison=None if comparison.done else comparison))
    logger.warning(
        f"The model returns a loss of {own.item():.6g} where the stock loss of its head would be {loss.item():.6g}; "
        "its own loss is kept for the task part, and R-Drop adds the divergence to it."
    )
    return kept


def compare_trainer_loss(training: Training, plan: Plan, model: nn.Module, batch: Mapping[str, Any]) -> Plan:
    """Does a base trainer return logits beside its loss? If not, the loss must be one that R-Drop can compute.

    Logits without a gradient do not count: trl's `SFTTrainer` makes them in another forward, for metrics.

    Raises:
        ValueError: the loss can neither be kept nor replaced.
    """
    trainer, head = training.trainer_loss, plan.head
    own, counting = probe_trainer_loss(training, model, batch, trainer, head)
    if counting.counts is not None:
        plan = replace(plan, task_loss=replace(counting, of_heads=plan.task_loss.of_heads))
    logits = [own.get(name) for name in head.outputs]
    if all(value is not None and value[0].requires_grad for value in logits):
        return replace(plan, trainer_comparison=None)
    loss = own.loss().detach()
    del own, logits  # and with them the activations that they hold
    if isinstance(plan.task_loss, TrainerLoss):
        plan = replace(plan, task_loss=training.loss_of_model(head))
    passes = training.probe(model, batch, plan.task_loss, head)
    items = head.items(passes, batch, 1)
    kept = passes.loss() if plan.task_loss.needs_logits else stock_loss(training, plan.head, passes, items, batch)
    if kept is None:
        raise ValueError(
            f"{trainer.trainer_name} returns no logits with its loss, and {training.model_name} no loss with "
            "its logits, so R-Drop has nothing to keep. Return a `loss`, or pass compute_loss_func."
        )
    tolerance = training.tolerance(loss, items[0].outputs[0], by_products=True)
    comparison = plan.trainer_comparison.compare(loss, kept, tolerance, training.on_any_process)
    if comparison.differs:
        names = " or ".join(head.outputs)
        raise ValueError(
            f"The compute_loss of {trainer.trainer_name} returns {loss.item():.6g} where the loss for {head.name} is "
            f"{kept.item():.6g}, and no {names} beside it that have a gradient, so R-Drop can neither keep this loss "
            f"nor replace it. Let compute_loss(..., return_outputs=True) return the {names} it is made of."
        )
    return replace(plan, trainer_comparison=None if comparison.done else comparison)


@contextmanager
def _without_backward(source: TrainerLoss, model: nn.Module) -> Iterator[None]:
    """Refuse a loss that makes or changes gradients of the model."""

    def gradients() -> list[tuple[int, int] | None]:
        return [None if (g := p.grad) is None else (id(g), g._version) for p in model.parameters()]

    before = gradients()
    yield
    if gradients() != before:
        raise ValueError(
            f"The {source.computed_by} runs a backward of its own, which R-Drop would repeat in every pass: let it "
            "return the whole loss instead, or do that in a training_step."
        )


def probe_trainer_loss(
    training: Training,
    model: nn.Module,
    batch: Mapping[str, Any],
    source: TrainerLoss,
    head: PredictionHead,
) -> tuple[Passes, TrainerLoss]:
    """`Training.probe` of a base trainer's loss, and how it is called: with the number of items where it needs it.

    Raises:
        ValueError: it adds to the gradients of the model.
    """
    with _without_backward(source, model):
        try:
            return training.probe(model, batch, source, head), source
        except TypeError:  # such as a division by the count, which is None
            source = replace(source, counts=head)
            return training.probe(model, batch, source, head), source


def compare_function(training: Training, plan: Plan, model: nn.Module, batch: Mapping[str, Any]) -> Plan:
    """Is the loss of a base trainer what the user's function gives?

    Raises:
        ValueError: the trainer makes something else of it, or does not use it.
    """
    trainer, function = training.trainer_loss, plan.task_loss
    assert isinstance(function, FunctionLoss)
    count = plan.head.count(batch)[:, 0].sum()
    with training.aside(trainer.takes_gradients), _without_backward(trainer, model):
        # Where a count is shared between processes, `Trainer` multiplies the loss by their number
        loss = trainer.compute_loss(model, copied(batch), num_items_in_batch=count * training.sharing).detach()
    with training.aside():
        outputs = model(**copied(function.inputs(batch, plan.head)))
        expected = function.of(outputs, batch, count)
    tolerance = training.tolerance(loss, expected, by_products=True)
    comparison = plan.trainer_comparison.compare(loss, expected, tolerance, training.on_any_process)
    if comparison.differs:
        raise ValueError(
            f"The {trainer.computed_by} returns {loss.item():.6g} where compute_loss_func gives {expected.item():.6g}, "
            "so it is not clear which of them is the task loss. Pass no compute_loss_func, or let compute_loss return "
            "what it gives."
        )
    return replace(plan, trainer_comparison=None if comparison.done else comparison)


def find_use_of_count(training: Training, plan: Plan, passes: Passes, batch: Mapping[str, Any], count: Any) -> Plan:
    """Does the user's function divide by the window's count, or return a mean over the batch, as most do?

    Raises:
        ValueError: it does neither.
    """
    source = plan.task_loss
    if not isinstance(source, FunctionLoss) or source.uses_count is not None or count is None:
        return plan
    with torch.no_grad():
        losses = []
        for n in (count, 2 * count):
            with training.same_noise():
                losses.append(source.of(passes.output(0), batch, n).float())
    once, twice = losses
    margin = training.tolerance(once) * once.abs()
    known = once.isfinite() & (once != 0)  # a batch without labels does not tell
    kinds = [known, known & ((2 * twice - once).abs() <= margin), known & ((twice - once).abs() <= margin)]
    batches, counts, means = training.sum_over_processes(torch.stack(kinds).float()).tolist()
    if batches == 0:
        return plan
    if batches not in (counts, means):
        raise ValueError(
            f"compute_loss_func returns {once.item():.6g} for num_items_in_batch={int(count)} and {twice.item():.6g} "
            "for twice as many, so it is not clear how to add up its losses. Let it divide the summed loss by "
            "num_items_in_batch, or return the mean over the labeled items of the batch."
        )
    return replace(plan, task_loss=replace(source, uses_count=batches == counts))


def find_lm_head(training: Training, plan: Plan, batch: Mapping[str, Any], settings: StepSettings) -> Plan:
    """Can the output head of a language model be fused? It is compared with the model's logits once.

    Raises:
        ValueError: it is to be fused, and sharded over processes.
    """
    try:
        if plan.task_loss.needs_logits is None:
            plan = plan if plan.lm_head is not None else _with_lm_head(training, plan, batch)
            if not plan.lm_head.verified or plan.task_loss.comparison is not None:
                plan = _compare_row(training, plan, batch)
        if plan.task_loss.needs_logits:
            raise CannotFuse(plan.task_loss.needs_logits)
    except CannotFuse as error:
        if error.sharded and settings.fused_head == "true":
            raise ValueError(
                f"rdrop_fused_head=True does not fit this training: {error}. Leave the output head out of the "
                'sharding, or set rdrop_fused_head to "auto" or False.'
            ) from None
        return replace(plan, lm_head=None, not_fused=str(error))
    return plan


def _with_lm_head(training: Training, plan: Plan, batch: Mapping[str, Any]) -> Plan:
    base = training.base
    if training.is_sharded:
        raise CannotFuse("FSDP shards the weights of the output head over processes", sharded=True)
    if training.is_compiled:
        raise CannotFuse("the model is compiled as a whole")
    if training.hidden_by:
        raise CannotFuse(training.hidden_by)
    if decoder_inputs(base, batch) is None:
        raise CannotFuse(f"{type(base).__name__} makes the inputs of its decoder from labels by itself")
    lm_head = LMHead.of(base)
    # The classes that are `verified` by their names have the stock loss
    return replace(plan, lm_head=lm_head, task_loss=StockLoss(base) if lm_head.verified else plan.task_loss)


def _compare_row(training: Training, plan: Plan, batch: Mapping[str, Any]) -> Plan:
    """Compare the head with the logits that the model returns for one row, and its loss with the stock loss.

    The loss too: of several processes one may fuse a micro-batch and another not, so their passes cannot tell.
    """
    size = find_batch_size(training.unwrapped, batch)
    row = {key: take_rows(value, slice(1), size) for key, value in batch.items()}
    same, outputs, reason = False, None, "its logits are not those of the output head alone"
    try:
        with training.aside():
            inputs, is_rounded = plan.task_loss.inputs(row, plan.head), training.tolerance(by_products=True) > 1e-4
            same, outputs = plan.lm_head.matches_logits(training.unwrapped, inputs, is_rounded)
    except CannotFuse as error:
        reason = str(error)
    except Exception as error:  # whatever goes wrong with a row by itself, the training can do without
        if should_reduce_batch_size(error):  # as with auto_find_batch_size
            raise
        reason = f"{type(error).__name__}: {error}"
    if training.on_any_process(not same):
        raise CannotFuse(reason)
    plan = replace(plan, lm_head=replace(plan.lm_head, verified=True))
    passes = Passes.of(outputs)
    return compare_model_loss(training, plan, passes, plan.head.items(passes, row, 1), row)


def stock_loss(
    training: Training, head: PredictionHead, passes: Passes, items: Sequence[Items], batch: Mapping[str, Any]
) -> torch.Tensor:
    """The stock task loss of one micro-batch, without a gradient."""
    window, settings = Window.count(head, [batch]), StepSettings(alpha=0.0, num_passes=passes.num_passes)
    with torch.no_grad():
        return window.terms(items, settings, label_smoothing=training.smoothing(head)).task_loss
