"""What a user of RDropTrainer sees: the swap, the heads, the logs, the errors."""

import copy
import functools

import formulas
import pytest
import tiny
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rdrop_trainer import RDropMixin, RDropTrainer, RDropTrainingArguments


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("head", tiny.HEADS)
def test_alpha_zero_is_trainer_bit_for_bit(head, tmp_path):
    runs = []
    for cls, extra in ((Trainer, {}), (RDropTrainer, {"rdrop_alpha": 0.0})):
        trainer = tiny.trainer(tiny.bert(head), tiny.dataset(head), tmp_path, cls, num_train_epochs=3, **extra)
        trainer.train()
        runs.append((tiny.weights(trainer.model), trainer.state.log_history[-1]["train_loss"]))
    assert tiny.identical(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("head", tiny.HEADS)
def test_evaluation_and_prediction_are_trainers_bit_for_bit(head, tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    model = tiny.bert(head)
    results = []
    for cls in (Trainer, RDropTrainer):
        data = tiny.dataset(head)
        trainer = tiny.trainer(model, data, tmp_path, cls, per_device_eval_batch_size=5, compute_metrics=metrics)
        results.append((trainer.evaluate(data), trainer.predict(data)))
    (eval_a, pred_a), (eval_b, pred_b) = results
    assert eval_a["eval_loss"] == eval_b["eval_loss"] and eval_a["eval_rows"] == eval_b["eval_rows"] == 12
    assert (pred_a.predictions == pred_b.predictions).all() and (pred_a.label_ids == pred_b.label_ids).all()


def test_evaluation_during_training_runs_one_forward(tmp_path):
    model, calls = tiny.bert(), []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((m.training, len(kwargs["input_ids"]))), with_kwargs=True
    )
    trainer = tiny.trainer(
        model,
        tiny.dataset(rows=8),
        tmp_path,
        eval_dataset=tiny.dataset(rows=6),
        eval_strategy="epoch",
        per_device_eval_batch_size=6,
    )
    trainer.train()
    assert calls == [(True, 16), (False, 6)]


def test_one_word_swap_with_plain_training_arguments(tmp_path):
    args = TrainingArguments(
        str(tmp_path),
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer())
    trainer.train()
    assert trainer.args.rdrop_alpha == 4.0
    assert logged(trainer, "divergence")[0] > 0


def test_settings_are_read_when_used(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1, disable_tqdm=True)
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer())
    trainer.model.train()
    batch = batch_of(trainer)
    losses = []
    for alpha in (0.0, 1e5):
        trainer.args.rdrop_alpha = alpha
        torch.manual_seed(0)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[1] > losses[0]
    trainer.args.rdrop_alpha = -1.0
    with pytest.raises(ValueError, match="rdrop_alpha must be"):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("head", tiny.HEADS)
@pytest.mark.parametrize("num_passes", [2, 3])
def test_loss_of_a_batch_equals_the_definition(head, num_passes, tmp_path):
    model = tiny.noisy_bert(head, num_passes)
    data = tiny.dataset(head, rows=5, unlabelled=(1,))
    trainer = tiny.trainer(
        model,
        data,
        tmp_path,
        rdrop_num_passes=num_passes,
        rdrop_alpha=3.0,
        rdrop_allow_deterministic=True,
        per_device_train_batch_size=5,
    )
    model.train()
    batch = batch_of(trainer)
    before = {k: v.clone() for k, v in batch.items()}
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert all(torch.equal(batch[k], before[k]) for k in before) and batch.keys() == before.keys()
    assert outputs.logits.shape[0] == 5 and outputs.loss == loss

    repeated = {k: v.repeat(num_passes, *[1] * (v.dim() - 1)) for k, v in batch.items() if k != "labels"}
    logits = model(**repeated).logits
    labels = batch["labels"]
    if head == "token":
        # labelled tokens, and every attended token of the row without labels
        counts = (labels != -100) | ((labels == -100).all(1, keepdim=True) & batch["attention_mask"].bool())
        passes, labels = [z[counts] for z in logits.split(5)], labels[counts]
    else:
        passes = logits.split(5)
    problem = "single_label" if head == "token" else head
    expected = formulas.rdrop(passes, labels, 3.0, problem)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_unlabelled_batch_learns_from_the_divergence(tmp_path):
    data = tiny.dataset(rows=4, unlabelled=range(4))
    trainer = tiny.trainer(tiny.bert(), data, tmp_path, logging_steps=1)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert logged(trainer, "task_loss") == [0.0]
    assert not tiny.identical(before, tiny.weights(trainer.model))
    plain = tiny.trainer(tiny.bert(), data, tmp_path, rdrop_alpha=0.0, logging_steps=1, logging_nan_inf_filter=False)
    plain.train()
    assert logged(plain, "loss") == [0.0]


def test_logged_terms_add_up(tmp_path):
    data = tiny.dataset("token", rows=14)
    trainer = tiny.trainer(
        tiny.bert("token"),
        data,
        tmp_path,
        logging_steps=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        num_train_epochs=3,
        rdrop_alpha=3.0,
    )
    trainer.train()
    entries = [e for e in trainer.state.log_history if "divergence" in e]
    assert len(entries) == 6
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 1.5 * entry["divergence"], rel=1e-5)


def test_alpha_warm_up_and_every_n_steps(tmp_path):
    """Steps 0, 3, 6 are R-Drop steps; alpha rises over the first 5 optimizer steps."""
    rows_seen = []
    model = tiny.bert()
    model.register_forward_pre_hook(lambda m, a, kw: rows_seen.append(len(kw["input_ids"])), with_kwargs=True)
    trainer = tiny.trainer(
        model,
        tiny.dataset(rows=32),
        tmp_path,
        logging_steps=1,
        per_device_train_batch_size=4,
        rdrop_every_n_steps=3,
        rdrop_warmup_steps=5,
        rdrop_alpha=10.0,
    )
    trainer.train()
    assert rows_seen == [8, 4, 4, 8, 4, 4, 8, 4]
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert [i for i, e in enumerate(entries) if "divergence" in e] == [0, 3, 6]
    for step, alpha in ((0, 2.0), (3, 8.0), (6, 10.0)):
        e = entries[step]
        assert e["loss"] == pytest.approx(e["task_loss"] + alpha / 2 * e["divergence"], rel=1e-5)


def test_sum_reduction_sums_within_the_micro_batch(tmp_path):
    model = tiny.noisy_bert("single_label")
    data = tiny.dataset(rows=8)
    runs = {}
    for reduction in ("mean", "sum"):
        trainer = tiny.trainer(
            copy.deepcopy(model),
            data,
            tmp_path,
            logging_steps=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            rdrop_reduction=reduction,
            rdrop_allow_deterministic=True,
        )
        trainer.train()
        runs[reduction] = trainer.state.log_history[0]
    assert runs["sum"]["task_loss"] == pytest.approx(runs["mean"]["task_loss"], rel=1e-6)
    assert runs["sum"]["divergence"] == pytest.approx(4 * runs["mean"]["divergence"], rel=1e-5)


def test_flops_count_every_pass(tmp_path):
    flops = []
    for alpha in (0.0, 4.0):
        trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, rdrop_alpha=alpha, rdrop_num_passes=3)
        trainer.train()
        flops.append(trainer.state.total_flos)
    assert flops[1] == 3 * flops[0] > 0


# ---- Models without noise ----


def test_a_model_without_dropout_stops_with_the_settings_that_are_zero(tmp_path):
    trainer = tiny.trainer(tiny.bert(dropout=0.0), tiny.dataset(), tmp_path)
    with pytest.raises(ValueError, match="hidden_dropout_prob, attention_probs_dropout_prob.*set_dropout"):
        trainer.train()
    allowed = tiny.trainer(
        tiny.bert(dropout=0.0), tiny.dataset(), tmp_path, rdrop_allow_deterministic=True, logging_steps=1
    )
    allowed.train()
    assert max(logged(allowed, "divergence")) < 1e-9


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_stock_modernbert_has_no_noise(mode, tmp_path):
    config = ModernBertConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=4,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    trainer = tiny.trainer(
        ModernBertForSequenceClassification(config), tiny.dataset(), tmp_path, rdrop_forward_mode=mode
    )
    with pytest.raises(ValueError, match="no active dropout.*attention_dropout.*embedding_dropout"):
        trainer.train()


class DeafDropout(BertForSequenceClassification):
    """Has dropout that reaches nothing, until `listening`."""

    def __init__(self, config):
        super().__init__(config)
        self.idle = nn.Dropout(0.5)


def test_dropout_that_reaches_nothing_stops_on_the_second_step(tmp_path):
    model = DeafDropout(tiny.bert(dropout=0.0).config)
    trainer = tiny.trainer(model, tiny.dataset(rows=32), tmp_path)
    with pytest.raises(ValueError, match=r"second R-Drop step.*idle \(p=0.5\)"):
        trainer.train()
    assert trainer.state.global_step == 1


# ---- Losses that are not the stock loss ----


class WeightedBert(BertForSequenceClassification):
    def forward(self, *args, labels=None, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if labels is not None:
            weight = torch.tensor([1.0, 2.0, 5.0, 0.5])
            outputs["loss"] = nn.functional.cross_entropy(outputs.logits, labels, weight=weight)
        return outputs


@pytest.mark.parametrize("mode", ["concat", "sequential"])
def test_a_models_own_loss_is_kept(mode, tmp_path):
    model = WeightedBert(tiny.bert(dropout=0.1).config)
    trainer = tiny.trainer(
        model, tiny.dataset(rows=6), tmp_path, rdrop_forward_mode=mode, rdrop_alpha=2.0, remove_unused_columns=False
    )
    model.train()
    batch = batch_of(trainer)
    torch.manual_seed(3)
    loss = trainer.compute_loss(model, batch)
    torch.manual_seed(3)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    if mode == "concat":
        a, b = model(**{k: v.repeat(2, 1) for k, v in inputs.items()}).logits.split(6)
    else:
        a, b = model(**inputs).logits, model(**inputs).logits
    weight = torch.tensor([1.0, 2.0, 5.0, 0.5])
    task = sum(nn.functional.cross_entropy(z, batch["labels"], weight=weight) for z in (a, b)) / 2
    divergence = formulas.rdrop([a, b], batch["labels"], 2.0)[1 + 1]
    assert loss.item() == pytest.approx((task + divergence).item(), rel=1e-5)


def test_a_replaced_loss_function_is_noticed(tmp_path, caplog):
    """A class of transformers whose loss is another number than its head's stock loss keeps that loss."""
    model = tiny.bert()
    original = BertForSequenceClassification.forward

    @functools.wraps(original)
    def doubled(self, *args, **kwargs):
        outputs = original(self, *args, **kwargs)
        if outputs.loss is not None:
            outputs["loss"] = 2 * outputs.loss
        return outputs

    BertForSequenceClassification.forward = doubled
    try:
        trainer = tiny.trainer(model, tiny.dataset(rows=4), tmp_path, logging_steps=1, num_train_epochs=2)
        trainer.train()
    finally:
        BertForSequenceClassification.forward = original
    assert all(task > 2.0 for task in logged(trainer, "task_loss"))  # ln 4 = 1.39, doubled


def test_compute_loss_func_sees_one_pass_at_a_time(tmp_path):
    rows = []

    def loss_func(outputs, labels, num_items_in_batch=None):
        rows.append((len(outputs.logits), len(labels), int(num_items_in_batch)))
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch * 7

    trainer = tiny.trainer(
        tiny.bert(),
        tiny.dataset(rows=8),
        tmp_path,
        compute_loss_func=loss_func,
        logging_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert rows == [(4, 4, 8)] * 4
    assert logged(trainer, "task_loss")[0] == pytest.approx(7 * 1.386, rel=0.1)


def test_label_smoothing_is_honoured_and_applied_once(tmp_path):
    model = tiny.noisy_bert("single_label")
    trainer = tiny.trainer(
        model, tiny.dataset(rows=5), tmp_path, label_smoothing_factor=0.3, rdrop_allow_deterministic=True
    )
    model.train()
    batch = batch_of(trainer)
    loss = trainer.compute_loss(model, batch)
    logits = model(**{k: v.repeat(2, 1) for k, v in batch.items() if k != "labels"}).logits
    expected = formulas.rdrop(logits.split(5), batch["labels"], 4.0, smoothing=0.3)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


# ---- Other trainers, other inputs ----


def test_mixin_over_another_trainer(tmp_path):
    class CountingTrainer(Trainer):
        def training_step(self, *args, **kwargs):
            self.steps_seen = getattr(self, "steps_seen", 0) + 1
            return super().training_step(*args, **kwargs)

    class RDropCountingTrainer(RDropMixin, CountingTrainer):
        pass

    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, RDropCountingTrainer, logging_steps=1)
    trainer.train()
    assert trainer.steps_seen == 2 and logged(trainer, "divergence")


def test_distilbert_trains(tmp_path):
    trainer = tiny.trainer(tiny.distilbert(), tiny.dataset(), tmp_path, logging_steps=1)
    trainer.train()
    assert logged(trainer, "divergence")[0] > 0


def test_refusals(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="DataParallel.*torchrun"):
        trainer.train()
    trainer.args._n_gpu = 0
    data = [{k: v for k, v in row.items() if k != "labels"} for row in tiny.dataset()]
    trainer.train_dataset = data
    with pytest.raises(ValueError, match="needs `labels`.*input_ids"):
        trainer.train()

    class Unknown(nn.Module):
        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"loss": input_ids.sum() * 1.0}

    with pytest.raises(ValueError, match="does not know the head of Unknown"):
        tiny.trainer(Unknown(), tiny.dataset(), tmp_path).train()


class NoLogits(BertForTokenClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return {"loss": outputs.loss, "scores": outputs.logits}


def test_no_logits_names_what_the_model_returns(tmp_path):
    model = NoLogits(tiny.bert("token").config)
    with pytest.raises(ValueError, match="'logits'.*scores"):
        tiny.trainer(model, tiny.dataset("token"), tmp_path, remove_unused_columns=False).train()


def test_hyperparameters_set_on_plain_arguments_take_effect(tmp_path):
    """What `hyperparameter_search` does: set attributes that exist on `trainer.args`."""
    args = TrainingArguments(
        str(tmp_path),
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RDropTrainer(
        model_init=lambda: tiny.bert(), args=args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer()
    )
    assert hasattr(trainer.args, "rdrop_alpha")
    trainer.args.rdrop_alpha = 0.0
    trainer.train()
    assert not logged(trainer, "divergence")


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_a_second_training_starts_afresh(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, logging_steps=100, callbacks=[StopAt(1)])
    trainer.train()
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    trainer.train()
    (entry,) = [e for e in trainer.state.log_history if "divergence" in e]
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 2 * entry["divergence"], rel=1e-5)


def test_training_arguments_survive_a_round_trip(tmp_path):
    args = RDropTrainingArguments(str(tmp_path), rdrop_alpha=2.5, rdrop_forward_mode="recompute", report_to="none")
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset())
    trainer.save_model(str(tmp_path / "saved"))
    loaded = torch.load(tmp_path / "saved" / "training_args.bin", weights_only=False)
    assert (loaded.rdrop_alpha, loaded.rdrop_forward_mode) == (2.5, "recompute")
