"""R-Drop by its definition, in float64, pair by pair and item by item. Imports nothing of the package."""

import math

import torch
import torch.nn.functional as F


def softmax_kl(a, b):
    """KL(softmax(a) || softmax(b)) of two vectors, by the definition."""
    p, q = torch.softmax(a, 0), torch.softmax(b, 0)
    p, q = p[p > 0], q[p > 0]
    return (p * (torch.log(p) - torch.log(q))).sum()


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


def ctc(z, transcript, blank=0):
    """Minus the log-probability of a transcript by frames z, (T, C): over all ways, by the forward recursion."""
    log_p = torch.log_softmax(z.double(), -1)
    states = [blank, *(entry for label in transcript for entry in (label, blank))]
    never = torch.tensor(-math.inf, dtype=torch.float64)
    ways = [log_p[0, state] if i < 2 else never for i, state in enumerate(states)]
    for t in range(1, len(z)):
        skips = [i > 1 and state not in (blank, states[i - 2]) for i, state in enumerate(states)]
        came = [[ways[j] for j in range(i - 1 - skips[i], i + 1) if j >= 0] for i in range(len(states))]
        came = [[way for way in of if way != -math.inf] or [never] for of in came]
        ways = [torch.logsumexp(torch.stack(of), 0) + log_p[t, state] for of, state in zip(came, states, strict=True)]
    return -torch.logsumexp(torch.stack(ways[-2:]), 0)


def rdrop_ctc(passes, transcripts, lengths, alpha, blank=0, mean=True):
    """(loss, task, divergence) of passes, each (B, T, C) logits, of which each row has some valid frames."""
    valid = [[z[:length] for z, length in zip(rows, lengths, strict=True)] for rows in passes]
    losses = [
        ctc(z, transcript, blank) / (max(len(transcript), 1) if mean else 1)
        for rows in valid
        for z, transcript in zip(rows, transcripts, strict=True)
    ]
    task = sum(losses) / len(passes) / (len(transcripts) if mean else 1)
    frames = [torch.cat(rows) for rows in valid]
    _, _, divergence = rdrop(frames, [-100] * len(frames[0]), 0.0, num_divergence_items=None if mean else 1)
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


def make(problem, n, c, m=2, dtype=torch.float32, scale=2.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(m * n, c, generator=g, dtype=torch.float64) * scale).to(dtype)
    if problem == "single_label":
        labels = torch.randint(0, c, (n,), generator=g)
    elif problem == "multi_label":
        labels = torch.randint(0, 2, (n, c), generator=g).float()
    else:
        labels = torch.randn(n, c, generator=g)
    return logits, labels


def relative(a, b):
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return ((a - b).norm() / b.norm().clamp(min=1e-300)).item()


def formulas_fast(logits, labels, problem):
    """The vectorised naive formula in the logits' own type."""
    n = len(logits) // 2
    a, b = logits.split(n)
    if problem == "single_label":
        task = F.cross_entropy(logits, labels.repeat(2))
        la, lb = a.log_softmax(-1), b.log_softmax(-1)
        div = 0.5 * ((la.exp() * (la - lb)).sum(-1) + (lb.exp() * (lb - la)).sum(-1)).mean()
    elif problem == "multi_label":
        task = F.binary_cross_entropy_with_logits(logits, labels.repeat(2, 1).to(logits.dtype))
        div = 0.5 * ((a.sigmoid() - b.sigmoid()) * (a - b)).sum(-1).mean()
    else:
        task = F.mse_loss(logits, labels.repeat(2, 1).to(logits.dtype))
        div = ((a - b) ** 2).mean()
    return task + 2 * div


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def symmetric_kl(a, b):
    p, q = softmax(a), softmax(b)
    return 0.5 * sum(x * math.log(x / y) + y * math.log(y / x) for x, y in zip(p, q, strict=True))


def bernoulli(a, b):
    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    return 0.5 * sum((sigmoid(x) - sigmoid(y)) * (x - y) for x, y in zip(a, b, strict=True))


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
