"""The objective without a `Trainer`: the definition, training loops of one's own, and plans that are never changed."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from accelerate import Accelerator

from rdrop_trainer import Objective, StepSettings
from rdrop_trainer.objective.loss_comparison import LossComparison
from rdrop_trainer.objective.task_loss import FunctionLoss, ModelLoss, StockLoss
from rdrop_trainer.objective.training import Training
from support import formulas, tiny, zoo

MODES = ("concat", "sequential", "recompute")
PASSES = [*((name, 2) for name in zoo.EVERY_KIND), ("token", 3), ("question", 3)]


@pytest.mark.parametrize("name, num_passes", PASSES)
def test_concat_and_sequential_agree_when_the_noise_is_equal(name, num_passes):
    gradients = []
    for mode in MODES[:2]:
        model = zoo.noisy(name, num_passes, concat=mode == "concat")
        gradients.append(zoo.gradient(model, zoo.batches(name, rows=7), num_passes=num_passes, forward_mode=mode))
    assert gradients[0].norm() > 0 and tiny.relative(*gradients) < 1e-6


@pytest.mark.parametrize("name, num_passes", PASSES)
def test_sequential_and_recompute_draw_the_same_dropout(name, num_passes):
    gradients = []
    for mode in MODES[1:]:
        model = zoo.build(name, dropout=0.2)
        gradients.append(zoo.gradient(model, zoo.batches(name, rows=7), num_passes=num_passes, forward_mode=mode))
    assert gradients[0].norm() > 0 and tiny.relative(*gradients) < 1e-6


@pytest.mark.parametrize(
    "name, mode",
    [("choice", "concat"), ("question", "sequential"), ("masked_lm", "recompute"), *(("t5", mode) for mode in MODES)],
)
def test_a_loop_of_ones_own_makes_the_update_of_the_trainer(name, mode, tmp_path):
    """Three micro-batches in one step, the last one short."""
    of_trainer, model = (
        zoo.build(name, 0.0).double() if mode == "recompute" else zoo.noisy(name, concat=mode == "concat")
        for _ in range(2)
    )
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    settings |= {"train_sampling_strategy": "sequential", "rdrop_forward_mode": mode}
    zoo.sgd_update(name, of_trainer, tmp_path, **settings)
    after = dict(of_trainer.named_parameters())
    update = torch.cat([(after[name].cpu() - p).detach().flatten() for name, p in model.named_parameters()])
    gradient = zoo.gradient(model, zoo.batches(name), forward_mode=mode)
    assert update.norm() > 0 and tiny.relative(-gradient, update) < 1e-6


def test_with_accelerate_and_in_mixed_precision(fresh_accelerate):
    """Under autocast the comparison with the model's own loss allows for its rounding."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(zoo.build("masked_lm", 0.2)).train()
    batches = zoo.batches("masked_lm")
    objective = Objective.of(model, batches, accelerator)
    window = objective.window(batches)
    for batch in batches:
        terms, _ = objective(model, batch, window, StepSettings(alpha=2.0))
        accelerator.backward(terms.loss)
        assert terms.divergence > 0
        assert terms.loss.item() == pytest.approx((terms.task_loss + terms.divergence).item())
    assert zoo.gradient_of(model).norm() > 0


def test_settings_of_a_training():
    model, batch = zoo.build("t5", 0.0).train(), zoo.batch("t5", zoo.build("t5"))
    smoothed = Objective.of(model, [batch], label_smoothing=0.1)
    settings = StepSettings(allow_deterministic=True)
    [(logits, labels)] = zoo.items("t5", model(**batch), batch)
    expected = formulas.rdrop([logits, logits], labels.tolist(), 4.0, smoothing=0.1)[0]
    loss = smoothed(model, batch, smoothed.window([batch]), settings)[0].loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)

    def function(outputs, labels, num_items_in_batch):
        return outputs.logits.square().mean() + 0 * num_items_in_batch

    own = Objective.of(model, [batch], loss_function=function)
    assert type(own.plan.task_loss) is FunctionLoss
    terms, _ = own(model, batch, own.window([batch]), settings, count=torch.tensor(5))
    assert terms.task_loss.item() == pytest.approx(model(**batch).logits.square().mean().item(), rel=1e-6)


class Doubled(type(zoo.build("llama"))):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        outputs.loss = None if outputs.loss is None else 2 * outputs.loss
        return outputs


Doubled.forward.__module__ = "transformers.models.doubled.modeling_doubled"  # elsewhere its loss would be its own


def test_what_is_found_out_makes_a_new_plan():
    model = zoo.build("llama").train()
    model.__class__ = Doubled
    batches = zoo.batches("llama")
    objective = Objective.of(model, batches[:1])
    first = objective.plan
    assert first.task_loss == StockLoss(model, comparison=LossComparison()) and first.noise is not None
    settings = StepSettings(forward_mode="sequential", fused_head="false")
    terms, _ = objective(model, batches[0], objective.window(batches[:1]), settings)
    assert type(objective.plan.task_loss) is ModelLoss and objective.plan.noise is None
    assert type(first.task_loss) is StockLoss and first.noise is not None  # as it was
    with pytest.raises(FrozenInstanceError):
        first.task_loss = objective.plan.task_loss
    model.eval()
    assert terms.task_loss.item() == pytest.approx(model(**batches[0]).loss.item(), rel=0.05)  # kept at once


@pytest.mark.parametrize("name", ["choice", "llama", "masked_lm"])
def test_probing_forwards_are_few_and_change_nothing(name):
    """Of a language model whose class is not known, one row of a batch is compared, until enough were."""
    model = zoo.build(name).train()
    batches, calls, losses = zoo.batches(name, rows=40), [], []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    decisive = [i for i, batch in enumerate(batches) if name == "masked_lm" and (batch["labels"][0] != -100).any()]
    for fused in ("false", "true"):
        objective = Objective.of(model, batches[:1])
        settings = StepSettings(forward_mode="sequential", fused_head=fused)
        torch.manual_seed(0)
        calls.clear()
        terms = [objective(model, batch, objective.window([batch]), settings)[0] for batch in batches]
        losses.append([loss.item() for loss, *_ in terms])
        probed = decisive[LossComparison.ENOUGH - 1] + 1 if decisive and fused == "true" else 0
        assert len(calls) == 2 * len(batches) + probed
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_labels_of_another_kind_make_another_plan():
    """A model of one's own whose batches take turns: rows with one label, and tokens."""

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.dropout, self.out = torch.nn.Embedding(40, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)

        def forward(self, input_ids, labels):
            hidden = self.dropout(self.embed(input_ids))
            logits = self.out(hidden if labels.dim() == 2 else hidden.mean(1))
            return {
                "loss": torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()),
                "logits": logits,
            }

    model, ids = Both().train(), torch.randint(40, (4, 5))
    rows = {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 0])}
    tokens = {"input_ids": ids, "labels": torch.randint(3, (4, 5))}
    objective = Objective.of(model, [rows])
    for batch, name in ((rows, "single-label"), (tokens, "token"), (rows, "single-label")):
        terms, _ = objective(model, batch, objective.window([batch]), StepSettings())
        assert objective.plan.head.name.startswith(name) and terms.divergence > 0


def test_a_loop_in_evaluation_mode_is_stopped_without_asking_other_processes(monkeypatch):
    """An evaluation may have left one of them so, after all were seen to have noise."""
    model, batch = zoo.build("single_label", 0.2), zoo.batch("single_label")
    model.train()
    objective = Objective.of(model, [batch])
    window = objective.window([batch])
    objective(model, batch, window, StepSettings())
    model.eval()
    monkeypatch.setattr(Training, "sum_over_processes", lambda *args: pytest.fail("a collective"))
    with pytest.raises(ValueError, match="in evaluation mode.*call model.train"):
        objective(model, batch, window, StepSettings())


def test_noise_of_no_module_needs_the_training_mode_too():
    class Functional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = torch.nn.Embedding(40, 8), torch.nn.Linear(8, 3)

        def forward(self, input_ids, labels):
            hidden = torch.nn.functional.dropout(self.embed(input_ids).mean(1), 0.3, self.training)
            return {"loss": torch.nn.functional.cross_entropy(self.out(hidden), labels), "logits": self.out(hidden)}

    model, batch = Functional(), {"input_ids": torch.randint(40, (4, 5)), "labels": torch.tensor([0, 1, 2, 0])}
    objective = Objective.of(model.train(), [batch])
    window = objective.window([batch])
    objective(model, batch, window, StepSettings())
    with pytest.raises(ValueError, match="in evaluation mode.*call model.train"):
        objective(model.eval(), batch, window, StepSettings())


def test_a_loop_in_evaluation_mode_is_stopped():
    """As `from_pretrained` returns a model, and as an evaluation between the steps leaves it."""
    model, batch = zoo.build("single_label", 0.2), zoo.batch("single_label")
    objective = Objective.of(model, [batch])

    def step(**settings):
        return objective(model, batch, objective.window([batch]), StepSettings(**settings))[0]

    for mode in MODES:
        model.eval()
        with pytest.raises(ValueError, match="in evaluation mode.*call model.train"):
            step(forward_mode=mode)
        assert step(num_passes=1).task_loss > 0
        assert step(forward_mode=mode, allow_deterministic=True).divergence < 1e-9
        assert step(forward_mode=mode, second_view=lambda rows, k: {**rows, "input_ids": rows["input_ids"] * 0 + 7})
        model.train()
        assert step(forward_mode=mode).divergence > 0
