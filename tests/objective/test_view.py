"""A second view: what the later passes see is what it returns, in every forward mode, and labels and rows stay."""

import pytest
import torch

from rdrop_trainer import Objective, StepSettings
from rdrop_trainer.objective.noise import PATIENCE
from rdrop_trainer.views import word_dropout
from support import tiny, zoo
from support.resumed import whole_cut_and_resumed
from support.zoo import moved

MODES = ("concat", "sequential", "recompute")


def masked(batch, pass_index):
    """A view by chance, of text without a tokenizer."""
    ids = batch["input_ids"]
    return {**batch, "input_ids": ids.masked_fill(torch.rand(ids.shape, device=ids.device) < 0.3, 1)}


@pytest.mark.parametrize(
    "name, num_passes",
    [
        *((name, 2) for name in ("single_label", "choice", "question", "gpt2", "bart", "vit", "ctc")),
        *((name, 3) for name in ("token", "t5")),
    ],
)
def test_loss_and_gradient_are_those_of_the_definition(name, num_passes):
    """Without dropout, which the views make up for, with an unlabeled row, where the head has a mark for it."""
    model = zoo.build(name, dropout=0.0).double().train()
    batch = zoo.batch(name, model, rows=4, unlabeled=(1,) if name in tiny.HEADS else ())
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    seen = [model(**(moved(batch, k) if k else batch)) for k in range(num_passes)]
    expected = zoo.by_definition(name, seen, batch, 3.0)
    assert expected[2] > 0
    expected[0].backward()
    gradient = zoo.gradient_of(model)
    for mode in (*MODES, "fused"):
        if mode == "fused" and name not in ("gpt2", "t5", "bart"):
            continue
        settings = {"forward_mode": "concat", "fused_head": "true"} if mode == "fused" else {"forward_mode": mode}
        model.zero_grad()
        objective = Objective.of(model, [batch])
        settings = StepSettings(alpha=3.0, num_passes=num_passes, second_view=moved, **settings)
        terms, passes = objective(model, batch, objective.window([batch]), settings)
        terms.loss.backward()
        if mode != "fused":
            key = objective.plan.head.outputs[0]
            assert torch.allclose(passes.output(0)[key], seen[0][key])  # the first pass sees the batch itself
        for got, wanted in zip(terms, expected, strict=True):
            assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert tiny.relative(zoo.gradient_of(model), gradient) < 1e-6
        assert objective.plan.noise is None and (objective.plan.fused(batch, settings) is None) == (mode != "fused")


def test_a_batch_of_inference_tensors_has_views_too():
    """A collator that computes under `torch.inference_mode` makes tensors that do not count what is written to them."""
    model = zoo.build("single_label").train()
    batch = zoo.batch("single_label", model, rows=4)
    with torch.inference_mode():
        batch = {key: value.clone() for key, value in batch.items()}
    objective = Objective.of(model, [batch])
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings(second_view=masked))
    assert terms.divergence > 0


def test_all_modes_draw_the_same_views():
    gradients = []
    for mode in MODES:
        torch.manual_seed(0)
        model = zoo.build("token", dropout=0.0).double()
        settings = {"num_passes": 3, "second_view": masked, "forward_mode": mode}
        gradients.append(zoo.gradient(model, zoo.batches("token", rows=7), **settings))
    assert gradients[0].norm() > 0 and max(tiny.relative(g, gradients[0]) for g in gradients[1:]) < 1e-6


def test_accumulation_equals_one_large_batch(tmp_path):
    updates = []
    for rows, steps in ((2, 4), (8, 1)):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "second_view": moved}
        model = zoo.build("token", dropout=0.0).double()
        updates.append(zoo.sgd_update("token", model, tmp_path, rdrop_allow_deterministic=False, **settings))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


def test_alpha_zero_applies_no_view(tmp_path):
    def fails(batch, pass_index):
        raise AssertionError

    runs = []
    for plain in (True, False):
        model, settings = zoo.build("single_label"), {} if plain else {"rdrop_alpha": 0.0, "second_view": fails}
        zoo.trainer("single_label", model, zoo.dataset("single_label"), tmp_path, plain, **settings).train()
        runs.append(tiny.weights(model))
    assert tiny.identical(*runs)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole, cut, resumed = whole_cut_and_resumed("single_label", tmp_path, second_view=masked)
    assert tiny.identical(whole, resumed) and not tiny.identical(whole, cut)


def test_unlabeled_rows_have_views_too(tmp_path):
    seen = []

    def watched(batch, pass_index):
        seen.append((batch["labels"].tolist(), pass_index))
        return moved(batch, pass_index)

    data = tiny.dataset(rows=8)
    settings = {"per_device_train_batch_size": 4, "rdrop_num_passes": 3, "logging_steps": 1}
    run = tiny.trainer(tiny.bert(dropout=0.0), data, tmp_path, unlabeled_dataset=data, second_view=watched, **settings)
    run.train()
    assert [k for _, k in seen] == [1, 2] * 2
    assert all(len(labels) == 8 and labels.count(-100) == 4 for labels, _ in seen)
    assert all(entry["divergence"] > 0 for entry in run.state.log_history if "divergence" in entry)


def longer(batch, pass_index):
    return {**batch, **{k: torch.cat([v, v], 1) for k, v in batch.items() if k in ("input_ids", "attention_mask")}}


def writes(batch, pass_index):
    batch["input_ids"][:, 1] = 10
    return batch


@pytest.mark.parametrize(
    "name, view, mode, message",
    [
        ("single_label", 5, "concat", "second_view must be a function"),
        ("single_label", lambda b, k: None, "concat", "must return the entries that it is given, .*; got a NoneType"),
        ("single_label", lambda b, k: {"input_ids": b["input_ids"]}, "concat", "must return the entries .*; got input"),
        ("single_label", writes, "concat", "second_view wrote to 'input_ids'"),
        ("single_label", lambda b, k: {**b, "labels": 1 - b["labels"]}, "concat", "second_view changed 'labels'"),
        ("single_label", lambda b, k: {**b, "input_ids": b["input_ids"][:2]}, "concat", "row by row, so"),
        ("single_label", longer, "concat", "cannot run in one forward: .* has the shapes .*sequential"),
        ("token", longer, "sequential", "changed the shape of 'input_ids' from .*: .* position by position"),
    ],
)
def test_views_that_do_not_fit(name, view, mode, message):
    model = zoo.build(name)
    with pytest.raises(ValueError, match=message):
        zoo.gradient(model, [zoo.batch(name)], second_view=view, forward_mode=mode)


def test_rows_may_have_another_length_one_pass_after_another():
    gradient = zoo.gradient(
        zoo.build("single_label"), zoo.batches("single_label"), second_view=longer, forward_mode="sequential"
    )
    assert gradient.isfinite().all()


@pytest.mark.parametrize("view", [word_dropout(tiny.tokenizer(), p=0.0), moved])
def test_a_view_without_effect_stops_the_training(view, tmp_path):
    """After some steps, as one batch may have nothing to change. A small effect is no rounding of one forward."""
    data, steps = tiny.dataset(rows=2), PATIENCE + 2
    settings = {"second_view": view, "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 0.0}
    model = tiny.bert(dropout=0.0)
    model.classifier.bias.data += 1  # beside which the change of a logit, 1e-5, is small
    run = tiny.trainer(model, data, tmp_path, **settings)
    if view is moved:
        run.train()
        assert run.state.global_step == steps
        return
    with pytest.raises(ValueError, match="what second_view changes does not reach the predictions"):
        run.train()
    assert 0 < run.state.global_step < steps
