"""Losses that are not the stock loss; other trainers, models and inputs."""

import functools

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    RobertaConfig,
    Trainer,
    ViTConfig,
    default_data_collator,
    set_seed,
)

from rdrop_trainer import RDropMixin, RDropTrainer, RDropTrainingArguments
from support import formulas, tiny, zoo

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
    batch = tiny.batch_of(trainer)
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
    assert all(task > 2.0 for task in tiny.logged(trainer, "task_loss"))  # ln 4 = 1.39, doubled


def test_compute_loss_func_sees_one_pass_at_a_time(tmp_path):
    rows = []

    def loss_func(outputs, labels, num_items_in_batch=None):
        rows.append((len(outputs.logits), len(labels), int(num_items_in_batch)))
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch * 7

    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(rows=8), tmp_path, compute_loss_func=loss_func, **settings)
    trainer.train()
    assert rows == [(4, 4, 8), (4, 4, 16), *[(4, 4, 8)] * 4]  # first: does it divide by the count?
    assert tiny.logged(trainer, "task_loss")[0] == pytest.approx(7 * 1.386, rel=0.1)


def test_label_smoothing_is_honoured_and_applied_once(tmp_path):
    model = zoo.noisy("single_label")
    trainer = tiny.trainer(
        model, tiny.dataset(rows=5), tmp_path, label_smoothing_factor=0.3, rdrop_allow_deterministic=True
    )
    model.train()
    batch = tiny.batch_of(trainer)
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
    assert trainer.steps_seen == 2 and tiny.logged(trainer, "divergence")


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
    assert tiny.logged(trainer, "divergence")[0] > 0


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
    batch = tiny.batch_of(trainer)
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
    assert bool(tiny.logged(trainer, "divergence")) == bool(alpha)


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_bf16_autocast(mode, tmp_path):
    losses = []
    for bf16 in (False, True):
        trainer = tiny.trainer(tiny.bert(dropout=0.2), tiny.dataset(), tmp_path, bf16=bf16, rdrop_forward_mode=mode,
                               logging_steps=1, max_steps=1)  # fmt: skip
        trainer.train()
        losses.append(tiny.logged(trainer, "loss")[0])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
