"""The chunked backend beside the definition in float64."""

import torch.nn.functional as F

from rdrop_trainer.losses import rdrop_loss
from support.formulas import relative


def loss_of(logits, labels, **settings):
    return rdrop_loss(logits, labels, implementation="chunked", **{"alpha": 4.0, **settings})


def definition(logits, labels, alpha=4.0, num_passes=2, label_smoothing=0.0, mask=None):
    """`formulas.rdrop`, vectorised for many classes, in float64; checked against it below."""
    z = logits.double().unflatten(0, (num_passes, -1))
    if mask is not None:
        z, labels = z[:, mask], labels[mask]
    log_p = z.log_softmax(-1)
    ignored = int((labels != -100).sum()) == 0
    task = F.cross_entropy(z.flatten(0, 1), labels.repeat(num_passes), label_smoothing=label_smoothing)
    task = z.sum() * 0 if ignored else task
    p = log_p.exp()
    divergence = ((p - p.mean(0)) * (log_p - log_p.mean(0))).sum((0, 2)).mean() / max(num_passes - 1, 1)
    return task + alpha / 2 * divergence, task, divergence


def compare(logits, labels, tolerance=1e-6, expected=definition, **settings):
    """Loss, terms and gradient against a definition in float64."""
    given, exact = logits.detach().clone().requires_grad_(), logits.detach().double().requires_grad_()
    result, wanted = loss_of(given, labels, **settings), expected(exact, labels, **settings)
    for got, want in zip(result, wanted, strict=True):
        assert relative(got.detach(), want.detach()) < tolerance
    result.loss.backward()
    wanted[0].backward()
    assert relative(given.grad, exact.grad) < tolerance
    return given.grad
