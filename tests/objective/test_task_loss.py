"""Losses of models and of users' functions, which are kept; and models without logits."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    XLNetConfig,
    XLNetForQuestionAnswering,
    set_seed,
)

from rdrop_trainer.objective import Objective
from rdrop_trainer.objective.head_of import head_of
from rdrop_trainer.objective.task_loss import ModelLoss, StockLoss, promises_stock_loss
from support import formulas, tiny, zoo
from support.device import on_device

SAME = {"rdrop_allow_deterministic": True}


# ---- Losses that are kept ----


def mixtral(coefficient=0.02, **changes):
    set_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, **zoo.DECODER, num_key_value_heads=2, num_local_experts=4, attention_dropout=0.2,
            router_aux_loss_coef=coefficient, bos_token_id=2, **changes,
        )
    )  # fmt: skip


@pytest.mark.parametrize("how", ["config", "input"])
def test_a_router_loss_is_kept(how, tmp_path):
    """However small it is beside the cross-entropy."""
    model = mixtral(1e-6, output_router_logits=how == "config")
    data, batch = zoo.dataset("llama"), on_device(zoo.batch("llama"))
    if how == "input":
        batch["output_router_logits"] = True
    trainer = zoo.trainer(
        "llama", model, data, tmp_path, rdrop_alpha=2.0, rdrop_forward_mode="sequential", logging_steps=1
    )
    ours = tiny.loss_of(trainer, batch)
    torch.manual_seed(0)
    passes = [model(**batch) for _ in range(2)]
    own = sum(output.loss for output in passes) / 2
    stock, divergence = formulas.rdrop(
        [zoo.items("llama", z, batch)[0][0] for z in passes], zoo.items("llama", passes[0], batch)[0][1].tolist(), 2.0
    )[1:]
    assert type(Objective.of(model, [batch]).plan.task_loss) is (ModelLoss if how == "config" else StockLoss)
    assert ours.item() == pytest.approx((own + divergence).item(), rel=1e-6) and own > stock


class RareClass(BertForSequenceClassification):
    @property
    def loss_function(self):
        return lambda labels, pooled_logits, config, **kwargs: nn.functional.cross_entropy(
            pooled_logits, labels, torch.tensor([1.0, 1.0, 1.0, 50.0])
        )


def test_a_loss_function_of_the_class_is_kept_from_the_start():
    """Although on the classes of the first batches it looks like the stock loss."""
    model = tiny.bert()
    model.__class__ = RareClass
    assert not promises_stock_loss(model)
    model = tiny.bert()
    assert promises_stock_loss(model)
    model.loss_function = RareClass.loss_function.fget(model)
    assert not promises_stock_loss(model)


class Doubled(LlamaForCausalLM):
    """A language model with a loss of its own."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        outputs.loss = None if outputs.loss is None else 2 * outputs.loss
        return outputs


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_a_language_models_own_loss_is_kept_under_accumulation(mode, tmp_path):
    """Padding that has labels counts in it."""
    data = []
    for index, row in enumerate(zoo.dataset("llama", rows=8)):
        tokens = (row["input_ids"] * 4)[:4]
        data.append({"input_ids": tokens, "attention_mask": [1, 1, index > 2, index > 2], "labels": tokens})

    def update(rows, steps, **arguments):
        model = zoo.build("llama", dropout=0.0)
        model.__class__ = Doubled
        trainer = zoo.trainer(
            "llama", model, data, tmp_path, rdrop_forward_mode=mode,
            per_device_train_batch_size=rows, gradient_accumulation_steps=steps, **SAME, **tiny.PURE_SGD, **arguments,
        )  # fmt: skip
        return tiny.trained(trainer)

    assert tiny.relative(update(2, 4), update(8, 1)) < 1e-5


@pytest.mark.parametrize("name", ["question", "llama", "t5"])
def test_a_users_loss_function_gets_each_pass(name, tmp_path):
    seen = []

    def loss_func(outputs, labels, num_items_in_batch=None):
        logits = outputs["start_logits"] if name == "question" else outputs["logits"]
        seen.append((len(logits), labels, num_items_in_batch))
        return 7 * logits.square().mean()

    model = zoo.build(name, dropout=0.2)
    trainer = zoo.trainer(
        name, model, zoo.dataset(name), tmp_path, compute_loss_func=loss_func, rdrop_forward_mode="sequential",
        rdrop_alpha=2.0, logging_steps=1, per_device_train_batch_size=11,
    )  # fmt: skip
    batch = zoo.batch(name, model)
    loss = tiny.loss_of(trainer, batch)
    assert [rows for rows, *_ in seen] == [5, 5]
    assert seen[0][1] is None if name == "question" else torch.equal(seen[0][1], batch["labels"])
    torch.manual_seed(0)
    passes = [model(**batch) for _ in range(2)]
    parts = list(zip(*(zoo.items(name, z, batch) for z in passes), strict=True))
    divergences = [formulas.rdrop([z for z, _ in part], part[0][1].tolist(), 2.0)[2] for part in parts]
    own = sum(loss_func(z, None) for z in passes) / 2
    assert loss.item() == pytest.approx((own + sum(divergences) / len(parts)).item(), rel=1e-5)
    trainer.train()
    assert trainer.state.log_history[0]["divergence"] > 0


# ---- Settings for which a model returns no logits ----


def test_models_that_skip_logits_when_given_labels(tmp_path):
    """As Liger kernels do: the labels are withheld, so the logits are there."""
    given = []

    def skips_logits(model, args, kwargs, outputs):
        given.append("labels" in kwargs)
        return replace(outputs, logits=None) if "labels" in kwargs else outputs

    data, batch = zoo.dataset("llama"), on_device(zoo.batch("llama"))
    trainer = zoo.trainer("llama", zoo.build("llama"), data, tmp_path)
    usual = tiny.loss_of(trainer, batch)
    trainer = zoo.trainer("llama", zoo.build("llama"), data, tmp_path)
    trainer.args.use_liger_kernel = True
    trainer.model.register_forward_hook(skips_logits, with_kwargs=True)
    assert tiny.loss_of(trainer, batch) == usual and given == [False]

    trainer = zoo.trainer("llama", mixtral(output_router_logits=True), data, tmp_path)
    trainer.args.use_liger_kernel = True
    with pytest.raises(ValueError, match="own loss of MixtralForCausalLM.*fused_linear_cross_entropy': False"):
        tiny.loss_of(trainer, batch)
    trainer.args.liger_kernel_config = {"fused_linear_cross_entropy": False}
    assert tiny.loss_of(trainer, batch).isfinite()


def test_a_model_without_logits_is_refused_with_the_outputs_it_has(tmp_path):
    class NoLogits(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"loss": self.scale, "scores": self.scale}

    with pytest.raises(ValueError, match="needs the model to return 'logits'.*: loss, scores"):
        tiny.trainer(NoLogits(), tiny.dataset(), tmp_path).train()
    name = "question"
    batch = on_device(zoo.batch(name) | {"end_positions": torch.tensor([3, 4, 5, 6, 7])})
    with pytest.raises(
        ValueError, match="return 'start_logits'.*XLNetForQuestionAnsweringOutput only holds: loss.*ends in .*Simple"
    ):
        config = XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=16)
        tiny.loss_of(zoo.trainer(name, XLNetForQuestionAnswering(config), zoo.dataset(name), tmp_path), batch)
    with pytest.raises(ValueError, match="labels.*to tell what NoLogits predicts; they are a list"):
        head_of(NoLogits(), {"labels": [{"boxes": 1}]})


def test_a_micro_batch_without_labels_adds_nothing_to_a_models_own_loss(tmp_path):
    """Its own mean over nothing is NaN; the window's other rows weigh as they would alone."""

    def update(rows, **arguments):
        model = tiny.bert(dropout=0.0)
        model.forward = functools.partial(Tripled.forward, model)
        trainer = tiny.trainer(
            model, rows, tmp_path, rdrop_forward_mode="sequential", per_device_train_batch_size=2,
            train_sampling_strategy="sequential", logging_steps=1, **SAME, **tiny.PURE_SGD, **arguments,
        )  # fmt: skip
        change = tiny.trained(trainer)
        losses.append(trainer.state.log_history[0]["task_loss"])
        return change

    losses = []
    rows = tiny.dataset(rows=4, unlabeled=(2, 3))
    with_nothing, alone = update(rows, gradient_accumulation_steps=2), update(rows[:2])
    assert tiny.relative(with_nothing, alone) < 1e-5
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class Tripled(BertForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = BertForSequenceClassification.forward(self, input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            outputs.loss = 3 * nn.functional.cross_entropy(outputs.logits, labels)
        return outputs
