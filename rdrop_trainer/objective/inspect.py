"""One look at the first window of a training makes its plan; further looks, at later batches, make a better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .._extras import lost_windows
from ..head import Head
from ..losses import RDropLoss, devices
from .comparisons import (
    compare_function,
    compare_model_loss,
    compare_trainer_loss,
    find_lm_head,
    find_use_of_count,
)
from .forward_modes import check_repeated_rows, check_repeats
from .head_of import head_of, heads_of
from .heads import QUESTION_ANSWERING, PredictionHead
from .items import Items
from .joint import JointHead
from .judge import judged, no_logits
from .labels import check_range, refuse_marked_rows, warn_of_doubtful_labels
from .loss_comparison import LossComparison
from .noise import ITEMS, NoiseWatch, is_rounding, refuse_evaluation_mode, trains
from .passes import Passes, takes_one_row, without_ddp
from .plan import Plan
from .rows import find_batch_size, refuse_packed
from .task_loss import check_item_by_item
from .training import Training
from .window import StepSettings, Window

logger = logging.get_logger(__name__)

_FEW_ITEMS = 4  # of fewer, logits may add up to 1 by chance


def first_plan(training: Training, batches: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan by classes, settings and the labels of a window; a collective.

    A forward pass, `aside`, is made only of a model whose forward is not transformers', or whose user names its heads.

    Raises:
        ValueError: a head that R-Drop does not fit, batches without labels, or labels that it has no class for.
    """
    kind = _kind_of(training, batches, wait=True)
    check_range(training, kind, batches)
    if kind.positions and (fault := lost_windows()):
        logger.warning_once(fault)
    head, task_loss = judged(training, kind, training.task_loss(kind), batches)
    comparison = None if training.trainer_loss is None else LossComparison()
    mixture = _mixture(training, kind, batches)
    return Plan(kind, {kind: head}, task_loss, trainer_comparison=comparison, mixture=mixture)


def next_plan(training: Training, plan: Plan, batches: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan for a later window, whose labels may be of another kind."""
    kind = _kind_of(training, batches)
    check_range(training, kind, [batch for batch in batches if devices.can_read(batch[kind.labels[0]])])
    plan = replace(plan, kind=kind, mixture=_mixture(training, kind, batches))
    if kind in plan.heads:
        return plan
    # `judged` is a collective, and other processes may not see this kind now: it stays a first guess
    head = judged(training, kind, plan.task_loss, batches)[0] if training.processes == 1 else kind
    return replace(plan, heads={**plan.heads, kind: head})


def _kind_of(training: Training, batches: Sequence[Mapping[str, Any]], wait: bool = False) -> PredictionHead:
    """The head by classes, settings and the type of the labels, which all batches must have; see `Plan`."""
    head = _kind_of_batch(training, batches[0])
    for batch in batches:
        if any(batch.get(key) is None for key in head.labels):
            raise ValueError(
                f"R-Drop needs `{'` and `'.join(head.labels)}` in every training batch, got only: {', '.join(batch)}."
                + (" Rows without a label carry -100." if "labels" in head.labels else "")
            )
    if head.task_problem == "regression" and not head.own_loss:
        refuse_marked_rows(batches, wait)
    return head


def _kind_of_batch(training: Training, batch: Mapping[str, Any]) -> PredictionHead:
    if heads := _named_heads(training, batch):
        parts = heads_of(training.base, batch, heads, training.own_loss)
    else:
        _check_labeled(training, batch)
        parts = [head_of(training.base, batch, training.problem, training.own_loss)]
    peft = getattr(training.unwrapped, "active_peft_config", None)
    if peft is not None and peft.is_prompt_learning and peft.peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
        parts = [replace(part, soft_prompt=True) for part in parts]
    return JointHead.of(parts)


def _mixture(training: Training, kind: PredictionHead, batches: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with micro-batches whose labels are of different kinds; None: they are of one."""
    for batch in batches[1:]:
        if _forms(kind, batch) != _forms(kind, batches[0]) and _kind_of_batch(training, batch) != kind:
            return (
                "The micro-batches of one optimizer step have labels of different kinds, which R-Drop cannot count "
                f"together: {_forms(kind, batches[0])} and {_forms(kind, batch)}. Let all micro-batches of a step be "
                "of one task, or set gradient_accumulation_steps to 1."
            )
    return None


def _forms(head: PredictionHead, batch: Mapping[str, Any]) -> str:
    """What the labels of a batch are, by their type and their dimensions."""
    kinds = (("numbers" if batch[key].is_floating_point() else "integers", batch[key].dim()) for key in head.labels)
    return ", ".join(f"{what} of {dimensions} dimension(s)" for what, dimensions in kinds)


def _check_labeled(training: Training, batch: Any) -> None:
    """Refuse a base trainer whose loss needs no labels, by its name."""
    labeled = isinstance(batch, Mapping) and any(key in batch for key in ("labels", "start_positions"))
    if training.trainer_loss is not None and training.loss_function is None and not labeled:
        raise ValueError(
            f"R-Drop does not fit {training.trainer_loss.defined_in}: its batches hold no `labels`, which tell the "
            "items (rows, tokens) whose predictions two passes share"
            + (f"; got only: {', '.join(batch)}." if isinstance(batch, Mapping) else ".")
            + ' Labels of another name are named by label_names=["..."].'
        )


def _named_heads(training: Training, batch: Mapping[str, Any]) -> Sequence[Head]:
    """The heads that the user named, by `rdrop_heads`, or one whose labels he named, by `Trainer`'s `label_names`."""
    if training.heads or not isinstance(batch, Mapping) or len(training.label_names) != 1:
        return training.heads
    [name] = training.label_names
    is_other = "labels" not in batch and name in batch and name not in QUESTION_ANSWERING.labels
    # A model that makes its own input anew has that input as labels for the evaluation
    is_other = is_other and name != getattr(training.base, "main_input_name", None)
    return [Head(labels=name, problem=training.problem)] if is_other else ()


def before_passes(
    training: Training, plan: Plan, model: nn.Module, batch: Mapping[str, Any], settings: StepSettings
) -> Plan:
    """What must be known before the passes over a micro-batch.

    Raises:
        ValueError: a task loss that can neither be kept nor replaced, or that depends on the number of rows; labels of
            different kinds in one step; a model that does something else when it runs again; an output head that is to
            be fused, and sharded.
    """
    model = without_ddp(model)
    if plan.trainer_comparison is not None:
        compare = compare_trainer_loss if training.loss_function is None else compare_function
        plan = compare(training, plan, model, batch)
    if plan.may_fuse(settings) and plan.not_fused is None:
        plan = find_lm_head(training, plan, batch, settings)
    if settings.num_passes == 1:
        return plan
    if plan.mixture:
        raise ValueError(plan.mixture)
    if settings.forward_mode == "concat":
        return _before_repeated_rows(training, plan, model, batch, settings.num_passes)
    if settings.forward_mode == "recompute" and not plan.repeats:
        return check_repeats(training, plan, model, batch, settings)
    return plan


def _before_repeated_rows(
    training: Training, plan: Plan, model: nn.Module, batch: Mapping[str, Any], num_passes: int
) -> Plan:
    size = find_batch_size(model, batch)
    if size == 1 and plan.one_row is None:
        plan = replace(plan, one_row=takes_one_row(model))
    if size == 1 and plan.one_row:
        return plan
    if plan.noise is not None:  # the first steps, where a device may be waited for
        refuse_packed(batch, size, wait=True)
    if plan.task_loss.computed_by is not None and not plan.rows_checked:
        plan = check_repeated_rows(training, plan, model, batch, num_passes)
    return plan


def after_passes(
    training: Training,
    plan: Plan,
    passes: Passes,
    items: list[Items],
    batch: Mapping[str, Any],
    window: Window,
    settings: StepSettings,
    count: Any,
) -> Plan:
    """What the passes over a micro-batch tell.

    Raises:
        ValueError: the model has no noise, a loss function does not say how its losses add up, or some rows are left
            out of a loss that is not made item by item.
    """
    if passes.num_passes > 1 and plan.noise is not None:
        plan = replace(plan, noise=_watch_noise(training, plan, passes, items, batch, window, settings))
    elif passes.num_passes > 1 and not trains(training.model):
        # Where an evaluation left it so, maybe on this process alone: it cannot ask the others
        if settings.second_view is None and not settings.allow_deterministic:
            refuse_evaluation_mode(training.model, _some(items, settings.num_passes))
    plan = find_use_of_count(training, plan, passes, batch, count)
    if plan.lm_head is None:
        plan = compare_model_loss(training, plan, passes, items, batch)
    if window.row_share < 1:
        check_item_by_item(plan.task_loss)  # the model's own loss may have turned out to be another
    return plan


def check_divergence(
    training: Training, plan: Plan, items: Sequence[Items], terms: RDropLoss, settings: StepSettings
) -> Plan:
    """Does the divergence of a micro-batch see that its passes differ, and have a gradient, and is it one of logits for
    the classes of the labels? Checked once, after noise was seen.

    Raises:
        ValueError: it is exactly 0 although they differ, nothing learns from it, or it is one of probabilities.
    """
    if plan.divergence_checked or plan.noise is not None or settings.num_passes == 1:
        return plan
    for head, spec, part in zip(plan.head.heads, training.heads or (Head(),), items, strict=False):
        warn_of_doubtful_labels(training, head, spec, part)
    compared = [_some_of(part, settings.num_passes) for part in items]
    for part, passes, name in zip(items, compared, plan.head.outputs, strict=True):
        if passes.numel() > 0 and terms.loss.requires_grad and not part.outputs[0].requires_grad:
            raise ValueError(
                f"The {name!r} that {training.model_name} returns have no gradient, so nothing would learn "
                "from their divergence: return them without detach(), and no copies made under torch.no_grad()."
            )
        if part.problem == "single_label" and _are_probabilities(passes, training.tolerance(passes)):
            source = plan.task_loss.computed_by or training.model_name
            raise ValueError(no_logits(source, name, "softmax"))
    passes = compared[0]
    differ = passes.numel() > 0 and not bool((passes == passes[:1]).all()) and not is_rounding(passes)
    differ, is_seen = training.on_any_process([differ, bool(terms.divergence != 0)])
    if differ and not is_seen:
        raise ValueError(
            f"The passes of {training.model_name} differ, but their divergence is exactly 0: R-Drop took the "
            f"model's {passes.shape[-1]} logit(s) per item for {plan.head.name} ({items[0].problem}). Say what it "
            'predicts with rdrop_problem="single_label", "multi_label" or "regression".'
        )
    return replace(plan, divergence_checked=is_seen or settings.allow_deterministic)


def _are_probabilities(passes: torch.Tensor, tolerance: float) -> bool:
    """Whether the rows of passes, (m, N, C), are no less than 0 and add up to 1."""
    if passes.shape[1] < _FEW_ITEMS or passes.shape[-1] == 1:
        return False
    return bool((passes >= 0).all() & ((passes.float().sum(-1) - 1).abs() <= tolerance).all())


def _some_of(part: Items, num_passes: int) -> torch.Tensor:
    """The outputs of some items in all passes, (m, n, C)."""
    return part.counted(num_passes, ITEMS)[0].detach()


def _some(items: Sequence[Items], num_passes: int) -> torch.Tensor:
    """The same of every part, (m, ...): noise may reach a single one."""
    return torch.cat([_some_of(part, num_passes).flatten(1) for part in items], 1)


def _watch_noise(training, plan, passes, items, batch, window, settings) -> NoiseWatch | None:
    def again() -> torch.Tensor:
        # Without a view, which may change as little as rounding does, and the same each time
        same = replace(settings, second_view=None)
        with training.aside(plan.task_loss.takes_gradients):
            repeated = plan.run(training.model, batch, same, passes.lm_head, row_share=window.row_share)
        return _some(plan.items(repeated, batch)[0], settings.num_passes)

    is_one_forward = settings.forward_mode == "concat"
    return plan.noise.compare(
        training, settings, window, _some(items, settings.num_passes), again if is_one_forward else None
    )
