"""Heads by settings: labels of another name, and `rdrop_heads` as arguments, JSON and model cards have it."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForQuestionAnswering, HfArgumentParser, set_seed

from rdrop_trainer import (
    Head,
    Objective,
    RDropArguments,
    RDropTrainingArguments,
    StepSettings,
)
from rdrop_trainer.hub.card_data import settings_block, settings_from_block
from support import formulas, tiny, zoo

INTENT, SLOTS = Head("intent", "intent_labels"), Head("slots", "slot_labels", weight=0.5)


# ---- Labels of another name ----


class Targets(nn.Module):
    def __init__(self):
        super().__init__()
        set_seed(0)
        self.embed, self.noise, self.out = nn.Embedding(40, 16), tiny.PassNoise(), nn.Linear(16, 4)

    def forward(self, input_ids, target=None):
        scores = self.out(self.noise(self.embed(input_ids).mean(1)))
        return {"loss": F.cross_entropy(scores, target), "logits": scores}


def test_label_names_of_the_arguments_name_the_labels(tmp_path):
    ids = torch.randint(5, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "target": i % 4} for i, row in enumerate(ids)]
    trainer = tiny.trainer(
        Targets(), data, tmp_path, data_collator=zoo.default_data_collator, label_names=["target"], logging_steps=1
    )
    with torch.no_grad():
        model = Targets().train()
        passes = model.out(model.noise(torch.cat([model.embed(ids).mean(1)] * 2))).chunk(2)
    divergence = sum(formulas.pair_divergence(a, b, "single_label") for a, b in zip(*passes, strict=True)) / 8
    trainer.args.per_device_train_batch_size = 8
    trainer.train()
    assert trainer.state.log_history[0]["divergence"] == pytest.approx(divergence.item(), rel=1e-4)


@pytest.mark.parametrize("mode", ["concat", "sequential"])
def test_question_answering_with_tuples(mode):
    terms = []
    for return_dict in (True, False):
        model = zoo.noisy("question", concat=mode == "concat").train()
        assert isinstance(model, BertForQuestionAnswering)
        model.config.return_dict = return_dict
        batch = zoo.batch("question", model)
        objective = Objective.of(model, [batch])
        terms.append(objective(model, batch, objective.window([batch]), StepSettings(forward_mode=mode))[0])
    assert terms[0].divergence > 0 and [t.item() for t in terms[1]] == [t.item() for t in terms[0]]


# ---- The setting ----


def test_the_setting_is_kept_as_json_has_it(tmp_path):
    args = RDropTrainingArguments(str(tmp_path), rdrop_heads=[INTENT, {"logits": 1, "labels": "slot_labels"}])
    assert args.rdrop_heads[1] == {
        "logits": "1", "labels": "slot_labels", "problem": "auto", "align": "auto", "weight": 1.0
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(args)).rdrop_heads == args.rdrop_heads
    assert '"intent_labels"' in args.to_json_string()
    flags = ["--output_dir", str(tmp_path), "--rdrop_heads", '[{"logits": "intent", "labels": "intent_labels"}]']
    [parsed] = HfArgumentParser(RDropTrainingArguments).parse_args_into_dataclasses(flags)
    assert parsed.rdrop_heads == args.rdrop_heads[:1]


def test_a_model_card_keeps_the_heads():
    settings = RDropArguments(rdrop_heads=[INTENT, SLOTS])
    assert settings_from_block(settings_block(settings, {}, "0")) == settings
    assert "heads" not in settings_block(RDropArguments(), {}, "0")


@pytest.mark.parametrize("heads, message", [
    ("intent", "rdrop_heads must be a list of Head"),
    ({"logits": "a"}, "rdrop_heads must be a list of Head"),
    ([{"output": "a"}], "some of the keys logits, labels, problem, align, weight"),
    ([INTENT, INTENT], "the same logits twice: intent, intent"),
    ([{"logits": -1}], "a position of at least 0, got -1"),
    ([{"labels": None}], "labels of a head must be a name, got None"),
    ([{"problem": "ranking"}], "problem of a head must be one of auto, single_label"),
    ([{"align": "left"}], "align of a head must be one of auto, rows, first, last, shifted"),
    ([{"weight": 0}], "weight of a head must be a number above 0"),
])  # fmt: skip
def test_wrong_settings(heads, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RDropTrainingArguments(str(tmp_path), rdrop_heads=heads)


def test_one_place_says_the_problem(tmp_path):
    with pytest.raises(ValueError, match="rdrop_problem='regression' is for a head that R-Drop finds.*`problem`"):
        RDropTrainingArguments(str(tmp_path), rdrop_heads=[Head()], rdrop_problem="regression")
    model, batch = Targets().train(), {"input_ids": torch.ones(4, 6).long(), "labels": torch.rand(4, 6)}
    with pytest.raises(ValueError, match="problem='regression'.*each of the heads"):
        Objective.of(model, [batch], heads=[Head()], problem="regression")
