"""The readable backend: the formulas as they are written, with gradients by autograd.

Each function takes the logits of all passes, (m, N, C), and returns one value per item, (N,). The divergence is the
mean over the pairs of passes a < b of ½ Σ_v (p_a - p_b)(z_a - z_b). As this is bilinear in probabilities p and logits
z, the mean equals 1/(m-1) Σ_k Σ_v (p_k - p̄)(z_k - z̄), with means over passes p̄ and z̄. So nothing here loops over
pairs, and m = 2 is not a special case.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
# A logit below this in all passes is a mask (-inf, -1e12, the smallest float32), not a prediction
MASKED_BELOW = -1e8


def single_label(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cross-entropy and categorical symmetric KL per item.

    Args:
        logits: (m, N, C). A class whose logit is -inf in all passes is masked: it contributes nothing.
        labels: (N,) integers, where -100 marks an unlabeled item, whose cross-entropy is 0; or (N, C) probabilities.
        label_smoothing: weight of the uniform distribution in the target.

    Returns:
        The cross-entropy, mean over passes, (N,), and the divergence (N,); None for a single pass.
    """
    log_probs = logits.log_softmax(-1)  # (m, N, C)
    masked = torch.isneginf(logits).all(0)  # (N, C)

    if labels.dim() == 2:
        labeled = labels.new_ones(len(labels), dtype=torch.bool)
        target = labels.to(log_probs.dtype)
        task = -(log_probs.masked_fill(target == 0, 0) * target).sum(-1)  # (m, N)
    else:
        labeled = labels != IGNORE_INDEX
        target = labels.where(labeled, 0).unsqueeze(-1)  # (N, 1)
        task = -log_probs.gather(-1, target.expand(log_probs.shape[0], -1, 1)).squeeze(-1)  # (m, N)
    if label_smoothing:
        uniform = -log_probs.masked_fill(masked, 0).mean(-1)  # (m, N)
        task = (1 - label_smoothing) * task + label_smoothing * uniform
    # `where` before the mean, and not a product with a mask: an unlabeled item may have an infinite loss at class 0
    task = task.where(labeled, 0).mean(0)

    # Deviations of log-probabilities, not of logits: a shift common to all classes of a pass would cost digits
    divergence = _bilinear(log_probs.exp(), log_probs.masked_fill(masked, 0))
    return task, divergence


def multi_label(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Binary cross-entropy, mean over classes, and Bernoulli symmetric KL, summed over classes, per item.

    Args:
        logits: (m, N, C). A class whose logit is -inf or below -1e8 in all passes is masked: it does not count, unless
            all classes of the item are so: that is no mask, but a model that has diverged.
        labels: (N, C) in [0, 1]; -100 marks a class that does not count.
        mask: (N, C) booleans, the classes that count; None: all.
    """
    logits, counted, scale = _counted(logits, mask, labels != IGNORE_INDEX)
    targets = labels.to(logits.dtype).expand_as(logits)
    # A class that is -inf in some passes would make `logit * 0` NaN; any number this large has the same sigmoid
    logits = logits.clamp(-1e30, 1e30)
    task = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").masked_fill(~counted, 0)
    task = task.mean(-1).mean(0) * scale
    # The smaller of sigmoid(z) and sigmoid(z) - 1 keeps its digits; their constant difference cancels
    probs = torch.where(logits[:1] > 0, -(-logits).sigmoid(), logits.sigmoid())
    return task, _bilinear(probs, logits)


def regression(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Squared error and squared difference between passes, both means over the D output dimensions, per item.

    Args:
        logits: (m, N, D) predictions. Masked as for `multi_label`.
        labels: (N, D) targets.
        mask: (N, D) booleans, the dimensions that count; None: all.

    Source: R-Drop paper, appendix A.4.
    """
    logits, counted, scale = _counted(logits, mask)
    task = (logits - labels.to(logits.dtype)).masked_fill(~counted, 0).square().mean(-1).mean(0) * scale
    divergence = _bilinear(logits, logits)
    return task, None if divergence is None else 2 * divergence / logits.shape[-1] * scale


def _counted(logits: torch.Tensor, *masks: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits (m, N, C) with 0 for entries that do not count; which count, (N, C); and C / their number, (N,)."""
    masked = (logits < MASKED_BELOW).all(0)
    counted = ~masked | masked.all(-1, keepdim=True)
    for mask in masks:
        counted = counted if mask is None else counted & mask
    # A mean over C times this is the mean over those that count, and the same bits where all do
    scale = logits.shape[-1] / counted.sum(-1).clamp(min=1).to(logits.dtype)
    return logits.masked_fill(~counted, 0), counted, scale


def _bilinear(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor | None:
    """Mean over pairs of passes a < b of ½ sum_v (p_a - p_b)(z_a - z_b), for p and z of shape (m, N, V): (N,)."""
    num_passes = p.shape[0]
    if num_passes == 1:
        return None
    z = z - z[0]  # a mean over passes of the largest numbers would overflow
    return ((p - p.mean(0)) * (z - z.mean(0))).sum(-1).sum(0) / (num_passes - 1)
