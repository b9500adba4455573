"""Properties of the loss over generated shapes, types, masks, labels, alphas and extremes, against float64 formulas.

Hypothesis draws what a case is like (and shrinks it when it fails); a seed drawn with it gives the numbers.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdrop_trainer.losses import rdrop_linear_loss, rdrop_loss
from support.loss_cases import EPSILON, Case, arithmetic, by_formulas, cases, close, run, tolerance

QUICK = settings(max_examples=150, deadline=None, database=None, derandomize=True)
MANY = settings(QUICK, max_examples=4000)


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
