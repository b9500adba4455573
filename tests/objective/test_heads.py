"""Every head of the table: bit-identical where it must be, by the definition where it differs from plain training."""

import itertools
import logging

import pytest
import torch
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    WavLMConfig,
    WavLMForXVector,
    YolosConfig,
    YolosForObjectDetection,
)

from rdrop_trainer import Objective
from rdrop_trainer.objective.head_of import head_of
from support import tiny, zoo
from support.device import on_device
from support.resumed import whole_cut_and_resumed
from support.zoo import sgd_update

NAMES = tuple(zoo.CASES)
# `Trainer` counts a position that GPT-2 predicts nothing for; tests of its own
COUNTED_BY_TRAINER = tuple(name for name in NAMES if name != "gpt2")


@pytest.mark.parametrize("name", COUNTED_BY_TRAINER)
def test_alpha_zero_is_trainer_bit_for_bit(name, tmp_path):
    runs, settings = [], {"rdrop_alpha": 0.0, "per_device_train_batch_size": 4}
    for plain in (True, False):
        model, calls = zoo.build(name), []
        model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        trainer = zoo.trainer(name, model, zoo.dataset(name), tmp_path, plain, **settings)
        trainer.train()
        runs.append((tiny.weights(model), trainer.state.log_history[-1]["train_loss"], len(calls)))
    assert tiny.identical(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:] and runs[0][2] == 3


@pytest.mark.parametrize("name", ["single_label", "multi_label", "question"])
def test_outputs_with_alpha_zero_are_trainers(name, tmp_path):
    model, results = zoo.build(name).train(), []
    for plain in (True, False):
        trainer = zoo.trainer(
            name, model, zoo.dataset(name), tmp_path, plain, **({} if plain else {"rdrop_alpha": 0.0})
        )
        torch.manual_seed(0)
        results.append(trainer.compute_loss(model, on_device(zoo.batch(name)), return_outputs=True))
    (loss_a, a), (loss_b, b) = results
    assert loss_a == loss_b and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_and_prediction_are_trainers_bit_for_bit(name, tmp_path):
    model, data, results = zoo.build(name), zoo.dataset(name), []
    for plain in (True, False):
        trainer = zoo.trainer(name, model, data, tmp_path, plain, per_device_eval_batch_size=4)
        results.append((trainer.evaluate(data)["eval_loss"], trainer.predict(data)))
    (loss_a, a), (loss_b, b) = results
    assert loss_a == loss_b
    for x, y in ((a.predictions, b.predictions), (a.label_ids, b.label_ids)):
        x, y = (v if isinstance(v, tuple) else (v,) for v in (x, y))
        tensors = [(p, q) for p, q in zip(x, y, strict=True) if hasattr(p, "shape")]
        assert tensors and all(len(p) == len(data) and (p == q).all() for p, q in tensors)


@pytest.mark.parametrize("name, num_passes", [*((name, 2) for name in NAMES), ("token", 3), ("question", 3), ("t5", 3)])
def test_loss_of_a_batch_equals_the_definition(name, num_passes, tmp_path):
    """One row of five is unlabeled, where the head has a mark for that."""
    model = zoo.noisy(name, num_passes).train()
    settings = {"rdrop_num_passes": num_passes, "rdrop_alpha": 3.0, "rdrop_allow_deterministic": True}
    trainer = zoo.trainer(name, model, zoo.dataset(name), tmp_path, **settings)
    batch = zoo.batch(name, model, unlabeled=(1,) if name in tiny.HEADS else ())
    before = {k: v.clone() for k, v in batch.items()}
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert batch.keys() == before.keys() and all(torch.equal(batch[k], before[k]) for k in batch)
    assert outputs.loss == loss and list(outputs)[0] == "loss"

    with torch.no_grad():
        together = model(**{k: torch.cat([v] * num_passes) for k, v in batch.items()})
    names = ["start_logits", "end_logits"] if zoo.CASES[name].kind == "question" else ["logits"]
    passes = [{key: together[key][k * 5 : k * 5 + 5] for key in names} for k in range(num_passes)]
    expected, _, divergence = zoo.by_definition(name, passes, batch, 3.0)
    assert divergence > 0 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for key in names:
        assert outputs[key].shape == passes[0][key].shape
        assert torch.allclose(outputs[key], passes[0][key])


@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("name", zoo.EVERY_KIND)
def test_accumulation_equals_one_large_batch(name, alpha, tmp_path):
    """4 x 2 rows equal 1 x 8, also in the last window of 2 + 1 rows, with unequal numbers of tokens and no labels."""
    updates, unlabeled = [], (2, 9) if name in tiny.HEADS else ()
    for rows, steps in ((2, 4), (8, 1)):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "rdrop_alpha": alpha}
        model = zoo.noisy(name, num_passes=2 if alpha else 1)
        updates.append(sgd_update(name, model, tmp_path, unlabeled=unlabeled, **settings))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


def test_the_accumulation_test_can_fail(tmp_path):
    """transformers' own Trainer miscounts here (transformers issue 47688), so the comparison does see a difference."""
    updates = []
    for rows, steps in ((2, 4), (8, 1)):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        updates.append(sgd_update("token", zoo.noisy("token", num_passes=1), tmp_path, plain=True, **settings))
    assert tiny.relative(*updates) > 1e-2


@pytest.mark.parametrize("name", zoo.EVERY_KIND)
def test_without_dropout_training_stops_and_the_divergence_is_zero(name, tmp_path):
    model = zoo.build(name, dropout=0.0)
    with pytest.raises(ValueError, match=f"passes of {type(model).__name__} are identical on the first R-Drop step"):
        zoo.trainer(name, model, zoo.dataset(name), tmp_path).train()
    arguments = {"rdrop_allow_deterministic": True, "logging_steps": 1, "rdrop_forward_mode": "sequential"}
    trainer = zoo.trainer(name, model, zoo.dataset(name), tmp_path, **arguments)
    trainer.train()
    assert [entry["divergence"] for entry in trainer.state.log_history if "divergence" in entry] == [0.0, 0.0]


@pytest.mark.parametrize("name", zoo.EVERY_KIND)
def test_logged_terms_add_up(name, tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    trainer = zoo.trainer(name, zoo.build(name), zoo.dataset(name), tmp_path, rdrop_alpha=2.0, **settings)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "divergence" in entry]
    assert len(logs) == 3 and all(entry["divergence"] > 0 for entry in logs)
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + entry["divergence"], rel=1e-5)


@pytest.mark.parametrize(
    "cls, config",
    [
        (YolosForObjectDetection, YolosConfig),
        (SegformerForSemanticSegmentation, SegformerConfig),
        (WavLMForXVector, WavLMConfig),  # its `logits` are embeddings
    ],
)
def test_heads_without_items_are_refused(cls, config):
    with torch.device("meta"):
        model = cls(config())
    with pytest.raises(ValueError, match=f"R-Drop does not fit {cls.__name__}: .*Supported are.*with Trainer"):
        head_of(model, {"labels": torch.zeros(2, 3, dtype=torch.long)})


def test_an_input_named_as_label_is_no_label():
    """As run_mae of transformers has it, for a loss in the evaluation."""
    with torch.device("meta"):
        model = ViTMAEForPreTraining(ViTMAEConfig())
    with pytest.raises(ValueError, match="ViTMAEForPreTraining.*learns without labels.*train it with Trainer"):
        Objective.of(model, [{"pixel_values": torch.zeros(2, 3, 8, 8)}], label_names=["pixel_values"])


@pytest.mark.parametrize(
    "name, fused", [("question", "false"), ("t5", "false"), ("ctc", "false"), ("masked_lm", "true"), ("vit", "false")]
)
def test_stopped_and_resumed_equals_uninterrupted(name, fused, tmp_path):
    whole, cut, resumed = whole_cut_and_resumed(name, tmp_path, rdrop_fused_head=fused)
    assert tiny.identical(whole, resumed) and not tiny.identical(whole, cut)


def test_the_best_model_is_loaded_under_its_own_names(tmp_path, caplog):
    """Image models are saved under the names they have on the Hub."""
    logging.getLogger("transformers").propagate = True
    data, evaluations = zoo.dataset("vit"), itertools.count()
    trainer = zoo.trainer(
        "vit", zoo.build("vit", dropout=0.2), data, tmp_path, eval_dataset=data, per_device_train_batch_size=4,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        learning_rate=1e-2, save_total_limit=1, compute_metrics=lambda found: {"number": next(evaluations)},
        metric_for_best_model="number", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate(data)["eval_loss"] == losses[0] != losses[-1] and "missing keys" not in caplog.text
