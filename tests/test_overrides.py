"""A compute_loss in front of R-Drop, as users write it: as behind it, or refused with a sentence."""

import pytest
import torch
from torch import nn
from transformers import Trainer

from rdrop_trainer import RDropMixin, RDropTrainer
from support import formulas, tiny, zoo
from support.overrides import OF_CLASS_2, WEIGHTS, run, weighted


class Weighted(Trainer):
    compute_loss = weighted


class Behind(RDropMixin, Weighted):
    pass


class InFront(RDropTrainer):
    compute_loss = weighted


class OtherWayRound(Weighted, RDropTrainer):
    pass


def test_the_mixin_comes_first():
    with pytest.raises(TypeError, match=r"Wrong has RDropMixin after Weighted.*class Wrong\(RDropMixin, Weighted\)"):
        type("Wrong", (Weighted, RDropMixin), {})


@pytest.mark.parametrize(
    "cls, mode",
    [(InFront, "concat"), (InFront, "sequential"), (InFront, "recompute"), (OtherWayRound, "concat")],
)
def test_a_compute_loss_in_front_works_as_one_behind(cls, mode, tmp_path):
    # The pass noise counts rows, so that passes one after another are alike
    settings = {"rdrop_forward_mode": mode, "rdrop_allow_deterministic": mode != "concat"}
    expected, behind = run(Behind, tmp_path, **settings)
    update, trainer = run(cls, tmp_path, **settings)
    assert torch.equal(update, expected)
    log, wanted = trainer.state.log_history[0], behind.state.log_history[0]
    assert log["divergence"] == wanted["divergence"] and log["task_loss"] == wanted["task_loss"]
    assert mode != "concat" or log["divergence"] > 0
    assert "compute_loss" not in vars(trainer)


def test_its_update_is_exact_and_its_loss_the_definition(tmp_path):
    whole, trainer = run(InFront, tmp_path, rows=8, steps=1)
    parts, _ = run(InFront, tmp_path, rows=2, steps=4)
    plain, _ = run(InFront, tmp_path, rows=2, steps=4, rdrop_alpha=0.0)
    wanted, _ = run(Weighted, tmp_path, rows=8, steps=1)
    assert tiny.relative(parts, whole) < 1e-5 and tiny.relative(plain, wanted) > 1e-3  # noise of one pass, and of none
    model = zoo.noisy("single_label").train()
    batch = trainer.data_collator(OF_CLASS_2)
    doubled = {key: torch.cat([value, value]) for key, value in batch.items() if key != "labels"}
    passes = model(**doubled).logits.split(8)
    own = sum(nn.functional.cross_entropy(z, batch["labels"], WEIGHTS.to(z)) * 3 for z in passes) / 2
    divergence = formulas.rdrop(passes, batch["labels"].tolist(), 0.0)[2]
    log = trainer.state.log_history[0]
    assert log["task_loss"] == pytest.approx(own.item(), rel=1e-5)
    assert log["divergence"] == pytest.approx(divergence.item(), rel=1e-4)


def test_evaluation_is_that_of_the_override(tmp_path):
    losses = []
    for cls in (InFront, Weighted):
        arguments = {"eval_dataset": tiny.dataset(), "eval_strategy": "epoch"}
        trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, learning_rate=0.0, **arguments)
        trainer.train()
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
        losses[-1].append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_an_override_that_adds_to_ours_goes_on(tmp_path):
    class Adds(RDropTrainer):
        calls = 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.calls += 1
            return super().compute_loss(model, inputs, *args, **kwargs) + 100.0  # asked for no outputs

    plain, _ = run(RDropTrainer, tmp_path)
    update, trainer = run(Adds, tmp_path)
    assert torch.equal(update, plain) and trainer.calls == 4
    log = trainer.state.log_history[0]
    assert log["divergence"] > 0 and log["loss"] == pytest.approx(log["task_loss"] + 2 * log["divergence"] + 400)


@pytest.mark.parametrize("behind", [True, False])
def test_old_signatures_and_losses_over_the_count(behind, tmp_path):
    def old(self, model, inputs, return_outputs=False):
        return weighted(self, model, inputs, return_outputs)

    class OldSuper(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            loss, outputs = super().compute_loss(model, inputs, True)
            return (3 * loss, outputs) if return_outputs else 3 * loss

    def over_count(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = 3 * nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def made(function):
        if behind:
            return type("Over", (RDropMixin, type("Own", (Trainer,), {"compute_loss": function})), {})
        return type("Own", (RDropTrainer,), {"compute_loss": function})

    expected = run(Behind, tmp_path)[0]
    update, trainer = run(made(old), tmp_path, eval_dataset=tiny.dataset())
    assert torch.equal(update, expected) and trainer.evaluate()["eval_loss"] > 0
    for cls in (OldSuper, made(over_count)):
        assert tiny.relative(run(cls, tmp_path)[0], expected) < 1e-6


def test_overrides_over_overrides(tmp_path):
    """The whole chain is kept where one of them does not call ours; `super()` may be there for something else."""

    class Over(InFront):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    class Logs(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            super().floating_point_ops(inputs)
            return weighted(self, model, inputs, return_outputs)

    expected = run(Behind, tmp_path)[0]
    for cls in (Over, Logs):
        assert torch.equal(run(cls, tmp_path)[0], expected)


def test_a_compute_loss_set_on_a_trainer_stays_there(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, InFront, eval_dataset=tiny.dataset())
    calls = []
    trainer.compute_loss = lambda *args, **kwargs: calls.append(1) or weighted(trainer, *args, **kwargs)
    trainer.evaluate()
    assert len(calls) == 2 and "compute_loss" in vars(trainer)


def test_a_compute_loss_that_returns_probabilities_is_refused(tmp_path):
    class Probabilities(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = weighted(self, model, inputs, return_outputs=True)
            return (loss, {"logits": outputs.logits.softmax(-1)}) if return_outputs else loss

    with pytest.raises(ValueError, match="compute_loss of Probabilities returns probabilities as 'logits'.*softmax"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, Probabilities).train()
