"""What a training logs of the R-Drop loss: averages over R-Drop steps."""

import pytest
import torch
from transformers import Trainer

from rdrop_trainer import RDropMixin, RDropTrainer
from rdrop_trainer.logged_terms import LoggedTerms
from rdrop_trainer.losses import RDropLoss
from support import tiny


def terms(task, divergence):
    return RDropLoss(torch.tensor(0.0), torch.tensor(task), torch.tensor(divergence))


def test_logged_terms_average_steps_and_forget_a_window_begun_again():
    logged = LoggedTerms()
    assert logged.take(lambda sums: sums) == {}
    for step, values in ((0, [(1.0, 2.0), (3.0, 4.0)]), (1, [(9.0, 9.0)]), (1, [(2.0, 6.0), (4.0, 2.0)])):
        logged.start_window(step)  # step 1 ran out of memory after one micro-batch, and began again
        for value in values:
            logged.add(terms(*value))
            logged.add(terms(50.0, 50.0))  # of disturbed weights
            logged.on_substep_end()
    assert logged.take(lambda sums: sums) == {"task_loss": 5.0, "divergence": 7.0}
    logged.start_window(2)
    logged.add(terms(100.0, 100.0))
    logged.start_window(3)
    logged.add(terms(100.0, 100.0))
    logged.start_window(0)  # training began again from its first step
    logged.add(terms(1.0, 1.0))
    assert logged.take(lambda sums: sums) == {"task_loss": 1.0, "divergence": 1.0}
    logged.start_window(1)
    assert logged.take(lambda sums: sums) == {}


def test_a_loss_that_a_compute_loss_logs_by_itself_takes_no_terms(tmp_path):
    class Logs(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            self.log({"loss": 7.0})
            return (outputs.loss * 2, outputs) if return_outputs else outputs.loss * 2

    cls = type("Over", (RDropMixin, Logs), {})
    arguments = {"logging_steps": 3, "per_device_train_batch_size": 4, "max_steps": 3, "rdrop_alpha": 3.0}
    trainer = tiny.trainer(tiny.bert(dropout=0.5), tiny.dataset(), tmp_path, cls, **arguments)
    trainer.train()
    own = [entry for entry in trainer.state.log_history if entry.get("loss") == 7.0]
    assert len(own) >= 3 and not any("divergence" in entry for entry in own)
    [log] = [entry for entry in trainer.state.log_history if "divergence" in entry]
    assert log["loss"] == pytest.approx(log["task_loss"] + 1.5 * log["divergence"], rel=1e-5)


def test_a_loss_that_is_logged_within_a_step_leaves_the_terms_whole(tmp_path):
    """By a class in front, between the micro-batches of a step, and by a prediction_step."""

    class Logs(RDropTrainer):
        def compute_loss(self, *args, **kwargs):
            found = super().compute_loss(*args, **kwargs)
            self.log({"loss": 7.0})
            return found

        def prediction_step(self, *args, **kwargs):
            self.log({"loss": 8.0})
            return super().prediction_step(*args, **kwargs)

    def logs(cls):
        arguments = {"logging_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        trainer = tiny.trainer(
            tiny.bert(dropout=0.5), tiny.dataset(), tmp_path, cls, eval_dataset=tiny.dataset(), max_steps=3,
            eval_strategy="steps", eval_steps=2, **arguments,
        )  # fmt: skip
        trainer.train()
        names, history = ("loss", "task_loss", "divergence"), trainer.state.log_history
        return [[entry.get(name) for name in names] for entry in history if "loss" in entry]

    found, expected = logs(Logs), logs(RDropTrainer)
    own = [log for log in found if log[0] in (7.0, 8.0)]
    assert len(own) > 6 and all(log[1:] == [None, None] for log in own)
    assert [log for log in found if log not in own] == expected and expected[0][2] > 0
