"""Finding and setting dropout, over families that keep it in different places."""

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
    ModernBertConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
    XLMConfig,
)

from rdrop_trainer.dropout import active_dropout, dropout_settings, set_dropout
from support import tiny

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
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
    config = Wav2Vec2Config(vocab_size=40, layerdrop=0.25, num_feat_extract_layers=2, conv_dim=[8, 8],
                            conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=16,
                            num_conv_pos_embedding_groups=2, **WIDTH)  # fmt: skip
    from transformers import Wav2Vec2ForSequenceClassification

    model = Wav2Vec2ForSequenceClassification(config)
    set_dropout(model, 0.4)
    assert model.config.layerdrop == 0.25
    assert model.config.hidden_dropout == model.config.feat_proj_dropout == 0.4


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
