"""`rdrop_linear_loss` is `rdrop_loss` of the logits, without them."""

import pytest
import torch

from rdrop_trainer.losses import linear, linear_chunks, rdrop_linear_loss, rdrop_loss
from support.formulas import relative
from support.tiny import Sizes

FORMS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "softcap": {"softcap": 1.5},
    "all": {"bias": True, "logit_scale": 0.7, "softcap": 2.0},
}


def make(n=14, h=8, c=50, m=2, dtype=torch.float32, seed=0):
    """Hidden states, weight, bias, and labels of which one is missing."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*shape, generator=g).to(dtype) for shape in ((m * n, h), (c, h), (c,)))
    labels = torch.randint(0, c, (n,), generator=g)
    labels[2:3] = -100
    return hidden, weight / 2, bias, labels


def logits_of(hidden, weight, bias=None, logit_scale=1.0, softcap=None):
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def leaves(*tensors, dtype=None):
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def unfused(hidden, weight, labels, bias, form, **settings):
    """The same in float64 by the logits and the formulas as they are written: terms and gradients."""
    hidden, weight, bias = leaves(hidden, weight, bias, dtype=torch.float64)
    form = {**form, "bias": bias if form.get("bias") else None}
    result = rdrop_loss(logits_of(hidden, weight, **form), labels, implementation="reference", **settings)
    result.loss.backward()
    return result, (hidden.grad, weight.grad, bias.grad)


def compare(hidden, weight, labels, bias, form, tolerance=1e-6, **settings):
    settings = {"alpha": 4.0, **settings}
    expected, gradients = unfused(hidden, weight, labels, bias, form, **settings)
    hidden, weight, bias = given = leaves(hidden, weight, bias)
    result = rdrop_linear_loss(
        hidden, weight, labels, **{**form, "bias": bias if form.get("bias") else None}, **settings
    )
    for got, want in zip(result, expected, strict=True):
        assert relative(got.detach(), want.detach()) < tolerance
    result.loss.backward()
    for leaf, gradient in zip(given, gradients, strict=True):
        assert (leaf.grad is None) == (gradient is None)
        assert gradient is None or relative(leaf.grad, gradient) < tolerance
        assert gradient is None or leaf.grad.dtype == leaf.dtype
    return result


@pytest.fixture(params=[256, 9], ids=["one chunk", "several chunks"])
def chunks(request, monkeypatch):
    """The last of several chunks is short: 14 items in chunks of 4 (two passes) or 3."""
    monkeypatch.setattr(linear_chunks, "ROWS_ON_CPU", request.param)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_loss_of_the_logits(m, smoothing, form, chunks):
    hidden, weight, bias, labels = make(m=m)
    compare(hidden, weight, labels, bias, FORMS[form], num_passes=m, label_smoothing=smoothing)


@pytest.mark.parametrize("form", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_in_any_type(dtype, form, chunks):
    """No worse than autograd through the same products in the same type."""
    hidden, weight, bias, labels = make(dtype=dtype)
    if dtype == torch.float64:
        compare(hidden, weight, labels, bias, FORMS[form], tolerance=1e-12)
        return
    expected, gradients = unfused(hidden, weight, labels, bias, FORMS[form], alpha=4.0)
    errors = []
    for fused in (True, False):
        h, w, b = leaves(hidden, weight, bias)
        settings = {**FORMS[form], "bias": b if FORMS[form].get("bias") else None}
        if fused:
            result = rdrop_linear_loss(h, w, labels, alpha=4.0, **settings)
        else:
            result = rdrop_loss(logits_of(h, w, **settings), labels, alpha=4.0, implementation="reference")
        assert result.loss.dtype == torch.float32
        result.loss.backward()
        pairs = [(result.loss.detach(), expected.loss.detach()), (h.grad, gradients[0]), (w.grad, gradients[1])]
        errors.append([relative(*pair) for pair in pairs])
    assert all(mine <= 1.2 * naive + 1e-3 for mine, naive in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_and_float32_weights(dtype, chunks):
    """As in autocast: the products are those of the lower type, the weight's gradient is summed up in its own."""
    hidden, weight, bias, labels = make(n=40)
    rounded = hidden.to(dtype), weight.to(dtype).float(), bias.to(dtype).float()
    _, gradients = unfused(*rounded[:2], labels, rounded[2], {"bias": True}, alpha=4.0)
    h, w, b = leaves(rounded[0], *rounded[1:])
    rdrop_linear_loss(h, w, labels, bias=b, alpha=4.0).loss.backward()
    assert (h.grad.dtype, w.grad.dtype, b.grad.dtype) == (dtype, torch.float32, torch.float32)
    for leaf, gradient in zip((h, w, b), gradients, strict=True):
        assert relative(leaf.grad, gradient) < (2e-2 if dtype == torch.bfloat16 else 2e-3)


def test_a_float16_gradient_survives_a_small_loss(chunks):
    hidden, weight, bias, labels = make(n=40, dtype=torch.float16)
    counts = {"num_items": 1e6, "num_divergence_items": 1e6}
    _, gradients = unfused(hidden, weight, labels, bias, {}, alpha=4.0, **counts)
    h, w = leaves(hidden, weight)
    (65536 * rdrop_linear_loss(h, w, labels, alpha=4.0, **counts).loss).backward()
    assert relative(h.grad, 65536 * gradients[0]) < 1e-2 and relative(w.grad, 65536 * gradients[1]) < 1e-2


def test_gradients_of_a_half_precision_weight_and_bias_are_summed_up_in_float32(monkeypatch):
    """Over many chunks: rounded once, at the end."""
    monkeypatch.setattr(linear_chunks, "ROWS_ON_CPU", 8)
    hidden, weight, bias, labels = make(n=1000, c=5, dtype=torch.bfloat16)
    _, gradients = unfused(hidden, weight, labels, bias, {"bias": True}, alpha=0)
    given = leaves(weight, bias)
    rdrop_linear_loss(hidden, given[0], labels, bias=given[1], alpha=0).loss.backward()
    for leaf, gradient in zip(given, gradients[1:], strict=True):
        assert leaf.grad.dtype == torch.bfloat16 and relative(leaf.grad, gradient) < 4e-3


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_tensor_a_pass_is_the_same(m, chunks):
    hidden, weight, _, labels = make(m=m)
    mask = torch.arange(len(labels)) % 3 != 0
    passes, together = leaves(*hidden.split(len(labels))), *leaves(hidden)
    results = [rdrop_linear_loss(h, weight, labels, alpha=4.0, num_passes=m, mask=mask) for h in (passes, together)]
    assert results[0] == results[1]
    for result in results:
        result.loss.backward()
    assert torch.equal(torch.cat([h.grad for h in passes]), together.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masked_items_count_nowhere_whatever_they_hold(dtype, chunks):
    hidden, weight, bias, labels = make(dtype=dtype)
    mask = torch.arange(len(labels)) % 3 != 1
    both = mask.repeat(2)
    without, w = leaves(hidden[both], weight)
    expected = rdrop_linear_loss(without, w, labels[mask], bias=bias, alpha=4.0)
    expected.loss.backward()
    hidden[~both] = float("nan")
    labels[~mask] = 777
    given, head = leaves(hidden, weight)
    result = rdrop_linear_loss(given, head, labels, bias=bias, alpha=4.0, mask=mask)
    result.loss.backward()
    assert result == expected
    assert torch.equal(given.grad[both], without.grad) and (given.grad[~both] == 0).all()
    assert torch.equal(head.grad, w.grad)


@pytest.mark.parametrize("case", ["no rows", "all masked", "no label", "no labels"])
def test_nothing_to_count(case):
    hidden, weight, bias, labels = make(n=0 if case == "no rows" else 14)
    hidden, weight, bias = leaves(hidden, weight, bias)
    mask = torch.zeros(14, dtype=torch.bool) if case == "all masked" else None
    if case.startswith("no label"):
        labels = torch.full((14,), -100) if case == "no label" else None
    result = rdrop_linear_loss(hidden, weight, labels, bias=bias, alpha=4.0, mask=mask)
    result.loss.backward()
    counts = case.startswith("no label")
    assert result.task_loss == 0 and (result.divergence > 0) == counts
    for leaf in (hidden, weight, bias):
        assert leaf.grad.isfinite().all() and bool(leaf.grad.abs().sum() > 0) == counts


@pytest.mark.parametrize("needed", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(needed, chunks):
    tensors = dict(zip(("hidden", "weight", "bias", "labels"), make(), strict=True))
    _, gradients = unfused(**tensors, form={"bias": True}, alpha=4.0)
    tensors[needed].requires_grad_()
    rdrop_linear_loss(**tensors, alpha=4.0).loss.backward()
    for name, gradient in zip(("hidden", "weight", "bias"), gradients, strict=True):
        assert (tensors[name].grad is None) == (name != needed)
        assert name != needed or relative(tensors[name].grad, gradient) < 1e-6


def test_alpha_as_a_tensor_a_small_soft_cap_and_labels_of_another_type():
    hidden, weight, _, labels = make()
    capped = 0.5 * torch.tanh(hidden.double() @ weight.double().T / 0.5)
    expected = rdrop_loss(capped, labels, alpha=4.0).loss
    got = rdrop_linear_loss(hidden, weight, labels.short(), alpha=torch.tensor(4.0), softcap=0.5).loss
    assert relative(got, expected) < 1e-6


def test_one_of_several_passes_may_have_a_gradient(chunks):
    hidden, weight, _, labels = make()
    gradients = []
    for loss in (rdrop_loss, rdrop_linear_loss):
        first, second = hidden.detach().chunk(2)
        first = first.clone().requires_grad_()
        passes = (first @ weight.T, second @ weight.T) if loss is rdrop_loss else ((first, second), weight)
        arguments = (passes, labels) if loss is rdrop_loss else (*passes, labels)
        loss(*arguments, alpha=4.0).loss.backward()
        gradients.append(first.grad)
    assert relative(*gradients) < 1e-5


def test_a_tied_weight_gets_both_gradients():
    _, weight, _, labels = make()
    ids = torch.arange(28) % 50
    exact, given = leaves(weight, dtype=torch.float64), leaves(weight)
    for w, loss in ((exact[0], rdrop_loss), (given[0], rdrop_linear_loss)):
        hidden = torch.tanh(w[ids])
        arguments = (hidden @ w.T, labels) if loss is rdrop_loss else (hidden, w, labels)
        loss(*arguments, alpha=4.0).loss.backward()
    assert relative(given[0].grad, exact[0].grad) < 1e-6


@pytest.mark.parametrize("alpha", [0, 4.0])
@pytest.mark.parametrize("how", ["task_loss", "divergence", "loss three times", "all"])
def test_gradients_through_any_of_the_terms(how, alpha, chunks):
    def asked(result):
        if how == "loss three times":
            return 3 * result.loss
        return result.loss + 5 * result.task_loss - 7 * result.divergence if how == "all" else getattr(result, how)

    hidden, weight, _, labels = make()
    h, w = leaves(hidden, weight)
    asked(rdrop_linear_loss(h, w, labels, alpha=alpha)).backward(retain_graph=True)
    exact = leaves(hidden, weight, dtype=torch.float64)
    asked(rdrop_loss(exact[0] @ exact[1].T, labels, alpha=alpha, implementation="reference")).backward()
    for got, want in zip((h, w), exact, strict=True):
        assert relative(got.grad, want.grad) < 1e-6


def test_a_graph_that_is_kept_can_be_used_again(chunks):
    hidden, weight, _, labels = make()
    h, w = leaves(hidden, weight)
    loss = rdrop_linear_loss(h, w, labels, alpha=4.0).loss
    loss.backward(retain_graph=True)
    once = h.grad.clone(), w.grad.clone()
    loss.backward()
    for leaf, gradient in zip((h, w), once, strict=True):
        assert relative(leaf.grad, 2 * gradient) < 1e-6


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(linear_chunks, "ROWS_ON_CPU", 4)
    hidden, weight, bias, labels = make(n=5, h=3, c=4, dtype=torch.float64)
    mask = torch.tensor([True, True, True, False, True])

    def value(h, w, b):
        form = {"bias": b, "logit_scale": 0.7, "softcap": 2.0, "label_smoothing": 0.1}
        return rdrop_linear_loss(h, w, labels, alpha=1.7, mask=mask, **form).loss

    assert torch.autograd.gradcheck(value, leaves(hidden, weight, bias))


@pytest.mark.parametrize("settings", [{"reduction": "sum"}, {"num_items": 7, "num_divergence_items": torch.tensor(5)}])
def test_counts_are_those_of_rdrop_loss(settings, chunks):
    hidden, weight, bias, labels = make()
    compare(hidden, weight, labels, bias, {}, **settings)


def test_a_class_that_the_bias_masks_contributes_nothing():
    hidden, weight, bias, labels = make(c=9)
    bias[8] = -float("inf")
    h, w = leaves(hidden, weight)
    result = rdrop_linear_loss(h, w, labels.clamp(max=7), bias=bias, alpha=4.0)
    result.loss.backward()
    expected = rdrop_loss(hidden @ weight[:8].T + bias[:8], labels.clamp(max=7), alpha=4.0)
    assert relative(result.loss.detach(), expected.loss) < 1e-6
    assert h.grad.isfinite().all() and (w.grad[8] == 0).all()


def test_inputs_stay_as_they_are_and_need_not_be_contiguous(chunks):
    hidden, weight, bias, labels = make()
    expected = rdrop_linear_loss(hidden, weight, labels, bias=bias, alpha=4.0)
    copies = [t.clone() for t in (hidden, weight, bias, labels)]
    h, w = (t.T.contiguous().T.requires_grad_() for t in (hidden, weight))
    result = rdrop_linear_loss(h, w, labels, bias=bias, alpha=4.0)
    result.loss.backward()
    assert relative(result.loss.detach(), expected.loss) < 1e-6
    assert all(torch.equal(t, copy) for t, copy in zip((h, w, bias, labels), copies, strict=True))


def test_in_autocast_the_types_are_those_that_are_given():
    hidden, weight, _, labels = make()
    expected = rdrop_linear_loss(hidden, weight, labels, alpha=4.0)
    h, w = leaves(hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = rdrop_linear_loss(h, w, labels, alpha=4.0)
        result.divergence.backward()  # made in the backward pass
    assert result == expected
    gradient = h.grad
    h, w = leaves(hidden, weight)
    rdrop_linear_loss(h, w, labels, alpha=4.0).divergence.backward()
    assert torch.equal(gradient, h.grad)


def test_nothing_of_the_size_of_the_logits_is_made():
    hidden, weight, _, labels = make(n=2000, h=8, c=2000)
    h, w = leaves(hidden, weight)
    with Sizes() as sizes:
        rdrop_linear_loss(h, w, labels, alpha=4.0).loss.backward()
    # Four times a chunk of logits: themselves, their exponentials, scratch, and the index of their labels at most
    assert max(sizes.of.values()) <= linear_chunks.ROWS_ON_CPU * 2000 < 4000 * 2000 / 10


def test_a_gradient_in_huge_pages():
    hidden, weight, _, labels = make(n=4, h=300, c=30_000)
    compare(hidden, weight / 10, labels, hidden[0], {})


@pytest.mark.parametrize("wanted", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_made_where_none_is_wanted(wanted, monkeypatch):
    asked_for, original = [], linear.loss_and_grad
    monkeypatch.setattr(
        linear, "loss_and_grad", lambda *args, **rest: asked_for.append(args[3]) or original(*args, **rest)
    )
    hidden, weight, _, labels = make()
    with wanted():
        assert not rdrop_linear_loss(*leaves(hidden, weight), labels, alpha=4.0).loss.requires_grad
    assert asked_for == [False]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"implementation": "reference"}, r"use rdrop_loss\(hidden @ weight.T"),
        ({"implementation": "triton", "hidden": torch.zeros(8, 3).double()}, "needs logits on a CUDA device"),
        ({"weight": torch.zeros(5, 4)}, r"weight must have shape \(C, 3\) for hidden states \(8, 3\), got \(5, 4\)"),
        ({"weight": torch.zeros(3)}, r"weight must have shape"),
        ({"bias": torch.zeros(4)}, r"bias must have shape \(5,\), got \(4,\)"),
        ({"softcap": 0.0}, "softcap must be more than 0, got 0.0"),
        ({"hidden": torch.zeros(2, 4, 3)}, r"hidden must be one tensor of shape .* got \(2, 4, 3\)"),
        (
            {"hidden": torch.zeros(7, 3)},
            r"hidden must have shape \(num_passes \* N, C\) with num_passes=2, got \(7, 3\)",
        ),
        ({"labels": torch.tensor([0, 1, 5, -100])}, r"-100 or in \[0, 5\), got 5"),
        ({"labels": torch.zeros(8, dtype=torch.long)}, "those of one pass"),
        ({"mask": torch.ones(4)}, "mask must be booleans"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"alpha": torch.tensor(1.0, requires_grad=True)}, "alpha must be a number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"reduction": "none"}, "'none' is unknown"),
        ({"num_passes": 0}, "at least 1"),
    ],
)
def test_refuses(change, message):
    arguments = {"hidden": torch.zeros(8, 3), "weight": torch.zeros(5, 3), "labels": torch.zeros(4, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        rdrop_linear_loss(**{**arguments, "alpha": 4.0, **change})
