"""Some rows alone go through more than the first pass: the divergence is theirs, the task loss that of all rows."""

import pytest
import torch
from transformers import Trainer

from rdrop_trainer import Objective, RDropTrainingArguments, StepSettings
from rdrop_trainer.objective.rows import spread_rows
from support import tiny, zoo
from support.resumed import whole_cut_and_resumed
from support.zoo import moved

SHARE, ALPHA = 0.5, 3.0
CHOSEN = {1: [0], 2: [0], 3: [0, 1], 4: [0, 2], 5: [0, 1, 3]}  # of so many rows


def by_definition(name, model, batch, num_passes):
    """(loss, task loss, divergence): means over all items, and over those of the chosen rows."""
    size = len(next(iter(batch.values())))
    chosen = CHOSEN[size]
    seen = [dict(model(**(moved(batch, k) if k else batch))) for k in range(num_passes)]

    def some(values):
        return {k: v[chosen] for k, v in values.items() if torch.is_tensor(v) and v.dim() > 0 and len(v) == size}

    completed = seen[:1]  # the others have their first pass alone
    for other in map(some, seen[1:]):
        completed.append({k: seen[0][k].index_copy(0, torch.tensor(chosen), v) for k, v in other.items()})
    task = zoo.by_definition(name, completed, batch, 0.0)[1]
    divergence = zoo.by_definition(name, [some(outputs) for outputs in seen], some(batch), 0.0)[2]
    return task + ALPHA / 2 * divergence, task, divergence


def test_rows_are_evenly_spaced_and_rounded_up():
    assert {size: spread_rows(SHARE, size) for size in CHOSEN} == CHOSEN
    assert spread_rows(0.1, 40) == [0, 10, 20, 30] and spread_rows(1e-12, 3) == [0]


@pytest.mark.parametrize(
    "name, num_passes",
    [
        *((name, 2) for name in ("single_label", "multi_label", "choice", "question", "gpt2", "ctc")),
        *((name, 3) for name in ("token", "t5")),
    ],
)
def test_loss_and_gradient_are_those_of_the_definition(name, num_passes):
    model = zoo.build(name, dropout=0.0).double().train()
    batch = zoo.batch(name, model, rows=5)
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    expected = by_definition(name, model, batch, num_passes)
    assert expected[2] > 0
    expected[0].backward()
    gradient = zoo.gradient_of(model)
    for mode in ("concat", "sequential", "recompute", "fused"):
        if mode == "fused" and name not in ("gpt2", "t5"):
            continue
        settings = {"forward_mode": "concat", "fused_head": "true"} if mode == "fused" else {"forward_mode": mode}
        model.zero_grad()
        objective = Objective.of(model, [batch])
        window = objective.window([batch], row_share=SHARE)
        settings = StepSettings(alpha=ALPHA, num_passes=num_passes, second_view=moved, **settings)
        terms, passes = objective(model, batch, window, settings)
        terms.loss.backward()
        if mode != "fused":
            assert len(passes.output(0)[objective.plan.head.outputs[0]]) == 5
        for got, wanted in zip(terms, expected, strict=True):
            assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert tiny.relative(zoo.gradient_of(model), gradient) < 1e-6


def test_the_means_are_those_of_all_micro_batches_of_a_step():
    model = zoo.build("single_label", dropout=0.0).double().train()
    batches = [zoo.batch("single_label", model, rows=rows, seed=rows) for rows in (5, 3, 1)]
    each = [by_definition("single_label", model, batch, 2) for batch in batches]
    task = sum(len(batch["labels"]) * terms[1] for batch, terms in zip(batches, each, strict=True)) / 9
    divergence = sum(chosen * terms[2] for chosen, terms in zip((3, 2, 1), each, strict=True)) / 6
    objective = Objective.of(model, batches)
    window = objective.window(batches, row_share=SHARE)
    terms = [objective(model, batch, window, StepSettings(alpha=ALPHA, second_view=moved))[0] for batch in batches]
    assert sum(t.task_loss for t in terms).item() == pytest.approx(task.item(), rel=1e-9)
    assert sum(t.divergence for t in terms).item() == pytest.approx(divergence.item(), rel=1e-9)


def test_the_model_sees_a_share_of_the_rows_of_the_second_pass(tmp_path):
    rows = []
    model = tiny.bert()
    model.bert.encoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    settings = {"per_device_train_batch_size": 4, "max_steps": 12, "rdrop_row_share": 0.25}
    tiny.trainer(model, tiny.dataset(rows=48), tmp_path, **settings).train()
    assert rows[-1] == 5


@pytest.mark.parametrize("mode", ["concat", "sequential"])
def test_chosen_rows_without_an_item_have_no_divergence(mode):
    model = zoo.build("gpt2", dropout=0.0).double().train()
    batches = [zoo.batch("gpt2", model, rows=rows, seed=rows) for rows in (3, 4)]
    batches[0]["labels"][[0, 1]] = -100
    objective = Objective.of(model, batches)
    window = objective.window(batches, row_share=SHARE)
    settings = StepSettings(alpha=ALPHA, second_view=moved, forward_mode=mode)
    first, second = (objective(model, batch, window, settings)[0] for batch in batches)
    assert first.divergence == 0 and first.task_loss > 0
    assert second.divergence.item() == pytest.approx(by_definition("gpt2", model, batches[1], 2)[2].item(), rel=1e-6)
    alone = objective.window(batches[:1], row_share=SHARE)
    assert objective(model, batches[0], alone, settings)[0].loss.isfinite()


def test_floating_point_operations_are_those_of_the_rows_that_ran(tmp_path):
    run = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, rdrop_row_share=SHARE, rdrop_num_passes=3)
    batch = zoo.batch("single_label", rows=5)
    once = Trainer.floating_point_ops(run, batch)
    assert once > 0
    assert run.floating_point_ops(batch) == once * (5 + 2 * 3) // 5
    run.args.rdrop_row_share = 1.0
    assert run.floating_point_ops(batch) == 3 * once


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole, cut, resumed = whole_cut_and_resumed("single_label", tmp_path, rdrop_row_share=SHARE)
    assert tiny.identical(whole, resumed) and not tiny.identical(whole, cut)


class OwnLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny.bert()

    def forward(self, input_ids, attention_mask, labels):
        logits = self.inner(input_ids, attention_mask).logits
        return {"loss": 0.5 * torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def halved(outputs, labels, num_items_in_batch=None):
    return 0.5 * torch.nn.functional.cross_entropy(outputs.logits, labels)


def test_steps_of_one_pass_take_any_loss(tmp_path):
    run = tiny.trainer(OwnLoss(), tiny.dataset(), tmp_path, rdrop_row_share=SHARE, rdrop_alpha=0.0, max_steps=1)
    assert run.train().global_step == 1


@pytest.mark.parametrize(
    "model, function, source", [(OwnLoss, None, "OwnLoss"), (tiny.bert, halved, "compute_loss_func")]
)
def test_a_loss_of_one_s_own_is_refused(model, function, source, tmp_path):
    run = tiny.trainer(model(), tiny.dataset(), tmp_path, rdrop_row_share=SHARE, compute_loss_func=function)
    objective = Objective.of(model(), [zoo.batch("single_label")], loss_function=function)
    for refuse in (run.train, lambda: objective.window([zoo.batch("single_label")], row_share=SHARE)):
        with pytest.raises(ValueError, match=f"here {source} makes one of all rows. Leave rdrop_row_share at 1"):
            refuse()


def test_a_loss_that_turns_out_to_be_another_is_refused():
    """The model's class has the usual loss, but a hook makes something else of it."""
    model, batch = tiny.bert().train(), zoo.batch("single_label")

    def halve(_, args, outputs):
        outputs.loss = 0.5 * outputs.loss

    model.register_forward_hook(halve)
    objective = Objective.of(model, [batch])
    with pytest.raises(ValueError, match="Leave rdrop_row_share at 1"):
        objective(model, batch, objective.window([batch], row_share=SHARE), StepSettings(alpha=1.0))


def test_unlabeled_rows_go_through_all_passes_or_none_do(tmp_path):
    data = tiny.dataset()
    run = tiny.trainer(tiny.bert(), data, tmp_path, rdrop_row_share=SHARE, unlabeled_dataset=data)
    with pytest.raises(ValueError, match="rdrop_row_share=0.5 would leave unlabeled rows out"):
        run.train()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan"), "half"])
def test_shares_that_are_none(share, tmp_path):
    with pytest.raises(ValueError, match="rdrop_row_share must be"):
        RDropTrainingArguments(str(tmp_path), rdrop_row_share=share)
