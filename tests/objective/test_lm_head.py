"""Language models train with a fused output head as with logits, and say so when the head cannot be fused."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    BartForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    EsmConfig,
    EsmForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HfArgumentParser,
    LlamaForCausalLM,
    MarianForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from rdrop_trainer import RDropTrainingArguments
from rdrop_trainer.losses import RDropLoss
from rdrop_trainer.objective import lm_head, plan
from rdrop_trainer.objective.lm_head import LMHead
from support import tiny, zoo
from support.zoo import logits_seen, sgd_update, warnings_of

LANGUAGE_MODELS = ("gpt2", "llama", "qwen2", "t5", "bart", "marian", "mbart", "masked_lm")
MODES = ("concat", "sequential", "recompute")


@pytest.mark.parametrize(
    "name, mode, smoothing",
    [
        *((name, "concat", 0.1) for name in LANGUAGE_MODELS),
        *((name, mode, 0.0) for name in ("llama", "t5", "masked_lm") for mode in MODES),
    ],
)
def test_the_fused_gradient_equals_the_unfused_one(name, mode, smoothing):
    """Three micro-batches, the last one short, in one optimizer step."""
    gradients = []
    for fused in ("false", "true"):
        if mode == "recompute":  # the pass noise counts calls, which a recomputed forward would upset
            model = zoo.build(name).double()
        else:
            model = zoo.noisy(name, concat=mode == "concat")
        if (bias := getattr(model, "final_logits_bias", None)) is not None:
            bias.copy_(torch.linspace(-1, 1, bias.shape[-1]))  # trained ones of Marian are not 0
        shapes = logits_seen(model)
        gradients.append(zoo.gradient(model, zoo.batches(name), smoothing, forward_mode=mode, fused_head=fused))
        assert any(shape[:2] != (1, 1) for shape in shapes) != (fused == "true"), shapes
    assert gradients[0].norm() > 0 and tiny.relative(gradients[1], gradients[0]) < 1e-6


SMALL = {**zoo.DECODER, "vocab_size": zoo.VOCABULARY, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
OTHERS = {
    "soft-capped (Gemma 2)": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2, final_logit_softcapping=0.05, attention_dropout=0.1)
    ),
    "scaled (Cohere)": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25, attention_dropout=0.1)),
    "divided (Granite)": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0, attention_dropout=0.1)),
    "bias (Phi)": lambda: PhiForCausalLM(PhiConfig(**SMALL, resid_pdrop=0.1)),
    "tied (Bloom)": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2, hidden_dropout=0.1)
    ),
    "OPT": lambda: OPTForCausalLM(
        OPTConfig(**SMALL, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16, dropout=0.1)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_are_not_known_by_name_are_checked(name, tmp_path):
    updates = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = OTHERS[name]().double()
        if name.startswith("bias"):
            nn.init.normal_(model.lm_head.bias)
        shapes = logits_seen(model)
        assert not LMHead.of(model).verified
        updates.append(sgd_update("llama", model, tmp_path, rdrop_fused_head=fused, per_device_train_batch_size=4))
        assert ((1, 1, 40) in shapes) == fused
    assert updates[0].norm() > 0 and tiny.relative(updates[1], updates[0]) < 1e-6


class WithOffset(LlamaForCausalLM):
    """Changes its logits after the head, as nobody could know."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        outputs.logits = outputs.logits + torch.arange(outputs.logits.shape[-1], device=outputs.logits.device)
        return outputs


WithOffset.forward.__module__ = "transformers.models.offset.modeling_offset"  # elsewhere its loss would be its own


class OwnLoss(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        outputs.loss = 2 * outputs.loss if outputs.loss is not None else None
        return outputs


class NoLoss(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return super().forward(input_ids, attention_mask)


class Wrapped(nn.Linear):
    pass


def variant(name):
    model = zoo.build("llama")
    if name in ("offset", "own loss"):
        model.__class__ = WithOffset if name == "offset" else OwnLoss
    elif name == "another layer":
        model.lm_head.__class__ = Wrapped
    elif name == "offset by a hook":
        model.register_forward_hook(lambda module, inputs, outputs: setattr(outputs, "logits", 2 * outputs.logits))
    elif name == "hooks":
        model.lm_head.register_forward_hook(lambda *args: None)
    elif name == "sharded":
        model.lm_head.weight.ds_id = 7
    return model


@pytest.mark.parametrize(
    "name, reason",
    [
        ("offset", "not those of the output head alone"),
        ("offset by a hook", "not those of the output head alone"),
        ("own loss", "own loss is kept"),
        ("another layer", "Wrapped, no plain Linear"),
        ("hooks", "carries hooks"),
    ],
)
def test_what_cannot_be_fused_falls_back_with_one_warning(name, reason, tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    updates = []
    for fused in ("false", "true"):
        plan.logger.warning_once.cache_clear()
        caplog.clear()
        update = sgd_update("llama", variant(name), tmp_path, rdrop_fused_head=fused, per_device_train_batch_size=4)
        updates.append(update)
    assert torch.equal(*updates)
    [message] = warnings_of(caplog)
    assert reason in message


@pytest.mark.parametrize("fused", ["auto", "true"])
@pytest.mark.parametrize("cls", [BartForCausalLM, MarianForCausalLM])
def test_a_loss_that_is_not_the_stock_loss_is_kept(cls, fused, tmp_path):
    """Theirs does not shift the labels. (BartForConditionalGeneration's, of the same module, is the stock loss.)"""
    updates = []
    for setting in ("false", fused):
        torch.manual_seed(0)
        config = zoo.build("bart" if cls is BartForCausalLM else "marian").config
        config.is_decoder, config.is_encoder_decoder = True, False
        model = cls(config)
        updates.append(sgd_update("llama", model, tmp_path, rdrop_fused_head=setting, per_device_train_batch_size=4))
    assert updates[0].norm() > 0 and torch.equal(*updates)


def test_a_model_that_should_have_a_loss_is_named(tmp_path):
    model = zoo.build("llama")
    model.__class__ = NoLoss
    with pytest.raises(ValueError, match="^NoLoss returns no loss"):
        sgd_update("llama", model, tmp_path)


@pytest.mark.parametrize("word", ["True", "true", "False", "auto"])
def test_the_setting_on_a_command_line(word, tmp_path):
    parser = HfArgumentParser(RDropTrainingArguments)
    [args] = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--rdrop_fused_head", word])
    assert args.rdrop_fused_head == word.lower()


@pytest.mark.parametrize("requires_grad", [True, False])
def test_weights_after_the_head_learn_although_they_do_nothing_yet(requires_grad, tmp_path):
    """ESM adds its bias, 0 at first, after the linear layer."""
    config = EsmConfig(**SMALL, mask_token_id=4, max_position_embeddings=64, hidden_dropout_prob=0.1)
    torch.manual_seed(0)
    model = EsmForMaskedLM(config)
    bias = model.lm_head.bias.requires_grad_(requires_grad)
    shapes = logits_seen(model)
    sgd_update("masked_lm", model, tmp_path, rdrop_fused_head=True, per_device_train_batch_size=4)
    assert bool(bias.abs().sum() > 0) == requires_grad
    assert ((1, 1, 40) in shapes) != requires_grad


def test_a_sharded_head_is_refused_where_it_was_asked_for(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    with pytest.raises(ValueError, match="rdrop_fused_head=True does not fit.*sharded over processes"):
        sgd_update("llama", variant("sharded"), tmp_path, rdrop_fused_head=True)
    plan.logger.warning_once.cache_clear()
    sgd_update("llama", variant("sharded"), tmp_path)
    assert not warnings_of(caplog)  # nothing is lost: the logits are few


def test_auto_fuses_where_logits_are_many(tmp_path, monkeypatch):
    # the longest row has 11 tokens: 2 passes x 4 rows x up to 11 tokens x 40 classes
    for limit, fused in ((2**24, False), (2 * 4 * 12 * 40, False), (1, True)):
        monkeypatch.setattr(lm_head, "AUTO_FROM", limit)
        model = zoo.build("llama")
        shapes = logits_seen(model)
        sgd_update("llama", model, tmp_path, per_device_train_batch_size=4)
        assert all((shape[:2] == (1, 1)) == fused for shape in shapes)


def test_outputs_that_are_asked_for_hold_logits(tmp_path):
    model = zoo.build("t5").train()
    trainer = zoo.trainer("t5", model, zoo.dataset("t5"), tmp_path, rdrop_fused_head=True)
    batch = zoo.batch("t5", model)
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert outputs.logits.shape == (*batch["labels"].shape, zoo.VOCABULARY)
    assert trainer.compute_loss(model, batch).item() != loss.item()  # other dropout, and no outputs


@pytest.mark.parametrize("name, mode", [("llama", "concat"), ("bart", "sequential"), ("llama", "recompute")])
def test_bf16_autocast(name, mode, tmp_path):
    logs = []
    for arguments in ({"bf16": False}, {"bf16": True}, {"bf16": True, "rdrop_fused_head": True}):
        trainer = zoo.trainer(
            name, zoo.build(name), zoo.dataset(name), tmp_path, rdrop_forward_mode=mode, logging_steps=1, **arguments
        )
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "divergence" in entry])
    for exact, unfused, fused in zip(*logs, strict=True):
        assert fused["task_loss"] == pytest.approx(exact["task_loss"], rel=0.02)
        assert fused["divergence"] == pytest.approx(unfused["divergence"], rel=0.2)


def test_no_noise_is_found_out_by_the_hidden_states(tmp_path):
    with pytest.raises(ValueError, match="identical on the first R-Drop step"):
        sgd_update("llama", zoo.build("llama", 0.0), tmp_path, rdrop_fused_head=True, rdrop_allow_deterministic=False)


@pytest.mark.parametrize(
    "logits, gigabytes, fuses",
    [
        (2 * 16 * 128 * 50_265, 150, False),  # BART-large: 0.4 GB of 2 bytes each, and a fused step takes longer
        (2 * 16 * 128 * 50_265, 25, True),
        (2 * 8 * 1024 * 151_936, 150, True),  # Qwen2-0.5B: 5 GB
        (2**24 - 1, 1, False),
    ],
)
def test_auto_fuses_where_the_logits_are_many_beside_the_memory(logits, gigabytes, fuses, monkeypatch):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert (logits >= lm_head.auto_from(torch.device("cuda"))) == fuses
    assert lm_head.auto_from(torch.device("cpu")) == lm_head.AUTO_FROM


def test_a_head_on_another_device_than_the_labels(monkeypatch):
    """The other device is "meta", which computes nothing; what the loss is given, and gives back, tells."""
    head = LMHead.of(zoo.build("llama").to("meta"))

    def loss(hidden, weight, labels, *, mask, **settings):
        assert {t.device.type for t in (*hidden, weight, labels, mask)} == {"meta"}
        return RDropLoss(*torch.ones(3))

    monkeypatch.setattr(lm_head, "rdrop_linear_loss", loss)
    terms = head.loss((torch.ones(4, 2),), torch.ones(2), torch.ones(2).bool(), alpha=1.0)
    assert {term.device.type for term in terms} == {"cpu"}


def test_the_bias_follows_the_head_to_its_device():
    """A `device_map` may keep BART's `final_logits_bias` elsewhere; to "meta" everything can move."""
    bias = LMHead(torch.nn.Linear(2, 3, bias=False, device="meta"), torch.zeros(3))._bias()
    assert bias.device.type == "meta"
