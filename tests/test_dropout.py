"""Finding and setting dropout, over families that keep it in different places."""

import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    BertPreTrainedModel,
    DiffLlamaConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MgpstrConfig,
    ModernBertConfig,
    RobertaConfig,
    SEWDConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
    XLMConfig,
)

from rdrop_trainer import RDropTrainer, RDropTrainingArguments
from rdrop_trainer import dropout as module
from rdrop_trainer.dropout import active_dropout, dropout_settings, set_dropout
from rdrop_trainer.objective.noise_of import noise_of
from support import tiny
from support.device import USE_CPU

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"num_feat_extract_layers": 2, "conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3],
                "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(vocab_size=40, **WIDTH),
    "bert_head": BertConfig(vocab_size=40, classifier_dropout=0.5, **WIDTH),
    "roberta": RobertaConfig(vocab_size=40, **WIDTH),
    "distilbert": DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "modernbert": ModernBertConfig(vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
                                   sep_token_id=2, **WIDTH),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, pad_token_id=0),
    "llama": LlamaConfig(vocab_size=40, num_key_value_heads=2, pad_token_id=0, **WIDTH),
    "bart": BartConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                       decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32),
    "xlm": XLMConfig(vocab_size=40, emb_dim=16, n_layers=1, n_heads=2, summary_last_dropout=0.0),
    "t5": T5Config(decoder_start_token_id=0, vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
}  # fmt: skip


def build(name):
    return AutoModelForSequenceClassification.from_config(CONFIGS[name].__class__(**CONFIGS[name].to_diff_dict()))


@pytest.mark.parametrize("name", CONFIGS)
def test_set_dropout_reaches_everything_and_survives_saving(name, tmp_path):
    model = build(name)
    set_dropout(model, 0.3)
    found = active_dropout(model)
    assert found and {place.p for place in found} == {0.3}
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    # A module the model builds only where its configuration is above 0 may appear on loading, with the same value
    assert {place.p for place in active_dropout(again)} == {0.3}
    assert set(map(str, found)) == set(map(str, active_dropout(again)))
    set_dropout(model, 0.0)
    assert active_dropout(model) == [] and not any(dropout_settings(model.config).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_set_dropout_makes_noise_and_zero_removes_it(name):
    model = build(name).train()
    inputs = {"input_ids": torch.randint(3, 40, (2, 6))}
    inputs["input_ids"][:, -1] = 2  # end of sequence, where BART and T5 read the row
    if CONFIGS[name].is_encoder_decoder:
        inputs["input_ids"][:, -1] = CONFIGS[name].eos_token_id
    for p, noisy in ((0.3, True), (0.0, False)):
        set_dropout(model, p)
        with torch.no_grad():
            first, second = (model(**inputs).logits for _ in range(2))
        assert torch.equal(first, second) is not noisy


def test_a_heads_dropout_that_follows_the_body_still_follows_it():
    config = BertConfig(vocab_size=40, **WIDTH)
    assert config.classifier_dropout is None
    model = AutoModelForTokenClassification.from_config(config)
    set_dropout(model, 0.2)
    assert model.config.classifier_dropout is None and model.config.hidden_dropout_prob == 0.2
    assert model.dropout.p == 0.2


def test_noise_of_other_kinds_stays():
    config = Wav2Vec2Config(vocab_size=40, layerdrop=0.25, **CONVOLUTIONS, **WIDTH)
    from transformers import Wav2Vec2ForSequenceClassification

    model = Wav2Vec2ForSequenceClassification(config)
    set_dropout(model, 0.4)
    assert model.config.layerdrop == 0.25
    assert model.config.hidden_dropout == model.config.feat_proj_dropout == 0.4


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning_once", said.append)
    return said


def test_dropout_by_another_name(tmp_path, warnings):
    """SEW-D's `StableDropout` holds its probability in `drop_prob`, beside a counter."""
    from transformers import SEWDForSequenceClassification

    model = SEWDForSequenceClassification(SEWDConfig(vocab_size=40, squeeze_factor=1, **CONVOLUTIONS, **WIDTH))
    set_dropout(model, 0.3)
    stable = {name: part for name, part in model.named_modules() if type(part).__name__ == "StableDropout"}
    assert len(stable) == 4 and {(part.drop_prob, part.count) for part in stable.values()} == {(0.3, 0)}
    found = active_dropout(model)
    assert {place.p for place in found} == {0.3} and stable.keys() <= {place.name for place in found}
    model.save_pretrained(tmp_path)
    assert active_dropout(SEWDForSequenceClassification.from_pretrained(tmp_path)) == found and not warnings


def named(name, bases=(nn.Module,), **attributes):
    """An instance of a class of this name with these attributes."""
    made = type(name, bases, {})()
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    "part, attribute, kept",
    [
        (named("StableDropout", drop_prob=0.1, count=0), "drop_prob", {"count": 0}),
        (named("WordDropout", prob=0.1), "prob", {}),
        (named("LockedDropout", dropout_rate=0.0), "dropout_rate", {}),
        (named("SpatialDropout", _p=0.1, eps=1e-6), "_p", {"eps": 1e-6}),
        (named("VariationalDropout", strength=0.1, eps=1e-6), "strength", {"eps": 1e-6}),
        (named("Noise", (nn.Dropout,), inplace=False), "p", {"inplace": False}),
        (named("Attention", attention_dropout=0, num_dropouts=1, p=0.5), "attention_dropout",
         {"num_dropouts": 1, "p": 0.5}),
        (named("LoHaLayer", rank_dropout={"default": 0.0}, rank_dropout_scale={"default": False}), "rank_dropout",
         {"rank_dropout_scale": {"default": False}}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_the_probability_is_found_in_any_attribute(part, attribute, kept, warnings):
    set_dropout(nn.Sequential(nn.Linear(2, 2), part), 0.3)
    value = getattr(part, attribute)
    assert value == ({"default": 0.3} if isinstance(value, dict) else 0.3)
    assert {name: getattr(part, name) for name in kept} == kept and not warnings
    assert [place.p for place in active_dropout(nn.Sequential(part))] == [0.3]


class Stubborn(nn.Module):
    """Takes no dropout above 0.2."""

    def __init__(self):
        super().__init__()
        self.dropout = 0.1

    def __setattr__(self, name, value):
        super().__setattr__(name, min(value, 0.2) if name == "dropout" else value)


@pytest.mark.parametrize(
    "part, name",
    [
        (named("KeepDropout", keep_prob=0.9), r"1 \(KeepDropout\)"),
        (named("TwoDropout", low=0.1, high=0.2), r"1 \(TwoDropout\)"),
        (Stubborn(), r"1.dropout \(0.2\)"),
    ],
)
def test_what_could_not_be_set_is_named(part, name, warnings):
    before = dict(vars(part))
    model = nn.Sequential(nn.Dropout(0.1), part)
    set_dropout(model, 0.3)
    assert len(warnings) == 1 and re.search(f"was not set to 0.3.*{name}", warnings[0])
    assert model[0].p == 0.3 and {place.name: place.p for place in active_dropout(model)}["0"] == 0.3
    if not isinstance(part, Stubborn):
        assert vars(part) == before
        with pytest.raises(ValueError, match=f"cannot be set.*{name[2:]}"):
            set_dropout(nn.Sequential(nn.Linear(2, 2), part), 0.3)


def test_what_a_saved_model_would_lose_is_named(warnings):
    """GPT-2's token head has 0.1 in its code, and no entry in its configuration."""
    model = AutoModelForTokenClassification.from_config(CONFIGS["gpt2"])
    set_dropout(model, 0.3)
    assert model.dropout.p == 0.3
    (warning,) = warnings
    assert "stores the dropout of dropout (0.1): it is 0.3 now, and a saved GPT2ForTokenClassification" in warning
    warnings.clear()
    set_dropout(build("gpt2"), 0.3)
    assert not warnings


def test_configurations_of_parts_and_of_other_names():
    """A wrapper has no configuration of its own; MGP-STR's entries say `drop_rate`."""
    from transformers import MgpstrForSceneTextRecognition

    wrapper = nn.Module()
    wrapper.body, wrapper.dropout = build("modernbert"), nn.Identity()
    set_dropout(wrapper, 0.3)
    assert set(dropout_settings(wrapper.body.config).values()) == {0.3} and wrapper.dropout.p == 0.3
    assert {place.name for place in active_dropout(wrapper)} == {
        "dropout", *(f"body.{place.name}" for place in active_dropout(wrapper.body))
    }  # fmt: skip
    config = MgpstrConfig(image_size=[8, 8], patch_size=[4, 4], hidden_size=16, num_hidden_layers=1,
                          num_attention_heads=2, max_token_length=3)  # fmt: skip
    model = MgpstrForSceneTextRecognition(config)
    set_dropout(model, 0.2)
    assert (config.drop_rate, config.attn_drop_rate) == (0.2, 0.2) and config.drop_path_rate == 0.0


def test_noise_is_named_by_its_place_without_the_numbers_of_layers():
    layer = nn.ModuleDict({"dropout1": nn.Dropout(0.1)})
    model = nn.ModuleDict({"module": nn.ModuleDict({"layers": nn.ModuleList([layer, deepcopy(layer)])})})
    assert [str(source) for source in noise_of(model)] == ["dropout 0.1 (layers.*.dropout1)"]


@pytest.mark.parametrize("config", [None, {}, {"dropout": 0.1, 3: 0.5}, SimpleNamespace(dropout=0.1), object()])
def test_configurations_of_any_type(config):
    """transformers' own `RegressionModel` has None, PEFT a dict for a model without one."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    model.config = config
    assert [source.kind for source in noise_of(model)] == ["dropout"]
    set_dropout(model, 0.3)
    settings = dropout_settings(config)
    assert settings == (
        {"dropout": 0.3} if isinstance(config, SimpleNamespace) or (isinstance(config, dict) and config) else {}
    )


class Line(nn.Module):
    """As in transformers' own trainer tests."""

    def __init__(self):
        super().__init__()
        self.line, self.config = nn.Linear(1, 1), None

    def forward(self, input_x, labels=None):
        y = self.line(input_x)
        return (y,) if labels is None else (nn.functional.mse_loss(y, labels), y)


def test_a_model_without_configuration_and_dropout_is_told_so(tmp_path):
    rows = [{"input_x": [float(i)], "labels": [2.0 * i]} for i in range(8)]
    with pytest.raises(
        ValueError, match="Line are identical on the first R-Drop step: the model has no active dropout"
    ):
        RDropTrainer(
            Line(), RDropTrainingArguments(str(tmp_path), report_to="none", use_cpu=USE_CPU), train_dataset=rows
        ).train()


def test_stock_models_without_dropout_are_recognised():
    assert active_dropout(build("llama")) == []
    vit = AutoModelForImage(ViTConfig(image_size=8, patch_size=4, **WIDTH))
    assert active_dropout(vit) == []
    assert [p.p for p in active_dropout(build("bert_head"))][-1] == 0.5


def AutoModelForImage(config):
    from transformers import ViTForImageClassification

    return ViTForImageClassification(config)


def test_names_functional_dropout_and_frozen_parts():
    places = {place.name: place.p for place in active_dropout(build("bart"))}
    assert any(name.endswith("self_attn.dropout") or name.endswith("layers.0.dropout") for name in places)
    model = tiny.bert(dropout=0.1).train()
    everything = len(active_dropout(model))
    model.bert.encoder.layer[0].eval()
    assert 0 < len(active_dropout(model)) < everything
    assert len(active_dropout(model.eval())) == everything


class NeedsMore(BertPreTrainedModel):
    """A user's class that is not built from its configuration alone."""

    def __init__(self, config, width):
        super().__init__(config)
        self.layers = nn.Sequential(nn.Linear(width, 4), nn.Dropout(0.1), nn.Identity())


def test_a_class_with_arguments_of_its_own_can_be_set():
    model = NeedsMore(BertConfig(vocab_size=40, **WIDTH), width=8)
    set_dropout(model, 0.3)
    assert [place.p for place in active_dropout(model)] == [0.3] and model.config.hidden_dropout_prob == 0.3


def test_a_refused_probability_leaves_the_model_as_it_was():
    """DiffLlama takes no attention dropout."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    diff = AutoModelForSequenceClassification.from_config(
        DiffLlamaConfig(num_key_value_heads=2, intermediate_size=16, pad_token_id=0, **sizes)
    )
    before = dropout_settings(diff.config)
    with pytest.raises(ValueError, match="DiffLlamaForSequenceClassification cannot be built with dropout 0.3"):
        set_dropout(diff, 0.3)
    assert active_dropout(diff) == [] and dropout_settings(diff.config) == before


def test_refusals():
    for p in (-0.1, 1.0, 2):
        with pytest.raises(ValueError, match="must be in"):
            set_dropout(tiny.bert(), p)
    with pytest.raises(ValueError, match="Linear has no dropout"):
        set_dropout(nn.Linear(2, 2), 0.1)
