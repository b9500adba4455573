"""R-Drop by its definition, in float64, pair by pair and item by item. Imports nothing of the package."""

import torch


def softmax_kl(a, b):
    """KL(softmax(a) || softmax(b)) of two vectors, by the definition."""
    p, q = torch.softmax(a, 0), torch.softmax(b, 0)
    return sum(p[v] * (torch.log(p[v]) - torch.log(q[v])) for v in range(len(p)) if p[v] > 0)


def bernoulli_kl(a, b):
    """KL of independent Bernoulli variables with logits a and b, summed over classes."""
    p, q = torch.sigmoid(a), torch.sigmoid(b)
    terms = p * (torch.log(p) - torch.log(q)) + (1 - p) * (torch.log(1 - p) - torch.log(1 - q))
    return terms.sum()


def pair_divergence(a, b, problem):
    if problem == "regression":
        return ((a - b) ** 2).mean()
    kl = softmax_kl if problem == "single_label" else bernoulli_kl
    return 0.5 * (kl(a, b) + kl(b, a))


def task_loss(z, label, problem, smoothing=0.0):
    if problem == "regression":
        return ((z - label) ** 2).mean()
    if problem == "multi_label":
        p = torch.sigmoid(z)
        return -(label * torch.log(p) + (1 - label) * torch.log(1 - p)).mean()
    log_p = torch.log(torch.softmax(z, 0))
    return -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()


def rdrop(passes, labels, alpha, problem="single_label", num_items=None, num_divergence_items=None, smoothing=0.0):
    """(loss, task, divergence). passes: list of (N, C) tensors; labels: list of N labels, None or -100 = unlabelled."""
    passes = [z.double() for z in passes]
    m, n = len(passes), len(passes[0])
    task = passes[0].sum() * 0
    divergence = passes[0].sum() * 0
    labelled = 0
    for i in range(n):
        label = labels[i]
        if not (problem == "single_label" and int(label) == -100):
            labelled += 1
            task = task + sum(task_loss(z[i], label, problem, smoothing) for z in passes) / m
        pairs = [pair_divergence(passes[a][i], passes[b][i], problem) for a in range(m) for b in range(a + 1, m)]
        divergence = divergence + sum(pairs) / len(pairs)
    task = task / max(num_items if num_items is not None else labelled, 1)
    divergence = divergence / (num_divergence_items if num_divergence_items is not None else n)
    return task + alpha / 2 * divergence, task, divergence
