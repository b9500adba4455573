"""What a model predicts, where its class does not say it: the labels of the first window, and one pass over them, tell.

Which outputs are logits, whether labels are of rows or of tokens, what their values are, and where they stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from accelerate.utils.memory import should_reduce_batch_size

from ..head import Head
from ..losses.reference import IGNORE_INDEX
from .alignment import aligned, usual_loss
from .comparisons import probe_trainer_loss
from .head_of import config_value, has_listed_head, runs_own_code
from .heads import TOKENS, PredictionHead, is_along_text, text_of
from .joint import JointHead
from .labels import with_values
from .passes import Passes
from .snapshot import same_modes
from .task_loss import TaskLoss, TrainerLoss
from .training import Training

_LOSSES_OF_VALUES = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits)

NAME_THEM = "Say it with rdrop_heads=[Head(logits=..., labels=...)]."


@dataclass(frozen=True)
class FirstLook:
    """One pass over a batch as in training, but without dropout, which leaves no trace.

    Attributes:
        passes: that pass.
        batch: on the device of the model.
        source: where the task loss comes from.
    """

    passes: Passes
    batch: dict[str, Any]
    source: TaskLoss

    @classmethod
    def at(cls, training: Training, head: PredictionHead, source: TaskLoss, batch: Mapping[str, Any]) -> FirstLook:
        batch = send_to_device(dict(batch), training.device)
        model = training.model
        with same_modes(model), training.without_dropout():
            model.train()  # `from_pretrained` leaves it in evaluation mode, where it may return other outputs
            if isinstance(source, TrainerLoss):
                passes, source = probe_trainer_loss(training, model, batch, source, head)
            else:
                passes = training.probe(model, batch, source, head)
        return cls(passes, batch, source)

    def logits(self, head: PredictionHead) -> torch.Tensor | None:
        """Those of the first part of a head."""
        found = self.passes.get(head.outputs[0])
        return None if found is None else found[0]


def judged(
    training: Training, kind: PredictionHead, task_loss: TaskLoss, batches: Sequence[Mapping[str, Any]]
) -> tuple[PredictionHead, TaskLoss]:
    """A better guess at the head than classes, settings and the type of the labels give; a collective.

    Args:
        training: of the model; a pass is run, `aside`, where the model's forward is not transformers', or its user
            names heads.
        kind: the head by class, settings and the type of the labels.

    Returns:
        The head, and the task loss, which may turn out to be that of several heads.

    Raises:
        ValueError: a loss that takes -100, the mark of a row without a label, for a value.
    """
    look = None
    if runs_own_code(training.base) or training.heads:
        look = FirstLook.at(training, kind, task_loss, batches[0])
    heads, named = list(kind.heads), training.heads or (Head(),)
    if look is not None:
        heads = [_with_logits(training, *pair, look) for pair in zip(heads, named, strict=True)]
        heads = _with_tokens(training, heads, named, look)
    if training.own_loss:
        heads = with_values(training, heads, named, [_has_one_logit(head, look) for head in heads], batches)
    if look is None:
        return JointHead.of(heads), task_loss
    _refuse_marks_as_values(training, heads, look)
    heads = [_doubted_yes_or_no(training, head, look) for head in heads]
    heads, is_sum = aligned(training, heads, named, look.passes, look.batch, look.source)
    head = JointHead.of(heads)
    source: Any = look.source
    return head, replace(source, of_heads=True) if is_sum and len(heads) > 1 else task_loss


# ---- Which outputs are logits ----


def _with_logits(training: Training, head: PredictionHead, named: Head, look: FirstLook) -> PredictionHead:
    """A head whose logits are known by position, where the model returns a plain tuple."""
    if not look.passes.is_unnamed or named.logits != "logits":
        return head
    tensors, wanted = look.passes.tensors(), len(head.outputs)
    flat = {name: z for name, z in tensors.items() if "." not in name}
    if list(flat) == [str(i) for i in range(wanted)]:
        return head  # nothing to choose from
    targets = head.targets(look.batch)[0]
    fitting = [name for name, z in flat.items() if _may_be_logits(head, z, targets)]
    fitting = fitting or [name for name, z in tensors.items() if "." in name and _may_be_logits(head, z, targets)]
    if len(fitting) > wanted == 1:
        classes = config_value(training.base, "num_labels")
        of_classes = [name for name in fitting if tensors[name].shape[-1] == classes]
        fitting = of_classes if len(of_classes) == 1 else fitting
    if len(fitting) > wanted == 1:
        of_loss = [name for name in fitting if _has_usual_loss(training, replace(head, outputs=(name,)), look)]
        fitting = of_loss if len(of_loss) == 1 else fitting
    if len(fitting) == wanted:
        return replace(head, outputs=tuple(fitting))
    shapes = ", ".join(f"{name}: {tuple(z.shape)}" for name, z in tensors.items()) or "no tensor"
    return replace(
        head,
        doubt=f"{training.model_name} returns a tuple, and {len(fitting)} of its entries ({shapes}; the loss "
        f"is not counted) may be the logits for {' and '.join(head.labels)} {tuple(targets.shape)}. {NAME_THEM}",
    )


def _may_be_logits(head: PredictionHead, z: torch.Tensor, targets: torch.Tensor) -> bool:
    """Whether a tensor has the shape of logits for some labels."""
    if not z.is_floating_point() or z.dim() == 0 or z.shape[0] != targets.shape[0]:
        return False
    if head.positions:
        return z.dim() == 2
    if head.tokens:
        is_squeezed = z.shape == targets.shape and not head.language_model
        return is_squeezed or (z.dim() == 3 and z.shape[1] >= targets.shape[1] and _has_classes(head, z, targets))
    if head.problem == "single_label" and not head.soft:
        return z.dim() == 1 or (z.dim() == 2 and _has_classes(head, z, targets))
    return z.numel() == targets.numel()


def _has_classes(head: PredictionHead, z: torch.Tensor, targets: torch.Tensor) -> bool:
    if head.problem != "single_label" or z.shape[-1] == 1 or targets.numel() == 0:
        return True
    return bool(targets.max() < z.shape[-1])


def _has_usual_loss(training: Training, head: PredictionHead, look: FirstLook) -> bool:
    """Whether the model's own loss is the usual one of a head."""
    own, [items] = look.passes.loss(), head.items(look.passes, look.batch, 1)
    return own is not None and bool(
        (own - usual_loss(items)).abs() <= training.tolerance(own, *items.outputs) * own.abs()
    )


# ---- Rows or tokens ----


def _with_tokens(
    training: Training, heads: list[PredictionHead], named: Sequence[Head], look: FirstLook
) -> list[PredictionHead]:
    """Labels (B, T) for logits (B, T, 1), or (B, T) that follow the length of the text, look like rows of columns."""
    if has_listed_head(training.base) and not training.heads:
        return heads
    pairs = zip(heads, named, strict=True)
    forms = [_rows_or_tokens(head, look) if spec.align == "auto" else "rows" for head, spec in pairs]
    if training.on_any_process("either" in forms):
        follow = _follow_the_text(training, heads, look)
        forms = ["tokens" if form == "either" and f else form for form, f in zip(forms, follow, strict=True)]
    votes = training.on_any_process([form == "tokens" for form in forms])
    # All else stays as the user or the class said it
    return [
        replace(head, name=TOKENS[head.problem].name, tokens=True, unlabeled_mask=TOKENS[head.problem].unlabeled_mask)
        if vote
        else head
        for head, vote in zip(heads, votes, strict=True)
    ]


def _rows_or_tokens(head: PredictionHead, look: FirstLook) -> str:
    """What labels and logits of these shapes are of: "rows", "tokens" or "either"."""
    labels, logits = look.batch[head.labels[0]], look.logits(head)
    is_text = text_of(look.batch) is not None
    has_columns = labels.dim() == 2 and labels.shape[1] > 1
    if logits is None or not has_columns or head.tokens or head.problem == "single_label":
        return "rows"
    if is_text and not is_along_text(labels, look.batch):
        return "rows"
    if logits.dim() == 3 and logits.shape[0] == labels.shape[0] and logits.shape[1] >= labels.shape[1]:
        return "tokens"
    return "either" if is_text and logits.shape == labels.shape else "rows"


def _follow_the_text(training: Training, heads: list[PredictionHead], look: FirstLook) -> list[bool]:
    """Whether logits have a column less where the text has a token less."""
    shape = text_of(look.batch).shape[:2]
    shorter = {k: v[:, :-1] if torch.is_tensor(v) and v.shape[:2] == shape else v for k, v in look.batch.items()}
    try:
        again = FirstLook.at(training, JointHead.of(heads), look.source, shorter)
    except Exception as error:  # the labels may be those of columns, one of which is missing now
        if should_reduce_batch_size(error):  # as with auto_find_batch_size
            raise
        return [False] * len(heads)
    found = [again.logits(head) for head in heads]
    return [z is not None and z.shape == (shape[0], shape[1] - 1) for z in found]


# ---- What their labels are ----


def _has_one_logit(head: PredictionHead, look: FirstLook | None) -> bool:
    """Whether an item was seen to have a single logit, whose dimension may be missing."""
    logits = None if look is None else look.logits(head)
    if logits is None or not head.allows_one_logit:
        return False
    squeezed = look.batch[head.labels[0]].shape if head.tokens else logits.shape[:1]
    return logits.shape[-1] == 1 or logits.shape == squeezed


def _refuse_marks_as_values(training: Training, heads: Sequence[PredictionHead], look: FirstLook) -> None:
    """Refuse a model whose own loss of one logit an item is what the usual losses are with the mark as a value."""
    own = look.passes.loss()
    for head in heads:
        labels, logits = look.batch[head.labels[0]], look.logits(head)
        if own is None or logits is None or labels.is_floating_point() or labels.numel() != logits.numel():
            continue
        if not bool((labels == IGNORE_INDEX).any()):
            continue
        z, y = logits.float().flatten(), labels.float().flatten()
        found = torch.stack([loss(z, y) for loss in _LOSSES_OF_VALUES])
        if bool(((own - found).abs() <= training.tolerance(own, logits) * found.abs()).any()):
            raise ValueError(
                f"{training.model_name} takes {IGNORE_INDEX}, the mark of a row without a label, for a value: "
                f"its loss is {own.item():.6g} with it. Let it leave such labels out of its loss, or leave out such "
                "rows (unlabeled_dataset makes some)."
            )


def _doubted_yes_or_no(training: Training, head: PredictionHead, look: FirstLook) -> PredictionHead:
    """A head in doubt where the model returns the probability of yes: its own loss is the usual one of such."""
    z, labels, own = look.logits(head), look.batch[head.labels[0]], look.passes.loss()
    is_binary = head.problem == "multi_label" or (head.problem == "single_label" and _has_one_logit(head, look))
    if head.doubt or not is_binary or z is None or own is None or labels.numel() != z.numel():
        return head
    z, y = z.float().flatten(), labels.float().flatten()
    if bool(((z < 0) | (z > 1) | (y < 0) | (y > 1)).any()):
        return head
    tolerance = training.tolerance(own, z)

    def is_own(loss: torch.Tensor) -> bool:
        return bool(((own - loss).abs() <= tolerance * loss.abs()) & (own > 0))

    # Of a few logits both losses may be the same by chance
    found = is_own(F.binary_cross_entropy(z, y)) and not is_own(F.binary_cross_entropy_with_logits(z, y))
    return replace(head, doubt=no_logits(training.model_name, head.outputs[0], "sigmoid")) if found else head


def no_logits(source: str, output: str, function: str) -> str:
    """What is wrong with outputs behind a softmax or a sigmoid, which R-Drop takes itself."""
    return (
        f"{source} returns probabilities as {output!r}, of which R-Drop would take the {function} once more. "
        f"Let it return the logits in front of its {function}."
    )
