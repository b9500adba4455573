"""Where the task loss comes from: label smoothing, users' functions, models and trainers with losses of their own."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Seq2SeqTrainer,
    Trainer,
    XLNetConfig,
    XLNetForQuestionAnswering,
    set_seed,
)

from rdrop_trainer import RDropMixin
from rdrop_trainer.objective import Objective
from rdrop_trainer.objective.decoder_inputs import without_labels
from rdrop_trainer.objective.head_of import head_of
from rdrop_trainer.objective.heads import SINGLE_LABEL
from rdrop_trainer.objective.task_loss import ModelLoss, StockLoss, TrainerLoss, promises_stock_loss
from support import formulas, tiny, zoo
from support.device import on_device

SEQ2SEQ = ("t5", "bart", "marian", "mbart")
SAME = {"rdrop_allow_deterministic": True}


def loss_of(trainer, batch, seed=0):
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer.compute_loss(trainer.model, dict(batch))


# ---- Label smoothing ----


@pytest.mark.parametrize("name", [*SEQ2SEQ, "gpt2", "llama", "masked_lm"])
def test_smoothed_loss_equals_trainers_and_the_definition(name, tmp_path):
    """Without noise, R-Drop's loss is Trainer's smoothed loss, and both follow the formula."""
    model = zoo.build(name, dropout=0.0)
    data, arguments = zoo.dataset(name), {"label_smoothing_factor": 0.1}
    batch = on_device(zoo.batch(name, model))
    trainers = (
        zoo.trainer(name, model, data, tmp_path, plain=True, **arguments),
        zoo.trainer(name, model, data, tmp_path, **arguments, **SAME),
    )
    theirs, ours = (loss_of(trainer, batch).item() for trainer in trainers)
    assert ours == pytest.approx(theirs, rel=1e-6)
    [(logits, labels)] = zoo.items(name, model(**batch), batch)
    expected, _, _ = formulas.rdrop([logits, logits], labels.tolist(), 4.0, smoothing=0.1)
    assert ours == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_alpha_zero_with_label_smoothing_is_trainer_bit_for_bit(name, tmp_path):
    runs = []
    for plain in (True, False):
        model = zoo.build(name)
        trainer = zoo.trainer(
            name, model, zoo.dataset(name), tmp_path, plain, label_smoothing_factor=0.1, rdrop_alpha=0.0
        )
        trainer.train()
        runs.append(tiny.weights(model))
    assert tiny.identical(*runs)


def test_what_stands_for_labels_that_a_model_is_not_given():
    """Decoder inputs for a decoder alone; the labels themselves where the model cannot make those."""
    tokens, answers = {"labels": torch.tensor([[5, 6]])}, {"start_positions": torch.tensor([1])}
    bart, names = zoo.build("bart"), ("labels", "start_positions")
    made = without_labels(bart, {"input_ids": 0, **tokens}, names)
    assert made.keys() == {"input_ids", "decoder_input_ids"}
    for given in ({"decoder_input_ids": 1}, {"decoder_inputs_embeds": 1}):
        assert without_labels(bart, {**given, **tokens}, names) == given
    assert without_labels(bart, {"input_ids": 0, **answers}, names) == {"input_ids": 0}
    assert without_labels(nn.Linear(1, 1), {"input_ids": 0, **tokens}, names) == {"input_ids": 0}
    unable = nn.Linear(1, 1)
    unable.config = bart.config
    assert without_labels(unable, tokens, names) == tokens


@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_decoder_inputs_are_made_where_the_collator_made_none(name, alpha, tmp_path):
    """`Trainer` takes the labels away to smooth them; the decoder inputs they stand for do not get lost."""
    runs = []
    for makes_inputs in (True, False):
        model = zoo.build(name)
        collator = DataCollatorForSeq2Seq(tiny.tokenizer(), model=model if makes_inputs else None)
        data = zoo.dataset(name)
        assert ("decoder_input_ids" in collator(data[:2])) == makes_inputs
        trainer = zoo.trainer(
            name, model, data, tmp_path, data_collator=collator, label_smoothing_factor=0.1, rdrop_alpha=alpha
        )
        trainer.train()
        runs.append((tiny.weights(model), trainer.evaluate(data)["eval_loss"]))
    assert tiny.identical(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_generation_during_evaluation(name, tmp_path):
    data, results = zoo.dataset(name), []
    for plain in (True, False):
        trainer = zoo.trainer(name, zoo.build(name), data, tmp_path, plain, predict_with_generate=True)
        predicted = trainer.predict(data)
        results.append((predicted.predictions, predicted.metrics["test_loss"]))
    assert results[0][0].shape == results[1][0].shape and (results[0][0] == results[1][0]).all()
    assert results[0][1] == results[1][1]


def test_a_trainers_own_loss_with_smoothing_and_without_decoder_inputs(tmp_path):
    class Own(Seq2SeqTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return super().compute_loss(model, inputs, return_outputs, **kwargs)

    losses = []
    for base, collated_for in ((Own, True), (Own, False), (Seq2SeqTrainer, True)):
        model, cls = zoo.build("bart"), type("Over", (RDropMixin, base), {})
        trainer = zoo.trainer("bart", model, zoo.dataset("bart"), tmp_path, cls=cls, label_smoothing_factor=0.1)
        losses.append(loss_of(trainer, on_device(zoo.batch("bart", model if collated_for else None))).item())
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-6)


def test_answers_are_not_smoothed(tmp_path):
    """`Trainer` smooths `labels` alone."""
    batch, losses = on_device(zoo.batch("question")), []
    for plain, smoothing in ((True, 0.3), (False, 0.3), (False, 0.0)):
        trainer = zoo.trainer(
            "question", zoo.build("question", dropout=0.0), zoo.dataset("question"), tmp_path, plain,
            label_smoothing_factor=smoothing, rdrop_allow_deterministic=True,
        )  # fmt: skip
        losses.append(loss_of(trainer, batch).item())
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-6)


class Renamed(LlamaForCausalLM):
    pass


def test_a_renamed_language_model_is_smoothed_like_its_like(tmp_path):
    """`Trainer`'s smoother shifts the labels of classes it knows by name."""
    losses = []
    for cls in (LlamaForCausalLM, Renamed):
        for alpha in (0.0, 4.0):
            model = zoo.build("llama", dropout=0.0)
            model.__class__ = cls
            trainer = zoo.trainer(
                "llama", model, zoo.dataset("llama"), tmp_path, label_smoothing_factor=0.1, rdrop_alpha=alpha, **SAME
            )
            losses.append(loss_of(trainer, zoo.batch("llama", trainer.model)).item())
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


# ---- What a base class counts wrongly ----


@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_answers_that_all_end_outside_still_begin_somewhere(alpha, tmp_path):
    batch, model = zoo.batch("question"), zoo.build("question", dropout=0.0)
    batch["end_positions"] = torch.full((5,), 99)
    batch = on_device(batch)
    trainer = zoo.trainer("question", model, zoo.dataset("question"), tmp_path, rdrop_alpha=alpha, **SAME)
    loss = loss_of(trainer, batch)
    expected = nn.functional.cross_entropy(model(**batch).start_logits, batch["start_positions"]) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_r_drop_an_own_loss_is_trainers_where_a_part_has_no_label(tmp_path):
    def function(outputs, labels, num_items_in_batch=None):
        return outputs.start_logits.square().mean()

    batch, losses = zoo.batch("question"), []
    batch["end_positions"] = torch.full((5,), 99)
    for plain in (True, False):
        model = zoo.build("question", dropout=0.0).train()
        settings = {"compute_loss_func": function, "rdrop_alpha": 0.0}
        trainer = zoo.trainer("question", model, zoo.dataset("question"), tmp_path, plain, **settings)
        losses.append(trainer.compute_loss(model, on_device(batch)).item())
    assert losses[0] == losses[1]


def test_the_first_token_of_gpt2_is_not_counted(tmp_path):
    """alpha=0 gives the mean over predicted tokens, where Trainer divides by one more token per row."""
    data, batch, losses = zoo.dataset("gpt2"), on_device(zoo.batch("gpt2")), {}
    for plain in (True, False):
        trainer = zoo.trainer(
            "gpt2", zoo.build("gpt2", dropout=0.0), data, tmp_path, plain, rdrop_alpha=0.0,
            per_device_train_batch_size=11, logging_steps=1,
        )  # fmt: skip
        trainer.train()
        losses[plain] = trainer.state.log_history[0]["loss"]
    batch, model = zoo.batch("gpt2", rows=11), zoo.build("gpt2", dropout=0.0)
    [(logits, labels)] = zoo.items("gpt2", model(**batch), batch)
    _, mean, _ = formulas.rdrop([logits, logits], labels.tolist(), 0.0)
    assert losses[False] == pytest.approx(mean.item(), rel=1e-5)
    assert losses[True] == pytest.approx(mean.item() * len(labels) / (len(labels) + 11), rel=1e-5)


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
    ours = loss_of(trainer, batch)
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
    loss = loss_of(trainer, batch)
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


# ---- Trainers with a compute_loss of their own ----


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

    source = TrainerLoss(compute_loss, "Base", "Own", nn.Identity(), counts=SINGLE_LABEL)
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


def test_a_trainers_own_loss_needs_outputs(tmp_path):
    class Alone(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs)

    with pytest.raises(ValueError, match="compute_loss of Over must return .loss, outputs.*returned a Tensor"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, type("Over", (RDropMixin, Alone), {})).train()


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
        loss = loss_of(trainer, batch)
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
    with pytest.raises(ValueError, match="R-Drop does not fit Contrastive: its batches hold no `labels`.*input_ids"):
        trainer.train()


# ---- Settings for which a model returns no logits ----


def test_models_that_skip_logits_when_given_labels(tmp_path):
    """As Liger kernels do: the labels are withheld, so the logits are there."""
    given = []

    def skips_logits(model, args, kwargs, outputs):
        given.append("labels" in kwargs)
        return replace(outputs, logits=None) if "labels" in kwargs else outputs

    data, batch = zoo.dataset("llama"), on_device(zoo.batch("llama"))
    trainer = zoo.trainer("llama", zoo.build("llama"), data, tmp_path)
    usual = loss_of(trainer, batch)
    trainer = zoo.trainer("llama", zoo.build("llama"), data, tmp_path)
    trainer.args.use_liger_kernel = True
    trainer.model.register_forward_hook(skips_logits, with_kwargs=True)
    assert loss_of(trainer, batch) == usual and given == [False]

    trainer = zoo.trainer("llama", mixtral(output_router_logits=True), data, tmp_path)
    trainer.args.use_liger_kernel = True
    with pytest.raises(ValueError, match="own loss of MixtralForCausalLM.*fused_linear_cross_entropy': False"):
        loss_of(trainer, batch)
    trainer.args.liger_kernel_config = {"fused_linear_cross_entropy": False}
    assert loss_of(trainer, batch).isfinite()


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
        loss_of(zoo.trainer(name, XLNetForQuestionAnswering(config), zoo.dataset(name), tmp_path), batch)
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
