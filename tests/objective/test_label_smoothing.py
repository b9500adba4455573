"""Label smoothing, and what a base class counts wrongly."""

import pytest
import torch
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaForCausalLM,
    Seq2SeqTrainer,
)

from rdrop_trainer import RDropMixin
from rdrop_trainer.objective.task_loss import without_labels
from support import formulas, tiny, zoo
from support.device import on_device

SEQ2SEQ = ("t5", "bart", "marian", "mbart")
SAME = {"rdrop_allow_deterministic": True}


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
    theirs, ours = (tiny.loss_of(trainer, batch).item() for trainer in trainers)
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
        losses.append(tiny.loss_of(trainer, on_device(zoo.batch("bart", model if collated_for else None))).item())
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-6)


def test_answers_are_not_smoothed(tmp_path):
    """`Trainer` smooths `labels` alone."""
    batch, losses = on_device(zoo.batch("question")), []
    for plain, smoothing in ((True, 0.3), (False, 0.3), (False, 0.0)):
        trainer = zoo.trainer(
            "question", zoo.build("question", dropout=0.0), zoo.dataset("question"), tmp_path, plain,
            label_smoothing_factor=smoothing, rdrop_allow_deterministic=True,
        )  # fmt: skip
        losses.append(tiny.loss_of(trainer, batch).item())
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
            losses.append(tiny.loss_of(trainer, zoo.batch("llama", trainer.model)).item())
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


# ---- What a base class counts wrongly ----


@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_answers_that_all_end_outside_still_begin_somewhere(alpha, tmp_path):
    batch, model = zoo.batch("question"), zoo.build("question", dropout=0.0)
    batch["end_positions"] = torch.full((5,), 99)
    batch = on_device(batch)
    trainer = zoo.trainer("question", model, zoo.dataset("question"), tmp_path, rdrop_alpha=alpha, **SAME)
    loss = tiny.loss_of(trainer, batch)
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
