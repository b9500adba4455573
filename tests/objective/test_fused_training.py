"""A fused output head in every kind of training: the result is that of the unfused run."""

import logging

import pytest
import torch
from torch import nn
from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput

from rdrop_trainer.objective import Objective, StepSettings, plan
from rdrop_trainer.objective.inspect import before_passes
from rdrop_trainer.objective.lm_head import CannotFuse, LMHead, vocabulary_size
from support import tiny, zoo
from support.zoo import logits_seen, sgd_update, warnings_of

FEW = {"per_device_train_batch_size": 4}

MODES = ("concat", "sequential", "recompute")


@pytest.fixture(autouse=True)
def heard(caplog):
    logging.getLogger("transformers").propagate = True
    plan.logger.warning_once.cache_clear()
    return caplog


def both(name, tmp_path, build=None, **arguments):
    """The updates of an unfused and a fused run, which must be equal, and whether logits were made in the second."""
    updates = []
    for fused in (False, True):
        model = build() if build else zoo.noisy(name)
        shapes = logits_seen(model)
        updates.append(sgd_update(name, model, tmp_path, rdrop_fused_head=fused, **FEW | arguments))
    assert updates[0].norm() > 0 and tiny.relative(updates[1], updates[0]) < 1e-6
    return any(shape[:2] != (1, 1) for shape in shapes)


SCHEDULES = {
    "three passes": {"rdrop_num_passes": 3},
    "every second step": {"rdrop_every_n_steps": 2, "gradient_accumulation_steps": 2},
    "alpha 0 with accumulation": {"rdrop_alpha": 0.0, "gradient_accumulation_steps": 2},
    "warm-up": {"rdrop_warmup_steps": 2},
    "summed divergence": {"rdrop_reduction": "sum", "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name, schedule", [*(("llama", schedule) for schedule in SCHEDULES), ("t5", "three passes")])
def test_schedules(name, schedule, tmp_path):
    settings = SCHEDULES[schedule]
    passes = settings.get("rdrop_num_passes", 1 if settings.get("rdrop_alpha") == 0 else 2)
    # Four micro-batches, so that no step is a single plain one, whose loss would be the model's own
    assert not both(name, tmp_path, lambda: zoo.noisy(name, passes), per_device_train_batch_size=3, **settings)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_checkpointing(mode, tmp_path):
    settings = {"rdrop_forward_mode": mode, "gradient_checkpointing": True}
    assert not both("llama", tmp_path, lambda: zoo.build("llama").double(), **settings)


@pytest.mark.parametrize("name, smoothing", [("t5", 0.0), ("bart", 0.1)])
def test_decoder_inputs_are_made_where_the_collator_made_none(name, smoothing, tmp_path):
    collator = DataCollatorForSeq2Seq(tiny.tokenizer())
    assert not both(name, tmp_path, data_collator=collator, label_smoothing_factor=smoothing)


def test_unlabeled_rows_count_by_their_decoder_mask(tmp_path):
    collator = DataCollatorForSeq2Seq(tiny.tokenizer())

    def collate(rows):
        batch = collator(rows)
        batch["decoder_attention_mask"] = (batch["labels"] != -100).long()
        batch["decoder_input_ids"] = batch["labels"].clamp(min=0)
        batch["labels"][::2] = -100
        return batch

    assert not both("t5", tmp_path, data_collator=collate)
    none = sgd_update("t5", zoo.noisy("t5"), tmp_path, rdrop_alpha=0.0, data_collator=collate)
    some = sgd_update("t5", zoo.noisy("t5"), tmp_path, rdrop_fused_head=True, data_collator=collate)
    assert tiny.relative(none, some) > 1e-2


def test_a_first_row_without_labels_does_not_decide(tmp_path):
    """A head that is not known by name is checked on one row, whose loss may be a mean over nothing."""

    def collate(rows):
        batch = zoo.collator("masked_lm")(rows)
        batch["labels"][0] = -100
        return batch

    both("masked_lm", tmp_path, data_collator=collate)


def test_the_tied_bias_of_a_masked_language_model_learns(tmp_path):
    model = zoo.noisy("masked_lm")
    before = tiny.weights(model)["cls.predictions.bias"]
    sgd_update("masked_lm", model, tmp_path, rdrop_fused_head=True)
    assert not torch.equal(model.cls.predictions.bias.cpu(), before)
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias


class Switch(TrainerCallback):
    """Changes rdrop_fused_head at every step."""

    def __init__(self, *settings):
        self.settings = iter(settings)

    def on_step_begin(self, args, state, control, **kwargs):
        args.rdrop_fused_head = next(self.settings)


@pytest.mark.parametrize("settings", [("false", "true", "false"), ("true", "false", "true")])
def test_the_setting_may_change_during_training(settings, tmp_path):
    updates = []
    for callbacks in ([], [Switch(*settings)]):
        model = zoo.noisy("llama")
        shapes = logits_seen(model)
        updates.append(sgd_update("llama", model, tmp_path, rdrop_fused_head=False, callbacks=callbacks, **FEW))
    assert tiny.relative(updates[1], updates[0]) < 1e-6
    assert [shape[:2] == (1, 1) for shape in shapes] == [setting == "true" for setting in settings]


class Shifted(LlamaForCausalLM):
    """Its loss is the stock loss of its logits, to which it adds something after the head."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = super().forward(input_ids, attention_mask, **kwargs).logits
        logits = logits + torch.arange(40, device=logits.device) / 10
        loss = None if labels is None else self.loss_function(logits, labels, 40, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)


Shifted.forward.__module__ = "transformers.models.shifted.modeling_shifted"  # elsewhere its loss would be its own


def test_a_head_is_checked_even_if_its_loss_was_found_right_before(tmp_path, heard, monkeypatch):
    monkeypatch.setattr("rdrop_trainer.objective.loss_comparison.LossComparison.ENOUGH", 1)
    updates = []
    for callbacks in ([], [Switch("false", "true", "true")]):
        model = zoo.build("llama")
        model.__class__ = Shifted
        updates.append(sgd_update("llama", model, tmp_path, rdrop_fused_head=False, callbacks=callbacks, **FEW))
    assert torch.equal(*updates)
    [message] = warnings_of(heard)
    assert "not those of the output head alone" in message


def test_evaluation_is_trainers(tmp_path):
    data, losses = zoo.dataset("t5"), []
    model = zoo.build("t5")
    settings = {"eval_strategy": "epoch", "rdrop_fused_head": True, **FEW}
    trainer = zoo.trainer("t5", model, data, tmp_path, eval_dataset=data, **settings)
    trainer.train()
    for plain in (False, True):
        losses.append(zoo.trainer("t5", model, data, tmp_path, plain, eval_dataset=data).evaluate()["eval_loss"])
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged == losses[:1] == losses[1:]


def test_an_error_inside_the_forward_leaves_no_hook(tmp_path):
    model = zoo.build("llama").train()
    trainer = zoo.trainer("llama", model, zoo.dataset("llama"), tmp_path, rdrop_fused_head=True)
    batch = zoo.batch("llama", model)
    broken = model.model.norm.register_forward_hook(lambda *_: 1 / 0)
    for mode in MODES:
        trainer.args.rdrop_forward_mode = mode
        with pytest.raises(ZeroDivisionError):
            trainer.compute_loss(model, batch)
        assert not model.lm_head._forward_pre_hooks
    broken.remove()
    trainer.compute_loss(model, batch).backward()
    assert not model.lm_head._forward_pre_hooks


# ---- Models that are not of the usual kind ----


class OwnModelForCausalLM(nn.Module):
    """A language model that transformers knows nothing of, without a configuration."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.dropout, self.out = nn.Embedding(40, 8), nn.Dropout(0.2), nn.Linear(8, 40)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.out(self.dropout(self.embed(input_ids)))
        loss = (
            None
            if labels is None
            else nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        )
        return CausalLMOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("fused", ["auto", "true"])
def test_a_model_without_a_configuration(fused, tmp_path, heard):
    updates = [
        sgd_update("llama", OwnModelForCausalLM(), tmp_path, rdrop_fused_head=setting) for setting in ("false", fused)
    ]
    assert torch.equal(*updates)
    assert len(warnings_of(heard)) == (fused == "true")


def test_what_the_configuration_says_of_the_vocabulary():
    model = OwnModelForCausalLM()
    assert vocabulary_size(model) == 0
    model.config = type("Settings", (), {"vocab_size": 12})()  # of another library
    assert vocabulary_size(model) == 12
    model.config = LlamaConfig(vocab_size=7)
    model.config.text_config, model.config.decoder = LlamaConfig(vocab_size=8), LlamaConfig(vocab_size=9)
    assert vocabulary_size(model) == 7


class Quantised(torch.Tensor):
    pass


def test_a_weight_that_is_no_plain_tensor_is_not_fused():
    model = zoo.build("llama")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(Quantised))
    with pytest.raises(CannotFuse, match="is a Quantised, no plain tensor"):
        LMHead.of(model)


@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_a_compiled_model_is_not_fused(how):
    model = zoo.build("llama")
    given = torch.compile(model, backend="eager") if how == "torch.compile" else model
    if given is model:
        model.compile(backend="eager")
    batch = zoo.batch("llama")
    objective = Objective.of(given, [batch])
    settings = StepSettings(fused_head="true")
    found = before_passes(objective.training, objective.plan, given, batch, settings)
    assert found.lm_head is None and "compiled" in found.not_fused


def llava():
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=16),
            text_config=LlamaConfig(vocab_size=40, **sizes, attention_dropout=0.1),
            image_token_id=39,
            vision_feature_layer=-1,
        )
    )


def test_a_model_of_images_and_text(tmp_path, heard):
    g = torch.Generator().manual_seed(0)
    rows = []
    for length in (3, 5, 4, 6, 5, 3):
        ids = [39] * 4 + torch.randint(5, 38, (length,), generator=g).tolist()  # an image of four patches
        labels = [-100] * 4 + ids[4:]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})

    def collate(rows):
        batch = zoo.collator("llama")(rows)
        return {**batch, "pixel_values": torch.randn(len(rows), 3, 8, 8, generator=torch.Generator().manual_seed(1))}

    updates = []
    for fused in (False, True):
        model = llava()
        shapes = logits_seen(model)
        trainer = zoo.trainer(
            "llama", model, rows, tmp_path, data_collator=collate, rdrop_fused_head=fused, remove_unused_columns=False,
            **tiny.PURE_SGD, **FEW,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert not warnings_of(heard) and (1, 1, 40) in shapes
    assert updates[0].norm() > 0 and tiny.relative(updates[1], updates[0]) < 1e-5
