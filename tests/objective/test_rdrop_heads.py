"""`rdrop_heads`: several heads of one model, labels of other names, logits anywhere among the outputs."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, set_seed

from rdrop_trainer import (
    Head,
    Objective,
    RDropMixin,
    RDropTrainer,
    StepSettings,
)
from rdrop_trainer.objective.heads import SINGLE_LABEL, TOKEN
from rdrop_trainer.objective.joint import JointHead
from rdrop_trainer.objective.task_loss import ModelLoss
from support import formulas, tiny, zoo

ALPHA = 3.0
INTENT, SLOTS = Head("intent", "intent_labels"), Head("slots", "slot_labels", weight=0.5)
NESTED = (Head("0.0", "intent_labels"), Head("0.1", "slot_labels", weight=0.5))
BY_PLACE = (Head(0, "intent_labels"), Head(1, "slot_labels", weight=0.5))
HEADS = {"names": (INTENT, SLOTS), "tuple": BY_PLACE, "nested": NESTED}


class Joint(nn.Module):
    """Intent of a text and slots of its tokens; the noise is that of the row, whatever batch it is in.

    Args:
        form: "names": a dictionary; "tuple"; "nested": a tuple with the logits in a tuple of their own.
        concat: the passes come in one forward.
    """

    def __init__(self, form="names", concat=True, slot_loss=0.5, passes=2):
        super().__init__()
        set_seed(0)
        self.embed, self.noise = nn.Embedding(40, 16), tiny.PassNoise(passes, concat)
        self.intent, self.slots = nn.Linear(16, 3), nn.Linear(16, 5)
        self.form, self.slot_loss = form, slot_loss

    def forward(self, input_ids, attention_mask=None, intent_labels=None, slot_labels=None):
        hidden = self.noise(self.embed(input_ids))
        intent, slots = self.intent(hidden[:, 0]), self.slots(hidden)
        loss = None
        if intent_labels is not None:
            loss = F.cross_entropy(intent, intent_labels) + self.slot_loss * F.cross_entropy(slots.mT, slot_labels)
        if self.form == "names":
            return {"loss": loss, "intent": intent, "slots": slots}
        logits = (intent, slots) if self.form == "tuple" else ((intent, slots),)
        return logits if loss is None else (loss, *logits)


def rows(n=12, seed=0):
    """Rows of 6 tokens, with unequal numbers of labels."""
    g = torch.Generator().manual_seed(seed)
    slots = torch.randint(0, 5, (n, 6), generator=g)
    slots[torch.rand(n, 6, generator=g) < torch.linspace(0, 0.8, n)[:, None]] = -100
    slots[:, 0] = 1
    return {
        "input_ids": torch.randint(5, 40, (n, 6), generator=g),
        "intent_labels": torch.randint(0, 3, (n,), generator=g),
        "slot_labels": slots,
    }


def expected(model, batch):
    """Task loss and divergence in float64, of the noise that the rows have in a forward of two passes."""
    with torch.no_grad():
        hidden = model.noise(torch.cat([model.embed(batch["input_ids"])] * 2)).double()
        intent = hidden[:, 0] @ model.intent.weight.double().T + model.intent.bias
        slots = hidden @ model.slots.weight.double().T + model.slots.bias
    _, task, divergence = formulas.rdrop(intent.chunk(2), batch["intent_labels"].tolist(), 0.0)
    kept = batch["slot_labels"] != -100
    _, slot_task, slot_divergence = formulas.rdrop(
        [z[kept] for z in slots.chunk(2)], batch["slot_labels"][kept].tolist(), 0.0
    )
    return task + 0.5 * slot_task, divergence + 0.5 * slot_divergence


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
@pytest.mark.parametrize("form", HEADS)
def test_intent_and_slots_equal_the_definition(form, mode):
    model, batch = Joint(form, mode == "concat").train(), rows()
    task, divergence = expected(Joint(form).train(), batch)
    objective = Objective.of(model, [batch], heads=HEADS[form])
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA, forward_mode=mode))
    assert divergence > 1e-3
    assert terms.task_loss.item() == pytest.approx(task.item(), rel=1e-5)
    assert terms.divergence.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert terms.loss.item() == pytest.approx((task + ALPHA / 2 * divergence).item(), rel=1e-5)


class JointTrainer(Trainer):
    """Makes the loss itself, of a model without one."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = {key: inputs[key] for key in ("intent_labels", "slot_labels")}
        outputs = model(**{key: value for key, value in inputs.items() if key not in labels})
        loss = F.cross_entropy(outputs["intent"], labels["intent_labels"])
        loss = loss + 0.5 * F.cross_entropy(outputs["slots"].mT, labels["slot_labels"])
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize("how", ["model", "trainer"])
def test_accumulation_equals_one_large_batch(how, alpha, tmp_path):
    """Although each micro-batch has another share of the slots than of the rows."""
    batch, updates = rows(), []
    data = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    cls = RDropTrainer if how == "model" else type("Over", (RDropMixin, JointTrainer), {})
    for size, steps in ((12, 1), (3, 4), (5, 3)):
        model = Joint(passes=2 if alpha else 1)
        trainer = tiny.trainer(
            model, data, tmp_path, cls, data_collator=zoo.default_data_collator, rdrop_alpha=alpha,
            rdrop_heads=[INTENT, SLOTS], label_names=["intent_labels", "slot_labels"], remove_unused_columns=False,
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, logging_steps=1,
            train_sampling_strategy="sequential", **tiny.PURE_SGD,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
        if alpha:
            task, divergence = (value.item() for value in expected(Joint().train(), batch))
            log = trainer.state.log_history[0]
            assert log["task_loss"] == pytest.approx(task, rel=1e-5)
            assert log["divergence"] == pytest.approx(divergence, rel=1e-5)
    assert updates[0].norm() > 0
    assert tiny.relative(updates[1], updates[0]) < 1e-5 and tiny.relative(updates[2], updates[0]) < 1e-5


def test_a_function_that_adds_up_the_usual_losses():
    class Targets(Joint):
        def forward(self, input_ids, intent_labels, labels=None):
            return {**super().forward(input_ids), "targets": intent_labels}

    def function(outputs, labels, num_items_in_batch=None):
        slots = F.cross_entropy(outputs["slots"].mT, labels)
        return F.cross_entropy(outputs["intent"], outputs["targets"]) + 0.5 * slots

    model, batch = Targets().train(), rows()
    task, _ = expected(Joint().train(), batch)
    batch["labels"] = batch.pop("slot_labels")
    parts = [{key: value[i : i + 4] for key, value in batch.items()} for i in (0, 4, 8)]
    heads = [INTENT, Head("slots", "labels", weight=0.5)]
    objective = Objective.of(model, parts, heads=heads, loss_function=function)
    window = objective.window(parts)
    total = sum(objective(model, part, window, StepSettings(alpha=ALPHA), count=12)[0].task_loss for part in parts)
    assert total.item() == pytest.approx(task.item(), rel=1e-5)


def test_what_a_joint_loss_holds_besides_is_kept():
    """A loss that is not the sum of the usual ones is kept as it is, a mean over the micro-batch."""
    model, batch = Joint(slot_loss=0.7).train(), rows()
    objective = Objective.of(model, [batch], heads=[INTENT, SLOTS])
    assert objective.plan.task_loss == ModelLoss(model)
    terms, passes = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA))
    assert terms.task_loss.item() == pytest.approx(passes.loss().item(), rel=1e-6)
    # And one that was, and is not any more
    model = Joint().train()
    objective = Objective.of(model, [batch], heads=[INTENT, SLOTS])
    assert objective.plan.task_loss == ModelLoss(model, of_heads=True)
    model.slot_loss = 0.7
    terms, passes = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA))
    assert terms.task_loss.item() == pytest.approx(passes.loss().item(), rel=1e-5)


def test_a_micro_batch_without_labels_of_one_head():
    model, batch = Joint().train(), rows()
    empty = {**batch, "slot_labels": torch.full_like(batch["slot_labels"], -100)}
    objective = Objective.of(model, [batch], heads=[INTENT, SLOTS])
    window = objective.window([batch, empty])
    total = sum(objective(model, b, window, StepSettings(alpha=ALPHA))[0].task_loss for b in (batch, empty))
    total.backward()
    # All slots, and all intents twice, are in the first batch
    assert total.item() == pytest.approx(expected(Joint().train(), batch)[0].item(), rel=1e-5)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_one_sentence_where_a_joint_model_has_no_heads_named():
    with pytest.raises(ValueError, match="labels.*got only: input_ids, intent_labels.*rdrop_heads"):
        Objective.of(Joint().train(), [rows()])
    batch = rows()
    batch["labels"] = batch.pop("intent_labels")

    class Logits(Joint):
        def forward(self, input_ids, labels, slot_labels):
            loss, *logits = super().forward(input_ids, None, labels, slot_labels)
            return {"loss": loss, "logits": tuple(logits)}

    model = Logits("tuple").train()
    objective = Objective.of(model, [batch])
    with pytest.raises(ValueError, match=r'returns 2 tensors as .logits.*rdrop_heads: Head\(logits="logits.0"'):
        objective(model, batch, objective.window([batch]), StepSettings())
    heads = [Head("logits.0"), Head("logits.1", "slot_labels", weight=0.5)]
    objective = Objective.of(model, [batch], heads=heads)
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA))
    assert terms.divergence.item() == pytest.approx(expected(Joint().train(), rows())[1].item(), rel=1e-5)


def test_names_in_another_order_are_not_taken_for_the_entries_of_a_tuple():
    model, batch = Joint("tuple").train(), rows()
    heads = [Head("slots", "slot_labels", weight=0.5), Head("intent", "intent_labels")]
    objective = Objective.of(model, [batch], heads=heads)
    with pytest.raises(ValueError, match="to return 'slots', but tuple only holds: loss, 0, 1"):
        objective(model, batch, objective.window([batch]), StepSettings())


def test_a_tuple_has_no_name_in_it():
    """Its entries are known by position: "0.0" is the first of a tuple that stands in it."""

    class Nested(Joint):
        def forward(self, **inputs):
            loss, *logits = super().forward(**inputs)
            return loss, tuple(logits)

    model, batch = Nested("tuple").train(), rows()
    heads = [Head("logits.0", "intent_labels"), Head("logits.1", "slot_labels")]
    objective = Objective.of(model, [batch], heads=heads)
    with pytest.raises(ValueError, match="to return 'logits.0', but tuple only holds: loss, 0"):
        objective(model, batch, objective.window([batch]), StepSettings())
    heads = [Head("0.0", "intent_labels"), Head("0.1", "slot_labels", weight=0.5)]
    objective = Objective.of(model, [batch], heads=heads)
    assert objective(model, batch, objective.window([batch]), StepSettings())[0].divergence > 0


@pytest.mark.parametrize("heads, message", [
    ([Head("intent", "intents")], "names the labels 'intents'.*got only: input_ids"),
    ([Head("intents", "intent_labels")], "needs the model to return 'intents', but dict only holds: loss, intent"),
])  # fmt: skip
def test_names_that_are_not_there(heads, message):
    model, batch = Joint().train(), rows()
    with pytest.raises(ValueError, match=message):
        objective = Objective.of(model, [batch], heads=heads)
        objective(model, batch, objective.window([batch]), StepSettings())


def test_two_heads_of_rows():
    """Each has labels of its own classes, whatever number of classes the configuration has."""

    class TwoTopics(Joint):
        config = SimpleNamespace(num_labels=2)

        def forward(self, input_ids, first=None, second=None):
            hidden = self.noise(self.embed(input_ids))[:, 0]
            first_logits, second_logits = self.intent(hidden), self.slots(hidden)
            loss = None if first is None else F.cross_entropy(first_logits, first)
            loss = None if second is None else loss + F.cross_entropy(second_logits, second)
            return {"loss": loss, "a": first_logits, "b": second_logits}

    batch = {"input_ids": torch.arange(12).view(3, 4), "first": torch.tensor([0, 2, 1])}
    batch["second"] = torch.tensor([4, 0, 3])
    model = TwoTopics().train()
    objective = Objective.of(model, [batch], heads=(Head("a", "first"), Head("b", "second")))
    terms, passes = objective(model, batch, objective.window([batch]), StepSettings(alpha=ALPHA))
    expected = sum(formulas.rdrop(passes[key][0].detach().split(3), [-100] * 3, ALPHA)[2] for key in "ab")
    assert terms.divergence.item() == pytest.approx(expected.item(), rel=1e-5) and objective.plan.head.of_rows
    assert not JointHead.of([SINGLE_LABEL, TOKEN]).of_rows


def test_noise_may_reach_a_single_head():
    class Late(Joint):
        def __init__(self):
            super().__init__()
            self.slots, self.noise = nn.Sequential(tiny.PassNoise(), self.slots), nn.Identity()

    model, batch = Late().train(), rows()
    objective = Objective.of(model, [batch], heads=[INTENT, SLOTS])
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings())
    assert terms.divergence > 0 and objective.plan.noise is None


def test_unlabeled_rows_have_one_kind_of_label(tmp_path):
    data = [{"input_ids": IDS, "intent_labels": 0, "label": 1} for IDS in torch.ones(4, 6).long()]
    trainer = tiny.trainer(
        Joint(), data, tmp_path, unlabeled_dataset=data, data_collator=zoo.default_data_collator,
        rdrop_heads=[INTENT, SLOTS],
    )  # fmt: skip
    with pytest.raises(ValueError, match="unlabeled_dataset marks.*rdrop_heads names intent_labels, slot_labels"):
        trainer.train()
