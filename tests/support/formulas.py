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
    """(loss, task, divergence). passes: list of (N, C) tensors; labels: list of N labels, None or -100 = unlabeled."""
    passes = [z.double() for z in passes]
    m, n = len(passes), len(passes[0])
    task = passes[0].sum() * 0
    divergence = passes[0].sum() * 0
    labeled = 0
    for i in range(n):
        label = labels[i]
        if not (problem == "single_label" and int(label) == -100):
            labeled += 1
            task = task + sum(task_loss(z[i], label, problem, smoothing) for z in passes) / m
        pairs = [pair_divergence(passes[a][i], passes[b][i], problem) for a in range(m) for b in range(a + 1, m)]
        divergence = divergence + sum(pairs) / len(pairs)
    task = task / max(num_items if num_items is not None else labeled, 1)
    divergence = divergence / (num_divergence_items if num_divergence_items is not None else n)
    return task + alpha / 2 * divergence, task, divergence


# ---- The same for logits of any size, by log-probabilities; a class that is -inf in every pass is left out ----


def stable_item(z, label, problem, smoothing):
    """(task, divergence) of one item; z: (m, C). Task loss None: unlabeled."""
    m = len(z)
    if problem == "regression":
        task = ((z - label) ** 2).mean()
        apart = [((z[a] - z[b]) ** 2).mean() for a in range(m) for b in range(a + 1, m)]
    elif problem == "multi_label":
        yes, no = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
        task = -(label * yes + (1 - label) * no).mean()
        apart = [
            0.5 * ((yes[a].exp() - yes[b].exp()) * (yes[a] - yes[b])).sum()
            + 0.5 * ((no[a].exp() - no[b].exp()) * (no[a] - no[b])).sum()
            for a in range(m)
            for b in range(a + 1, m)
        ]
    else:
        kept = ~torch.isneginf(z).all(0)
        log_p = torch.log_softmax(z[:, kept], -1)
        task = None
        if label != -100:
            place = int(kept[:label].sum())
            task = -(1 - smoothing) * log_p[:, place].mean() - smoothing * log_p.sum(-1).mean() / z.shape[1]
        kl = [[(log_p[a].exp() * (log_p[a] - log_p[b])).sum() for b in range(m)] for a in range(m)]
        apart = [0.5 * (kl[a][b] + kl[b][a]) for a in range(m) for b in range(a + 1, m)]
    return task, sum(apart) / len(apart) if apart else None


def stable_rdrop(z, labels, mask, alpha, problem, smoothing=0.0, num_items=None, num_divergence_items=None, mean=True):
    """(loss, task, divergence) of z: (m, N, C) in float64; labels: N of them, or None; mask: N booleans."""
    task = divergence = z.nan_to_num(neginf=0).sum() * 0
    labeled = counted = 0
    for i in range(z.shape[1]):
        if not mask[i]:
            continue
        counted += 1
        has_label = labels is not None and not (problem == "single_label" and int(labels[i]) == -100)
        own, apart = stable_item(
            z[:, i], labels[i] if has_label else (-100 if problem == "single_label" else 0), problem, smoothing
        )
        if has_label:
            labeled += 1
            task = task + own
        divergence = divergence if apart is None else divergence + apart
    if labels is None and problem != "single_label":
        labeled = counted
    task = task / ((num_items if num_items is not None else labeled) or 1)
    default = counted if mean else 1
    divergence = divergence / ((num_divergence_items if num_divergence_items is not None else default) or 1)
    return task + alpha / 2 * divergence, task, divergence
