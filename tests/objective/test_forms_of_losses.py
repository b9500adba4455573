"""A `compute_loss` of a base trainer in the forms that are met: taken as it is, or refused with a sentence."""

import functools
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import Trainer

from rdrop_trainer import RDropMixin, RDropTrainer
from support import tiny, zoo

SAME = {"rdrop_allow_deterministic": True}


def without_outputs(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    return model(**inputs).loss * 3


def of_two_parameters(self, model, inputs, num_items_in_batch=None):
    return model(**inputs).loss * 3


def outputs_as_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    return (outputs, outputs) if return_outputs else outputs.loss


def three_entries(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    return (outputs.loss, outputs, {"extra": 1}) if return_outputs else outputs.loss


@pytest.mark.parametrize(
    "function, returned",
    [
        (without_outputs, "Tensor"),
        (of_two_parameters, "Tensor"),
        (outputs_as_loss, "tuple of SequenceClassifierOutput, SequenceClassifierOutput"),
        (three_entries, "tuple of Tensor, SequenceClassifierOutput, dict"),
    ],
)
def test_a_trainers_own_loss_needs_outputs(function, returned, tmp_path):
    own = type("Own", (Trainer,), {"compute_loss": function})
    over = type("Over", (RDropMixin, own), {})
    with pytest.raises(ValueError, match=rf"compute_loss of Over must return .loss, outputs.*returned a {returned}\."):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, over).train()
    updates = []
    for cls, settings in ((over, {"rdrop_alpha": 0.0}), (own, {})):  # which needs none
        trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, per_device_train_batch_size=6, **settings)
        updates.append(tiny.trained(trainer))
    assert torch.equal(*updates) and updates[0].norm() > 0


def tripled(self, model, inputs, return_outputs=False, num_items_in_batch=None, weight=3.0):
    outputs = model(**inputs)
    return (weight * outputs.loss, outputs) if return_outputs else weight * outputs.loss


class Elsewhere:
    __call__ = tripled


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("method", ["partialmethod", "staticmethod", "an object"])
def test_a_compute_loss_that_is_no_plain_function(method, in_front, tmp_path):
    methods = {
        "partialmethod": functools.partialmethod(tripled, weight=3.0),
        "staticmethod": staticmethod(functools.partial(tripled, None)),
        "an object": Elsewhere(),
    }

    def update(compute_loss):
        space, base = {"compute_loss": compute_loss}, RDropTrainer if in_front else Trainer
        cls = type("Own", (base,), space)
        cls = cls if in_front else type("Over", (RDropMixin, cls), {})
        model = zoo.noisy("single_label", concat=False)
        trainer = tiny.trainer(
            model, tiny.dataset(rows=8), tmp_path, cls, rdrop_forward_mode="sequential", logging_steps=1,
            **tiny.PURE_SGD, **SAME,
        )  # fmt: skip
        return tiny.trained(trainer), tiny.logged(trainer, "task_loss")

    (found, losses), (expected, wanted) = update(methods[method]), update(tripled)
    assert torch.equal(found, expected) and losses == wanted and losses[0] == pytest.approx(3 * 1.386, rel=0.1)


class Inside(nn.Module):
    """A model of one's own."""

    def __init__(self):
        super().__init__()
        self.bert = tiny.bert(dropout=0.3)

    def forward(self, input_ids=None, attention_mask=None, labels=None, inputs_embeds=None):
        return self.bert(input_ids, attention_mask, labels=labels, inputs_embeds=inputs_embeds)


class Virtual(Trainer):
    """Virtual adversarial training, which takes a gradient by itself."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, loss = model(**inputs), 0.0
        if model.training:
            embedded = getattr(model, "bert", model).get_input_embeddings()(inputs["input_ids"]).detach()
            noise = torch.full_like(embedded, 0.1).requires_grad_()
            logits = model(inputs_embeds=embedded + noise, attention_mask=inputs["attention_mask"]).logits
            (direction,) = torch.autograd.grad((logits - outputs.logits.detach()).pow(2).mean(), noise)
            logits = model(inputs_embeds=embedded + direction, attention_mask=inputs["attention_mask"]).logits
            loss = (logits - outputs.logits).pow(2).mean()
        return (outputs.loss + loss, outputs) if return_outputs else outputs.loss + loss


@pytest.mark.parametrize("build", [functools.partial(tiny.bert, dropout=0.3), Inside])
def test_a_compute_loss_that_takes_gradients_by_itself(build, tmp_path):
    cls, updates = type("Over", (RDropMixin, Virtual), {}), {}
    for mode in ("concat", "sequential", "recompute"):
        torch.manual_seed(0)
        settings = {"rdrop_forward_mode": mode, "max_steps": 1, "logging_steps": 1, **tiny.PURE_SGD}
        trainer = tiny.trainer(build(), tiny.dataset(), tmp_path, cls, **settings)
        updates[mode] = tiny.trained(trainer)
        assert tiny.logged(trainer, "divergence")[0] > 0
    assert updates["sequential"].norm() > 0 and tiny.relative(updates["recompute"], updates["sequential"]) < 1e-6


@pytest.mark.parametrize("mode", ["sequential", "recompute"])
def test_scores_of_one_row_in_a_tuple_are_no_loss(mode, tmp_path):
    """A last batch of one row, whose squeezed scores have the shape (1,)."""

    def update(outputs_of):
        class Scores(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                scores = model(**inputs).logits.squeeze(-1)
                loss = nn.functional.mse_loss(scores, labels)
                return (loss, outputs_of(scores)) if return_outputs else loss

        cls = type("Over", (RDropMixin, Scores), {})
        settings = {"per_device_train_batch_size": 4, "rdrop_forward_mode": mode, "rdrop_alpha": 50.0}
        torch.manual_seed(0)
        model, data = tiny.bert("regression", dropout=0.5), tiny.dataset("regression", rows=5)
        return tiny.trained(tiny.trainer(model, data, tmp_path, cls, **settings, **tiny.PURE_SGD))

    found = update(lambda scores: (scores, torch.ones(len(scores), 3)))
    expected = update(lambda scores: {"logits": scores, "features": torch.ones(len(scores), 3)})
    assert tiny.relative(found, expected) < 1e-6


def test_a_trainer_whose_compute_loss_is_bound_anew_at_each_call_is_let_go(tmp_path):
    own = type("Own", (Trainer,), {"compute_loss": functools.partialmethod(tripled, weight=3.0)})
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, type("Over", (RDropMixin, own), {}), max_steps=1)
    trainer.train()
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


@dataclass
class Weighted:
    """Not hashable, as data classes are."""

    weight: float

    def __call__(self, outputs, labels, num_items_in_batch=None):
        return self.weight * nn.functional.cross_entropy(outputs.logits, labels)


def test_a_loss_function_of_a_data_class_beside_a_compute_loss_that_takes_gradients(tmp_path):
    class Both(Virtual):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels, virtual = inputs["labels"], super().compute_loss(model, inputs, True)[0]
            outputs = model(**inputs)
            loss = self.compute_loss_func(outputs, labels) + 0 * virtual
            return (loss, outputs) if return_outputs else loss

    cls, settings = type("Over", (RDropMixin, Both), {}), {"compute_loss_func": Weighted(3.0), "logging_steps": 1}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, max_steps=1, **settings)
    trainer.train()
    assert tiny.logged(trainer, "task_loss")[0] == pytest.approx(3 * 1.386, rel=0.1)


def test_a_backward_within_compute_loss_is_refused(tmp_path):
    """Its gradient would be added once for every pass, and for every look at the loss."""

    class Deep(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            self.accelerator.backward(0.5 * outputs.loss, retain_graph=True)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    cls = type("Over", (RDropMixin, Deep), {})
    for steps in (1, 2):
        settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": steps}
        with pytest.raises(ValueError, match="The compute_loss of Deep runs a backward of its own"):
            tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, **settings).train()


def test_a_backward_beside_a_loss_function_is_refused(tmp_path):
    class Deep(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels, outputs = inputs["labels"], model(**inputs)
            (0.1 * outputs.logits.pow(2).mean()).backward(retain_graph=True)
            loss = self.compute_loss_func(outputs, labels)
            return (loss, outputs) if return_outputs else loss

    cls = type("Over", (RDropMixin, Deep), {})
    with pytest.raises(ValueError, match="The compute_loss of Deep runs a backward of its own"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, compute_loss_func=Weighted(3.0)).train()


def test_a_compute_loss_of_other_rows_is_refused_by_the_outputs_that_it_returns(tmp_path):
    class Last(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            return nn.functional.cross_entropy(outputs.logits[:, -1], labels), outputs

    data = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": 8}] * 8
    with pytest.raises(ValueError, match="A compute_loss of other logits returns those as its outputs"):
        tiny.trainer(zoo.build("llama"), data, tmp_path, type("Over", (RDropMixin, Last), {})).train()


def test_a_loss_function_that_the_trainers_own_loss_calls_in_a_way_of_its_own(tmp_path):
    """As one that takes the logits of a reference model: the trainer's loss is the task loss."""

    def beside(outputs, labels, reference):
        return nn.functional.cross_entropy(outputs.logits + reference, labels) * 3

    class Refers(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = self.compute_loss_func(outputs, labels, outputs.logits.new_tensor([9.0, 0.0, 0.0, 0.0]))
            return (loss, outputs) if return_outputs else loss

    cls, data = type("Over", (RDropMixin, Refers), {}), [{**row, "labels": 1} for row in tiny.dataset()]
    settings = {"compute_loss_func": beside, "logging_steps": 1, "max_steps": 1}
    trainer = tiny.trainer(tiny.bert(), data, tmp_path, cls, eval_dataset=data, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["task_loss"] == pytest.approx(27.0, rel=0.02)
    assert trainer.state.log_history[0]["divergence"] > 0 and trainer.evaluate()["eval_loss"] > 26
