"""What a user of RDropTrainer sees: the swap, the heads, the logs, the errors."""

import functools
import logging
import types

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import HPSearchBackend
from transformers.utils import logging as transformers_logging

from rdrop_trainer import RDropArguments, RDropMixin, RDropSeq2SeqTrainer, RDropTrainer, RDropTrainingArguments
from support import formulas, tiny, zoo
from support.device import USE_CPU


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_metrics_are_computed_as_by_trainer(tmp_path):
    model, data, results = tiny.bert(), tiny.dataset(), []
    for cls in (Trainer, RDropTrainer):
        settings = {"compute_metrics": lambda found: {"rows": len(found.predictions)}, "per_device_eval_batch_size": 5}
        found = tiny.trainer(model, data, tmp_path, cls, **settings).evaluate(data)
        results.append((found["eval_loss"], found["eval_rows"]))
    assert results[0] == results[1] and results[0][1] == 12


def test_evaluation_during_training_runs_one_forward(tmp_path):
    model, calls = tiny.bert(), []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((m.training, len(kwargs["input_ids"]))), with_kwargs=True
    )
    settings = {"eval_dataset": tiny.dataset(rows=6), "eval_strategy": "epoch", "per_device_eval_batch_size": 6}
    tiny.trainer(model, tiny.dataset(rows=8), tmp_path, **settings).train()
    assert calls == [(True, 16), (False, 6)]


def test_one_word_swap_with_plain_training_arguments(tmp_path):
    args = TrainingArguments(str(tmp_path), **tiny.QUIET, logging_steps=1, max_steps=1)
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer())
    trainer.train()
    assert trainer.args.rdrop_alpha == 4.0
    assert logged(trainer, "divergence")[0] > 0


def test_settings_are_read_when_used(tmp_path):
    args = TrainingArguments(str(tmp_path), **tiny.QUIET)
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


def test_an_unlabeled_batch_learns_from_the_divergence(tmp_path):
    data = tiny.dataset(rows=4, unlabeled=range(4))
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
    windows = {"logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    trainer = tiny.trainer(tiny.bert("token"), data, tmp_path, **windows, num_train_epochs=3, rdrop_alpha=3.0)
    trainer.train()
    entries = [e for e in trainer.state.log_history if "divergence" in e]
    assert len(entries) == 6
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 1.5 * entry["divergence"], rel=1e-5)


def test_a_second_training_logs_its_own_terms(tmp_path):
    """The steps of the first were not logged; `Trainer` forgets their loss too."""
    settings = {"max_steps": 2, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2, "rdrop_alpha": 3.0}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, **settings)
    trainer.train()
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=True)
    [entry] = [entry for entry in trainer.state.log_history if "divergence" in entry]
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 1.5 * entry["divergence"], rel=1e-5)


def test_another_model_of_a_trainer_is_looked_at_anew(tmp_path):
    trainer = tiny.trainer(tiny.bert().train(), tiny.dataset(), tmp_path)
    batch = batch_of(trainer)
    trainer.compute_loss(trainer.model, batch)
    trainer.model = tiny.bert(dropout=0.0).train()
    with pytest.raises(ValueError, match="identical on the first R-Drop step"):
        trainer.compute_loss(trainer.model, batch)


def test_alpha_warm_up_and_every_n_steps(tmp_path):
    """Steps 0, 3, 6 are R-Drop steps; alpha rises over the first 5 optimizer steps."""
    rows_seen = []
    model = tiny.bert()
    model.register_forward_pre_hook(lambda m, a, kw: rows_seen.append(len(kw["input_ids"])), with_kwargs=True)
    schedule = {"rdrop_every_n_steps": 3, "rdrop_warmup_steps": 5, "rdrop_alpha": 10.0}
    settings = {"logging_steps": 1, "per_device_train_batch_size": 4, **schedule}
    trainer = tiny.trainer(model, tiny.dataset(rows=32), tmp_path, **settings)
    trainer.train()
    assert rows_seen == [8, 4, 4, 8, 4, 4, 8, 4]
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert [i for i, e in enumerate(entries) if "divergence" in e] == [0, 3, 6]
    for step, alpha in ((0, 2.0), (3, 8.0), (6, 10.0)):
        e = entries[step]
        assert e["loss"] == pytest.approx(e["task_loss"] + alpha / 2 * e["divergence"], rel=1e-5)


def test_sum_reduction_sums_within_the_micro_batch(tmp_path):
    runs, settings = {}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    for reduction in ("mean", "sum"):
        settings |= {"rdrop_reduction": reduction, "rdrop_allow_deterministic": True}
        trainer = tiny.trainer(zoo.noisy("single_label"), tiny.dataset(rows=8), tmp_path, **settings)
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
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    model = ModernBertForSequenceClassification(ModernBertConfig(**tiny.SIZES, **special, num_labels=4))
    trainer = tiny.trainer(model, tiny.dataset(), tmp_path, rdrop_forward_mode=mode)
    with pytest.raises(ValueError, match="no active dropout.*attention_dropout.*embedding_dropout"):
        trainer.train()


class DeafDropout(BertForSequenceClassification):
    """Has dropout that reaches nothing."""

    def __init__(self, config):
        super().__init__(config)
        self.idle = nn.Dropout(0.5)


def test_dropout_that_never_reaches_the_predictions_stops(tmp_path):
    model = DeafDropout(tiny.bert(dropout=0.0).config)
    trainer = tiny.trainer(model, tiny.dataset(rows=32), tmp_path, num_train_epochs=8)
    with pytest.raises(ValueError, match=r"after 20 R-Drop steps.*dropout 0.5 \(idle\)"):
        trainer.train()
    assert trainer.state.global_step == 19


class ZeroInit(nn.Module):
    """As LoRA: dropout in front of a matrix that starts as zeros."""

    def __init__(self):
        super().__init__()
        self.dropout, self.b = nn.Dropout(0.5), nn.Parameter(torch.zeros(16))

    def forward(self, hidden):
        return hidden + self.dropout(hidden) * self.b


def test_dropout_in_front_of_zeros_may_start_late(tmp_path):
    """With accumulation and a learning-rate warm-up, the passes are identical for some micro-batches of two steps."""
    model = tiny.bert(dropout=0.0)
    model.dropout = ZeroInit()
    trainer = tiny.trainer(model, tiny.dataset(rows=64), tmp_path, per_device_train_batch_size=4, learning_rate=0.1,
                           gradient_accumulation_steps=2, warmup_steps=4, logging_steps=1)  # fmt: skip
    trainer.train()
    divergences = logged(trainer, "divergence")
    assert divergences[0] == 0 and divergences[-1] > 0


def test_noise_that_is_no_dropout_is_noise(tmp_path):
    """Tiny Gaussian noise, in bfloat16: no dropout is active, and the passes are nearly but not bit-identical."""

    class Gaussian(nn.Module):
        def forward(self, hidden):
            return hidden + 0.02 * torch.randn_like(hidden)

    model = tiny.bert(dropout=0.0).to(torch.bfloat16)
    model.dropout = Gaussian()
    tiny.trainer(model, tiny.dataset(), tmp_path).train()


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_concat_finds_no_noise_whatever_the_rounding(rows, tmp_path):
    trainer = tiny.trainer(tiny.bert(dropout=0.0), tiny.dataset(rows=rows), tmp_path, per_device_train_batch_size=rows)
    with pytest.raises(ValueError, match="no active dropout"):
        trainer.train()


# ---- Losses that are not the stock loss ----


class WeightedBert(BertForSequenceClassification):
    def forward(self, *args, labels=None, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if labels is not None:
            weight = outputs.logits.new_tensor([1.0, 2.0, 5.0, 0.5])
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
    weight = a.new_tensor([1.0, 2.0, 5.0, 0.5])
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

    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(rows=8), tmp_path, compute_loss_func=loss_func, **settings)
    trainer.train()
    assert rows == [(4, 4, 8), (4, 4, 16), *[(4, 4, 8)] * 4]  # first: does it divide by the count?
    assert logged(trainer, "task_loss")[0] == pytest.approx(7 * 1.386, rel=0.1)


def test_label_smoothing_is_honoured_and_applied_once(tmp_path):
    model = zoo.noisy("single_label")
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


@pytest.mark.parametrize("seen", ["before", "after"])
def test_of_several_gpus_in_one_process_one_is_used(seen, tmp_path, caplog):
    args = RDropTrainingArguments(str(tmp_path), per_device_train_batch_size=2, max_steps=1, **tiny.QUIET)
    if seen == "before":
        args._n_gpu = 2
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer())
    if seen == "after":
        trainer.args._n_gpu = 2
    trainer.train()
    assert args.n_gpu == 1 and trainer.state.train_batch_size == 2
    assert "one of the 2 GPUs in sight, in batches of 2 rows" in caplog.text


def test_refusals(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path)
    for size in ("get_cp_size", "get_sp_size"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="context or sequence parallelism"):
            patch.setattr(trainer, size, lambda: 2)
            trainer.train()
    data = [{k: v for k, v in row.items() if k != "labels"} for row in tiny.dataset()]
    trainer.train_dataset = data
    with pytest.raises(ValueError, match="needs `labels`.*input_ids"):
        trainer.train()


class OnBody(BertModel):
    """A user's classifier on a body of transformers."""

    def __init__(self, config):
        super().__init__(config)
        self.scores = nn.Linear(config.hidden_size, 4)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.scores(super().forward(input_ids, attention_mask=attention_mask).pooler_output)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_classifier_on_a_body_of_transformers(tmp_path):
    trainer = tiny.trainer(OnBody(tiny.bert().config), tiny.dataset(), tmp_path, logging_steps=1)
    trainer.train()
    assert logged(trainer, "divergence")[0] > 0


@pytest.mark.parametrize("head", tiny.HEADS)
def test_a_model_that_is_not_of_transformers_keeps_its_loss(head, tmp_path):
    """Any module that returns a loss and logits; the divergence is that of its labels' kind."""
    inner = tiny.bert(head, dropout=0.2)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask=None, labels=None):
            outputs = self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
            return {"loss": 3 * outputs.loss, "logits": outputs.logits}

    model, data = Own(), tiny.dataset(head, rows=6)
    trainer = tiny.trainer(model, data, tmp_path, rdrop_forward_mode="sequential", rdrop_alpha=2.0)
    model.train()
    batch = batch_of(trainer)
    torch.manual_seed(3)
    loss = trainer.compute_loss(model, batch).item()
    torch.manual_seed(3)
    runs = [inner(**batch) for _ in range(2)]
    task = sum(3 * run.loss for run in runs) / 2
    counts = batch["labels"] != -100 if head == "token" else slice(None)
    problem = "single_label" if head == "token" else head
    passes = [run.logits[counts] for run in runs]
    labels = batch["labels"][counts]
    divergence = formulas.rdrop(passes, labels, 2.0, problem)[2]
    assert loss == pytest.approx((task + divergence).item(), rel=1e-5)


def test_own_losses_are_weighted_by_their_items(tmp_path):
    """A token model's own mean over a micro-batch counts by its labeled tokens in the window."""
    updates = []
    for rows, steps in ((2, 3), (6, 1)):
        model = zoo.noisy("token", concat=False)
        model._loss_function = nn.CrossEntropyLoss()  # marks its loss as its own; the head computes the same one
        trainer = tiny.trainer(model, tiny.dataset("token", rows=5), tmp_path, per_device_train_batch_size=rows,
                               gradient_accumulation_steps=steps, rdrop_forward_mode="sequential",
                               **tiny.PURE_SGD)  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert tiny.relative(*updates) < 1e-5


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2", "bart", "vit"])
@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_other_architectures(family, alpha, tmp_path):
    """alpha = 0 is Trainer's run bit for bit; R-Drop trains."""
    sizes = {"vocab_size": 40, "num_labels": 4, "pad_token_id": 0}
    configs = {
        "roberta": lambda: RobertaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                         intermediate_size=16, max_position_embeddings=64, **sizes),
        "distilbert": lambda: DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, **sizes),
        "gpt2": lambda: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **sizes),
        "bart": lambda: BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                                   decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                                   max_position_embeddings=32, eos_token_id=2, **sizes),
        "vit": lambda: ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                 image_size=8, patch_size=4, hidden_dropout_prob=0.1, num_labels=4),
    }  # fmt: skip
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    data = tiny.dataset(rows=8)
    for row in data:
        row["input_ids"][-1] = 2  # where BART reads the row
    if family == "vit":
        g = torch.Generator().manual_seed(0)
        data = [{"pixel_values": torch.randn(3, 8, 8, generator=g), "labels": row["labels"]} for row in data]
    runs = []
    for cls in (Trainer, RDropTrainer) if alpha == 0 else (RDropTrainer,):
        set_seed(0)
        model = auto.from_config(configs[family]())
        extra = {"rdrop_alpha": alpha} if cls is RDropTrainer else {}
        trainer = tiny.trainer(model, data, tmp_path, cls, logging_steps=1, per_device_train_batch_size=4, **extra)
        if family == "vit":
            trainer.data_collator = default_data_collator
        trainer.train()
        runs.append(tiny.weights(model))
    assert alpha or tiny.identical(*runs)
    assert bool(logged(trainer, "divergence")) == bool(alpha)


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_bf16_autocast(mode, tmp_path):
    losses = []
    for bf16 in (False, True):
        trainer = tiny.trainer(tiny.bert(dropout=0.2), tiny.dataset(), tmp_path, bf16=bf16, rdrop_forward_mode=mode,
                               logging_steps=1, max_steps=1)  # fmt: skip
        trainer.train()
        losses.append(logged(trainer, "loss")[0])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_checks_of_reentrant_checkpoints_do_not_warn_of_gradients(tmp_path, recwarn):
    tiny.trainer(
        tiny.bert(), tiny.dataset(), tmp_path, rdrop_forward_mode="recompute", max_steps=1,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},
    ).train()  # fmt: skip
    assert not [warning for warning in recwarn if "requires_grad" in str(warning.message)]


def test_log_level_is_that_of_our_warnings_too(tmp_path, caplog):
    settings = {"rdrop_allow_deterministic": True, "max_steps": 1}
    logging.getLogger("rdrop_trainer").setLevel(logging.CRITICAL)
    try:
        for level, warnings in (("passive", 0), ("error", 0), ("warning", 1)):
            tiny.trainer(tiny.bert(dropout=0.0), tiny.dataset(), tmp_path, log_level=level, **settings).train()
            assert sum("are identical" in record.message for record in caplog.records) == warnings
    finally:
        transformers_logging.set_verbosity_warning()
        logging.getLogger("rdrop_trainer").setLevel(logging.NOTSET)


def test_labels_with_a_dimension_of_one(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(rows=4), tmp_path)
    trainer.model.train()
    batch = batch_of(trainer)
    torch.manual_seed(0)
    flat = trainer.compute_loss(trainer.model, batch)
    torch.manual_seed(0)
    column = trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"][:, None]})
    assert flat == column


def test_a_loss_computed_twice_per_micro_batch_keeps_its_weight(tmp_path):
    """As adversarial training does: the second loss belongs to the same window."""

    class Twice(RDropTrainer):
        losses = []

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            for _ in range(2):
                self.losses.append(self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch).item())
            return super().training_step(model, inputs, num_items_in_batch)

    for alpha in (0.0, 4.0):
        Twice.losses = []
        model = zoo.noisy("single_label", 2 if alpha else 1)
        tiny.trainer(model, tiny.dataset(rows=8), tmp_path, Twice, rdrop_alpha=alpha, per_device_train_batch_size=2,
                     gradient_accumulation_steps=4).train()  # fmt: skip
        assert max(Twice.losses) < 0.5  # each a quarter of about 1.39


def test_an_endless_data_set_leaves_out_an_unfilled_window(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny.dataset(rows=7))

    trainer = RDropTrainer(
        tiny.bert(),
        RDropTrainingArguments(str(tmp_path), report_to="none", use_cpu=USE_CPU, disable_tqdm=True, save_strategy="no",
                               logging_steps=1, max_steps=4, per_device_train_batch_size=2,
                               gradient_accumulation_steps=3, rdrop_alpha=3.0),
        train_dataset=Stream(),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    trainer.train()
    entries = [e for e in trainer.state.log_history if "divergence" in e]
    assert len(entries) == 4
    for e in entries:
        assert e["loss"] == pytest.approx(e["task_loss"] + 1.5 * e["divergence"], rel=1e-5)
        assert e["loss"] == pytest.approx(1.39, rel=0.1)


class NoLogits(BertForTokenClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return {"loss": outputs.loss, "scores": outputs.logits}


def test_no_logits_names_what_the_model_returns(tmp_path):
    model = NoLogits(tiny.bert("token").config)
    with pytest.raises(ValueError, match="'logits'.*scores"):
        tiny.trainer(model, tiny.dataset("token"), tmp_path, remove_unused_columns=False).train()


@pytest.mark.parametrize("cls", [TrainingArguments, RDropTrainingArguments])
def test_hyperparameter_search_sets_the_settings(cls, tmp_path):
    """`hyperparameter_search` casts its values to the type of the attribute that is there: none may be lost."""
    integers = {"rdrop_alpha": 4, "rdrop_warmup_steps": 0} if cls is RDropTrainingArguments else {}
    args = cls(str(tmp_path), report_to="none", use_cpu=USE_CPU, max_steps=1, save_strategy="no", disable_tqdm=True,
               **integers)  # fmt: skip
    trainer = RDropTrainer(model_init=lambda: tiny.bert(), args=args, train_dataset=tiny.dataset(),
                           processing_class=tiny.tokenizer())  # fmt: skip
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trial = types.SimpleNamespace(params={"rdrop_alpha": 0.5, "rdrop_warmup_steps": 0.25, "rdrop_num_passes": 3})
    trial.items = trial.params.items
    trainer.hp_space = lambda _: trial.params
    trainer._hp_search_setup(trial)
    settings = RDropArguments.of(trainer.args)
    assert (settings.rdrop_alpha, settings.rdrop_warmup_steps, settings.rdrop_num_passes) == (0.5, 0.25, 3)


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


@pytest.mark.parametrize("args", [RDropTrainingArguments, TrainingArguments, None])
def test_a_seq2seq_trainer_names_the_arguments_it_needs(args, tmp_path):
    class Own(RDropMixin, Seq2SeqTrainer):
        pass

    given = args and args(str(tmp_path))
    for cls in (RDropSeq2SeqTrainer, Own):
        with pytest.raises(ValueError, match=f"{cls.__name__} needs RDropSeq2SeqTrainingArguments .* got .*"):
            cls(zoo.build("t5"), given)
        with pytest.raises(ValueError, match="RDropSeq2SeqTrainingArguments"):
            cls(model=zoo.build("t5"), args=given)
