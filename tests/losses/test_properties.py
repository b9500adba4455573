"""Properties of the loss over generated shapes, types, masks, labels, alphas and extremes, against float64 formulas.

Hypothesis draws what a case is like (and shrinks it when it fails); a seed drawn with it gives the numbers.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdrop_trainer.losses import backends, chunked, linear_chunks, rdrop_linear_loss, rdrop_loss
from support import formulas

QUICK = settings(max_examples=150, deadline=None, database=None, derandomize=True)
MANY = settings(QUICK, max_examples=4000)
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


def check(case):
    z, labels, mask = case.tensors()
    before = [None if t is None else t.clone() for t in (z, labels, mask)]
    terms, grad = run(case, z, labels, mask)
    want_terms, want_grad = by_formulas(case, z, labels, mask)

    of_terms, of_grad = tolerance(case, z, labels, mask, (want_terms, want_grad))
    # A loss near 0 is a small difference of large logits
    rounding = 1e-10
    if case.in_float32 and z.numel():
        rounding = 2**-22 * (1 + z.masked_fill(z.isinf(), 1).double().abs().max().item())
    for got, want in zip(terms, want_terms, strict=True):
        assert close(got, want, of_terms, rounding), (terms, want_terms)
    roundings = 1 if case.upstream == 1 else 2  # of a gradient that was made ahead of what it is multiplied with
    of_grad += roundings * EPSILON.get(case.dtype, 0)
    smallest = 6e-8 * grad.numel() ** 0.5 if case.dtype == torch.float16 else 1e-10
    if case.in_float32:  # p - y, of cross-entropies, has the digits of 1, not its own
        smallest = max(smallest, 2e-7 * (1 + case.alpha))
    if not (case.dtype == torch.float16 and want_grad.abs().max() > 6e4 if grad.numel() else False):
        assert close(grad, want_grad, of_grad, smallest), (grad, want_grad)

    assert terms.isfinite().all() and terms[2] >= -1e-12
    assert close(terms[0], terms[1] + case.alpha / 2 * terms[2], 1e-5)
    if mask is not None:
        assert (grad[:, ~mask] == 0).all()
    if case.apart == 0 and case.passes == 2:
        assert terms[2] == 0  # no noise, no term
    for tensor, copy in zip((z, labels, mask), before, strict=True):
        assert tensor is None or torch.equal(tensor, copy)


SMOOTHED_BESIDE_A_MASKED_CLASS = Case(
    "single_label", "chunked", 2, 6, 5, torch.float32, 2.0, 1.0, "masked class", "all", "absent", 4.0, 0.1, "mean",
    False, "whole", 1.0, False, 0,
)  # fmt: skip


ROUNDED_TWICE = Case(
    "single_label", "chunked", 2, 1, 2, torch.bfloat16, 0.0, 0.01, "huge", "all", "absent", 1e4, 0.0, "mean",
    True, "whole", -0.3, False, 0,
)  # fmt: skip


@given(cases())
@example(SMOOTHED_BESIDE_A_MASKED_CLASS)
@example(ROUNDED_TWICE)
@settings(QUICK, max_examples=300)
def test_the_loss_is_what_the_formulas_say(case):
    check(case)


@pytest.mark.slow
@given(cases())
@MANY
def test_the_loss_is_what_the_formulas_say_many(case):
    check(case)


# ---- What must not change it ----

UNCHANGED = ("items in another order", "passes in another order", "a constant added", "in two parts", "both backends")


def check_unchanged(case, how):
    case = replace(case, given_counts=True, reduction="mean")
    z, labels, mask = case.tensors()
    terms, grad = run(case, z, labels, mask)
    g = torch.Generator().manual_seed(case.seed + 1)
    if how == "items in another order":
        order = torch.randperm(case.items, generator=g)
        other, again = run(case, z[:, order], *(None if t is None else t[order] for t in (labels, mask)))
        expected = grad[:, order]
    elif how == "passes in another order":
        order = torch.randperm(case.passes, generator=g)
        other, again = run(case, z[order], labels, mask)
        expected = grad[order]
    elif how == "a constant added":
        if case.problem != "single_label":
            return
        other, again = run(case, z + torch.randn(case.passes, case.items, 1, generator=g).double(), labels, mask)
        expected = grad
    elif how == "in two parts":
        at = case.items // 2
        parts = [
            run(
                replace(case, items=part.stop - part.start),
                z[:, part],
                *(None if t is None else t[part] for t in (labels, mask)),
            )
            for part in (slice(0, at), slice(at, case.items))
        ]
        other, again, expected = sum(p[0] for p in parts), torch.cat([p[1] for p in parts], 1), grad
    else:
        if case.problem != "single_label":
            return
        name = "chunked" if case.implementation == "reference" else "reference"
        (other, again), expected = run(replace(case, implementation=name), z, labels, mask), grad
    assert close(other, terms, 1e-9, 1e-10) and close(again, expected, 1e-9, 1e-10)


@given(cases(ordinary=True), st.sampled_from(UNCHANGED))
@QUICK
def test_what_changes_nothing(case, how):
    check_unchanged(case, how)


@pytest.mark.slow
@given(cases(ordinary=True), st.sampled_from(UNCHANGED))
@MANY
def test_what_changes_nothing_many(case, how):
    check_unchanged(case, how)


# ---- The output head ----


def check_head(case, width, form):
    case = replace(case, problem="single_label", extreme="")
    _, labels, mask = case.tensors()
    labels = labels if labels is None or labels.dim() == 1 else labels[:, 0].long().clamp(0, case.classes - 1)
    g = torch.Generator().manual_seed(case.seed)
    shapes = ((case.passes * case.items, width), (case.classes, width), (case.classes,))
    tensors = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]
    results = []
    for fused in (True, False):
        hidden, weight, bias = leaves = [t.clone().requires_grad_() for t in tensors]
        with arithmetic(case):
            if fused:
                more = {**form, "bias": bias}
                loss = rdrop_linear_loss(hidden, weight, labels, mask=mask, **more, **case.settings).loss
            else:
                logits = (hidden @ weight.T + bias) * form.get("logit_scale", 1.0)
                cap = form.get("softcap")
                logits = logits if cap is None else cap * torch.tanh(logits / cap)
                loss = rdrop_loss(logits, labels, mask=mask, implementation="reference", **case.settings).loss
            (case.upstream * loss).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for got, want in zip(*results, strict=True):
        assert close(got, want, 1e-9, 1e-10)


FORMS = st.sampled_from([{}, {"logit_scale": 0.3}, {"softcap": 2.0}, {"logit_scale": 3.0, "softcap": 5.0}])


@given(cases(ordinary=True), st.integers(1, 6), FORMS)
@QUICK
def test_the_fused_head_is_the_loss_of_its_logits(case, width, form):
    check_head(replace(case, in_float32=case.seed % 2 == 0), width, form)


@pytest.mark.slow
@given(cases(ordinary=True), st.integers(1, 6), FORMS)
@settings(MANY, max_examples=2000)
def test_the_fused_head_is_the_loss_of_its_logits_many(case, width, form):
    check_head(replace(case, in_float32=case.seed % 2 == 0), width, form)


# ---- Derivatives ----


def check_gradient(case):
    case = replace(
        case, items=min(case.items, 3), classes=min(case.classes, 4), layout="whole", alpha=min(case.alpha, 4)
    )
    z, labels, mask = case.tensors()

    def loss(leaf):
        arguments = {**case.settings, "problem": case.problem, "implementation": case.implementation}
        return rdrop_loss(leaf.flatten(0, 1), labels, mask=mask, **arguments).loss

    if z.numel():
        assert torch.autograd.gradcheck(loss, z.requires_grad_())


@given(cases(ordinary=True))
@settings(QUICK, max_examples=60)
def test_gradcheck(case):
    check_gradient(case)


@pytest.mark.slow
@given(cases(ordinary=True))
@settings(MANY, max_examples=600)
def test_gradcheck_many(case):
    check_gradient(case)
