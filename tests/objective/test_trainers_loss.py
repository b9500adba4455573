"""Trainers with a `compute_loss` of their own."""

import functools

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    Trainer,
)

from rdrop_trainer import Objective, RDropMixin, RDropTrainer, StepSettings
from rdrop_trainer.objective.heads import SINGLE_LABEL
from rdrop_trainer.objective.task_loss import TrainerLoss
from support import formulas, tiny, zoo

SAME = {"rdrop_allow_deterministic": True}


class Weighted(Trainer):
    """A user's trainer, written before R-Drop was thought of."""

    weights = (1.0, 2.0, 3.0, 4.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(
            outputs.logits, labels, outputs.logits.new_tensor(self.weights), reduction="none"
        ).mean()
        return (loss, outputs) if return_outputs else loss


class RDropWeighted(RDropMixin, Weighted):
    pass


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_a_trainers_own_loss_is_kept(mode, tmp_path):
    model, data = tiny.bert(dropout=0.2), tiny.dataset()
    trainer = tiny.trainer(model, data, tmp_path, RDropWeighted, rdrop_forward_mode=mode, rdrop_alpha=2.0)
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    torch.manual_seed(0)
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert "labels" in batch and outputs.logits.shape == (8, 4)
    inputs, labels = {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    torch.manual_seed(0)
    if mode == "concat":
        logits = model(**{k: torch.cat([v, v]) for k, v in inputs.items()}).logits.split(8)
    else:
        logits = [model(**inputs).logits for _ in range(2)]
    weights = logits[0].new_tensor(Weighted.weights)
    own = [nn.functional.cross_entropy(z, labels, weights, reduction="none").mean() for z in logits]
    divergence = formulas.rdrop(logits, labels.tolist(), 2.0)[2]
    expected = sum(own) / 2 + divergence
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()  # which runs recomputed passes again
    gradient = model.classifier.weight.grad.clone()
    model.zero_grad()
    expected.backward()
    assert torch.allclose(gradient, model.classifier.weight.grad, atol=1e-6)


@pytest.mark.parametrize("with_loss", [False, True])
def test_a_trainers_own_loss_is_given_the_labeled_rows_and_stands_first(with_loss):
    own, logits, counts = torch.tensor(2.0), torch.zeros(3, 4), []

    def compute_loss(model, inputs, return_outputs, num_items_in_batch):
        counts.append(num_items_in_batch.item())
        return own, ((torch.tensor(1.0), logits) if with_loss else (logits,))

    source = TrainerLoss(nn.Identity(), compute_loss, "Base", "Own", counts=SINGLE_LABEL)
    loss, first = source.call(nn.Identity(), {"labels": torch.tensor([0, -100, 3])})
    assert loss is own and first is logits and counts == [2]


def test_a_trainers_own_loss_under_accumulation_and_alone(tmp_path):
    def update(cls, rows, steps, **arguments):
        model = tiny.bert(dropout=0.0)
        trainer = tiny.trainer(
            model, tiny.dataset(rows=8), tmp_path, cls, per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps, **tiny.PURE_SGD, **arguments,
        )  # fmt: skip
        return tiny.trained(trainer)

    whole = update(RDropWeighted, 8, 1, **SAME)
    assert tiny.relative(update(RDropWeighted, 2, 4, **SAME), whole) < 1e-5
    assert tiny.relative(update(RDropWeighted, 2, 4, rdrop_alpha=0.0), whole) < 1e-5
    assert tiny.relative(update(Weighted, 8, 1), whole) < 1e-5


def test_a_trainer_that_takes_keywords_alone(tmp_path):
    """Evaluation and plain steps call the base trainer as `Trainer` does."""

    class Keywords(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return super().compute_loss(model, inputs, return_outputs, **kwargs)

    cls = type("Over", (RDropMixin, Keywords), {})
    trainer = tiny.trainer(
        tiny.bert(), tiny.dataset(), tmp_path, cls, eval_dataset=tiny.dataset(), eval_strategy="epoch",
        rdrop_every_n_steps=2,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[-2]["eval_loss"] > 0


class HalfLoss(nn.Module):
    """A model of one's own, with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.bert = tiny.bert()

    def forward(self, input_ids, attention_mask, labels):
        logits = self.bert(input_ids, attention_mask).logits
        return {"loss": 0.5 * nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_trainer_that_hands_on_the_models_own_loss_without_logits(tmp_path):
    class Silent(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = model(**inputs)["loss"]
            return (loss, {}) if return_outputs else loss

    cls = type("Over", (RDropMixin, Silent), {})
    trainer = tiny.trainer(HalfLoss(), tiny.dataset(), tmp_path, cls, logging_steps=1, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["task_loss"] == pytest.approx(0.5 * 1.386, rel=0.05)


def test_a_trainers_own_loss_of_start_and_end_positions(tmp_path):
    class Twice(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss

    losses = []
    for cls in (type("Over", (RDropMixin, Twice), {}), RDropTrainer):
        model, data = zoo.build("question", dropout=0.0), zoo.dataset("question")
        trainer = zoo.trainer("question", model, data, tmp_path, cls=cls, logging_steps=1, max_steps=1, **SAME)
        trainer.train()
        losses.append(trainer.state.log_history[0]["task_loss"])
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-4)


def test_a_trainers_own_loss_beside_a_loss_function(tmp_path):
    """The function is the task loss where the trainer uses it; where it does not, there is no telling."""

    def half(outputs, labels, num_items_in_batch=None):
        return 0.5 * nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    class Uses(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

    cls, data = type("Over", (RDropMixin, Uses), {}), tiny.dataset()
    trainer = tiny.trainer(tiny.bert(), data, tmp_path, cls, compute_loss_func=half, logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["task_loss"] == pytest.approx(0.5 * 1.386, rel=0.05)
    with pytest.raises(ValueError, match="compute_loss of Weighted returns .* where compute_loss_func gives"):
        tiny.trainer(tiny.bert(), data, tmp_path, RDropWeighted, compute_loss_func=half).train()


def test_a_compute_loss_set_on_the_class(tmp_path):
    """As a plain function, whose name says nothing of the class."""

    def own(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (7 * outputs.loss, outputs) if return_outputs else 7 * outputs.loss

    cls = type("Over", (RDropMixin, type("Patched", (Trainer,), {"compute_loss": own})), {})
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["task_loss"] == pytest.approx(7 * 1.386, rel=0.05)


def mean(outputs, labels, num_items_in_batch=None):
    return 3 * nn.functional.cross_entropy(outputs.logits, labels)


def summed(outputs, labels, num_items_in_batch=None):
    return 3 * nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("function", [mean, summed])
def test_a_loss_function_may_return_a_mean_or_divide_by_the_count(function, tmp_path):
    """Most return a mean and ignore the count: accumulation must not add those up."""

    def update(rows, steps):
        model = zoo.noisy("single_label")
        trainer = tiny.trainer(
            model, tiny.dataset(rows=11), tmp_path, compute_loss_func=function, logging_steps=1,
            per_device_train_batch_size=rows, gradient_accumulation_steps=steps, **tiny.PURE_SGD,
        )  # fmt: skip
        change = tiny.trained(trainer)
        losses.append(trainer.state.log_history[0]["task_loss"])
        return change

    losses = []
    assert tiny.relative(update(3, 4), update(11, 1)) < 1e-5  # the last micro-batch has two rows
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def mean_of_any(outputs, labels, num_items_in_batch=None):
    """0 where no row has a label, where others are NaN."""
    return mean(outputs, labels).nan_to_num()


def with_noise(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(nn.functional.dropout(outputs.logits, 0.5), labels)


@pytest.mark.parametrize("function, of_all", [(mean, False), (mean_of_any, False), (with_noise, False), (summed, True)])
def test_a_first_micro_batch_without_labels_does_not_tell_which(function, of_all):
    """Of a window of two micro-batches, a mean is half."""
    model, batch = tiny.bert(dropout=0.0), zoo.batch("single_label")
    first = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    objective = Objective.of(model.train(), [batch], loss_function=function)
    count = 2 * (batch["labels"] != -100).sum()
    for micro_batch in (first, batch):
        torch.manual_seed(0)
        window = objective.window([micro_batch, batch])
        terms, _ = objective(model, micro_batch, window, StepSettings(alpha=0.0, num_passes=1), count)
    torch.manual_seed(0)
    returned = function(model(**batch), batch["labels"], count)
    assert terms.task_loss.item() == pytest.approx((returned if of_all else returned / 2).item(), rel=1e-5)


def test_a_loss_function_that_uses_the_count_otherwise_is_refused(tmp_path):
    def neither(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs.logits, labels) + 1 / num_items_in_batch

    with pytest.raises(ValueError, match="compute_loss_func returns .* for twice as many"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, compute_loss_func=neither).train()


class Summed(BertForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = BertForSequenceClassification.forward(self, input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            outputs.loss = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return outputs


def test_losses_that_depend_on_the_number_of_rows_need_passes_of_their_own(tmp_path):
    model = tiny.bert()
    model.__class__ = Summed
    with pytest.raises(ValueError, match='loss of Summed depends on the number of rows.*"sequential"'):
        tiny.trainer(model, tiny.dataset(), tmp_path).train()
    assert model.training and all(module.training for module in model.modules())
    trainer = tiny.trainer(
        model, tiny.dataset(), tmp_path, rdrop_forward_mode="sequential", logging_steps=1,
        per_device_train_batch_size=12,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["task_loss"] == pytest.approx(12 * 1.386, rel=0.1)


def test_a_loss_found_to_differ_is_checked_too(tmp_path):
    """The class says stock loss; this one model was given another."""
    model = tiny.bert()
    model.forward = functools.partial(Summed.forward, model)
    with pytest.raises(ValueError, match="loss of BertForSequenceClassification depends on the number of rows"):
        tiny.trainer(model, tiny.dataset(), tmp_path, per_device_train_batch_size=4).train()


class Hidden(Weighted):
    """Returns no logits with its loss, as trainers with a fused output head do."""

    weights = (1.0, 1.0, 1.0, 1.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs)
        return (result[0], {"accuracy": torch.tensor(0.5)}) if return_outputs else result


class Detached(Hidden):
    """Returns logits of another forward pass, for metrics, as trl's SFTTrainer does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, dict(inputs))
        with torch.no_grad():
            outputs = model(**inputs)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("hiding", [Hidden, Detached])
def test_a_trainer_that_hides_its_logits_must_have_the_stock_loss(hiding, tmp_path):
    data, results = tiny.dataset(), []
    for base in (Trainer, hiding):
        model = tiny.bert(dropout=0.2)
        cls = type("Over", (RDropMixin, base), {})
        trainer = tiny.trainer(model, data, tmp_path, cls, rdrop_alpha=2.0)
        batch = next(iter(trainer.get_train_dataloader()))
        loss = tiny.loss_of(trainer, batch)
        loss.backward()
        results.append((loss.item(), model.classifier.weight.grad.clone()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    over = type("OverWeighted", (RDropMixin, type("HidingWeighted", (hiding,), {"weights": Weighted.weights})), {})
    with pytest.raises(ValueError, match="compute_loss of OverWeighted returns .* and no logits beside it"):
        tiny.trainer(model, data, tmp_path, over).train()


def test_a_fused_head_may_round_otherwise_in_mixed_precision(tmp_path):
    class Rounded(Hidden):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return (1.002 * loss, outputs) if return_outputs else 1.002 * loss

    over = type("OverRounded", (RDropMixin, Rounded), {})
    tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, over, bf16=True).train()
    with pytest.raises(ValueError, match="compute_loss of OverRounded returns"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, over).train()


def test_a_trainer_whose_batches_hold_no_labels_is_refused_by_name(tmp_path):
    class Contrastive(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            raise AssertionError

    data = [{key: value for key, value in row.items() if key != "labels"} for row in tiny.dataset()]
    over = type("Over", (RDropMixin, Contrastive), {})
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, over)
    trainer.train_dataset = data
    said = "R-Drop does not fit Contrastive: its batches hold no `labels`.*input_ids.*label_names"
    with pytest.raises(ValueError, match=said):
        trainer.train()
