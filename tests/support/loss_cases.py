"""What a case of the loss is like, drawn by Hypothesis; what the loss gives for it, and what the formulas say."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from rdrop_trainer.losses import backends, chunked, linear_chunks, rdrop_loss
from support import formulas

EPSILON = {torch.float16: 2**-11, torch.bfloat16: 2**-8}


@dataclass(frozen=True)
class Case:
    problem: str
    implementation: str
    passes: int
    items: int
    classes: int
    dtype: torch.dtype
    scale: float  # of the logits
    apart: float  # how far the passes lie from one another
    extreme: str
    labels: str
    mask: str
    alpha: float
    smoothing: float
    reduction: str
    given_counts: bool
    layout: str
    upstream: float
    in_float32: bool  # the arithmetic of large inputs
    seed: int

    def tensors(self) -> tuple[torch.Tensor, Any, Any]:
        """Logits (m, N, C), labels and mask."""
        g = torch.Generator().manual_seed(self.seed)
        m, n, c = self.passes, self.items, self.classes
        z = torch.randn(1, n, c, generator=g, dtype=torch.float64) * self.scale
        z = z + torch.randn(m, n, c, generator=g, dtype=torch.float64) * self.apart
        chosen = torch.rand(n, generator=g) < 0.5
        if self.extreme == "huge":
            z[:, chosen] = z[:, chosen].sign() * 1e4
        elif self.extreme == "one far ahead":
            z[:, chosen, 0] = 300.0
        elif self.extreme == "ties":
            z[:, chosen] = 1.5
        z = z.to(self.dtype)
        if self.problem == "single_label":
            last = c - 1 if self.extreme == "masked class" and c > 1 else c
            if last < c:
                z[:, chosen, last] = float("-inf")
            labels = torch.randint(0, last, (n,), generator=g)
            labels[torch.rand(n, generator=g) < {"all": 0.0, "some": 0.5, "none": 1.0}.get(self.labels, 0)] = -100
        elif self.problem == "multi_label":
            labels = torch.rand(n, c, generator=g).round()
        else:
            labels = torch.randn(n, c, generator=g)
        kept = {"all": 2.0, "some": 0.5, "none": -1.0}.get(self.mask)
        mask = None if kept is None else torch.rand(n, generator=g) < kept
        return z, None if self.labels == "absent" else labels, mask

    @property
    def settings(self) -> dict[str, Any]:
        counts = {"num_items": 7, "num_divergence_items": 11} if self.given_counts else {}
        return {"alpha": self.alpha, "num_passes": self.passes, "reduction": self.reduction, **counts} | (
            {"label_smoothing": self.smoothing} if self.smoothing else {}
        )


def kinds():
    return st.sampled_from(
        [
            ("single_label", "reference"),
            ("single_label", "chunked"),
            ("single_label", "auto"),
            ("multi_label", "auto"),
            ("regression", "reference"),
        ]
    )


@st.composite
def cases(draw, ordinary=False):
    problem, implementation = draw(kinds())
    categorical = problem == "single_label"
    return Case(
        problem,
        implementation,
        passes=draw(st.integers(1, 4)),
        items=draw(st.integers(0, 9)),
        classes=draw(st.integers(1, 12)),
        dtype=torch.float64 if ordinary else draw(st.sampled_from([torch.float32, *EPSILON, torch.float64])),
        scale=draw(st.sampled_from([0.0, 0.1, 2.0] if ordinary else [0.0, 0.1, 2.0, 30.0])),
        apart=draw(st.sampled_from([0.0, 0.01, 1.0])),
        extreme="" if ordinary else draw(st.sampled_from(["", "", "huge", "one far ahead", "ties", "masked class"])),
        labels=draw(st.sampled_from(["all", "some", "none", "absent"] if categorical else ["all", "absent"])),
        mask=draw(st.sampled_from(["absent", "all", "some", "none"])),
        alpha=draw(st.sampled_from([0.0, 1e-6, 0.7, 4.0, 1e4])),
        smoothing=draw(st.sampled_from([0.0, 0.1, 0.9])) if categorical else 0.0,
        reduction=draw(st.sampled_from(["mean", "sum"])),
        given_counts=draw(st.booleans()),
        layout=draw(st.sampled_from(["whole", "a tensor a pass", "transposed", "every other"])),
        upstream=draw(st.sampled_from([1.0, -0.3, 2.5])),
        in_float32=False if ordinary else draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    )


@contextmanager
def arithmetic(case):
    """As it is for large inputs: in float32, in chunks of which the last may be short."""
    before = backends.FLOAT64_UP_TO, chunked._rows_of_a_chunk, linear_chunks.ROWS_ON_CPU
    if case.in_float32:
        backends.FLOAT64_UP_TO, chunked._rows_of_a_chunk, linear_chunks.ROWS_ON_CPU = 0, lambda *_: 4, 4
    try:
        yield
    finally:
        backends.FLOAT64_UP_TO, chunked._rows_of_a_chunk, linear_chunks.ROWS_ON_CPU = before


def laid_out(z, layout):
    """(m, N, C) as the argument of `rdrop_loss`, and the leaf whose gradient is asked for."""
    leaf = z.detach().clone().requires_grad_()
    m, n, c = z.shape
    if layout == "a tensor a pass":
        return list(leaf), leaf
    flat = leaf.reshape(m * n, c)
    if layout == "transposed":
        flat = flat.t().contiguous().t()
    elif layout == "every other":
        flat = torch.stack([flat, torch.full_like(flat, 7.0)], 1)[:, 0]
    return flat, leaf


def run(case, z, labels, mask, **changes):
    """The three terms, and the gradient of `upstream * loss`, (m, N, C)."""
    given, leaf = laid_out(z, case.layout)
    arguments = {**case.settings, "problem": case.problem, "implementation": case.implementation, **changes}
    with arithmetic(case):
        terms = rdrop_loss(given, labels, mask=mask, **arguments)
        assert terms.loss.dtype == torch.promote_types(case.dtype, torch.float32)
        (case.upstream * terms.loss).backward()
    grad = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    return torch.stack([term.detach().double() for term in terms]), grad


def by_formulas(case, z, labels, mask, dtype=torch.float64):
    """`run` by the formulas."""
    exact = z.to(dtype).requires_grad_()
    counts = {name: case.settings[name] for name in ("num_items", "num_divergence_items") if case.given_counts}
    kept = mask if mask is not None else torch.ones(case.items, dtype=torch.bool)
    terms = formulas.stable_rdrop(
        exact,
        labels if labels is None else labels.to(dtype) if labels.is_floating_point() else labels,
        kept,
        case.alpha,
        case.problem,
        case.smoothing,
        mean=case.reduction == "mean",
        **counts,
    )
    (case.upstream * terms[0]).backward()
    return torch.stack([term.detach().double() for term in terms]), exact.grad.nan_to_num()


def close(got, want, relative, absolute=1e-12):
    return bool((got.double() - want.double()).norm() <= relative * want.double().norm() + absolute)


def tolerance(case, z, labels, mask, want):
    """1e-6; where large inputs are computed in float32, no worse than the formulas in float32, which extremes need."""
    if not case.in_float32 or case.dtype == torch.float64:
        return 1e-6, 1e-6
    if case.problem == "multi_label":
        return (1e-6 + 1e-6 / (case.apart or 1),) * 2  # a difference of sigmoids, of more than a million logits
    naive = by_formulas(case, z, labels, mask, torch.float32)
    errors = [
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item()
        for a, b in zip(naive, want, strict=True)
    ]
    return tuple(2 * error + 4e-6 for error in errors)
