"""The verdicts at the start of a training, on logits made for the purpose."""

import pytest
import torch

from rdrop_trainer.objective.noise import LossCheck, NoiseCheck
from support import tiny


def look(check, logits, again=None, allowed=False, step=0, model=None):
    model = model or tiny.bert(dropout=0.0)
    passes = logits.unflatten(0, (2, -1)) if len(logits) else logits
    again_in_passes = again and (lambda: again().unflatten(0, (2, -1)))
    check.look(model, passes, step, allowed, lambda verdict: verdict, again_in_passes)


def test_rounding_is_no_noise_when_the_same_forward_repeats_itself():
    """One forward may round a row differently at another place; run again, a model without noise repeats its bits."""
    row = torch.tensor([[1.0, -2.0, float("-inf")]])
    logits = torch.cat([row, row * (1 + 1e-6)])
    with pytest.raises(ValueError, match="identical on the first R-Drop step"):
        look(NoiseCheck(), logits, again=lambda: logits.clone())
    check = NoiseCheck()
    look(check, logits, again=lambda: logits * (1 + 1e-6))
    assert check.done


def test_rounding_does_not_hide_that_dropout_never_reaches_the_predictions():
    logits = torch.tensor([[1.0, -2.0], [1.0 + 1e-6, -2.0]])
    check, model = NoiseCheck(), tiny.bert(dropout=0.1)
    for step in range(NoiseCheck.PATIENCE - 1):
        look(check, logits, again=lambda: logits.clone(), step=step, model=model)
    with pytest.raises(ValueError, match="still identical after 20 R-Drop steps"):
        look(check, logits, again=lambda: logits.clone(), step=NoiseCheck.PATIENCE, model=model)


def test_all_processes_compute_again_or_none():
    """A model that is sharded runs on all of them at once: one whose passes are alike follows one that has doubts."""
    again = []
    row = torch.tensor([[1.0, -2.0]])
    passes = torch.stack([row, row])

    def run_again():
        again.append(1)
        return passes * 2

    settings = {"model": tiny.bert(dropout=0.0), "passes": passes, "step": 0, "allowed": True, "again": run_again}
    NoiseCheck().look(**settings, reduce=lambda verdict: verdict)
    assert not again
    NoiseCheck().look(**settings, reduce=lambda verdict: verdict + torch.ones_like(verdict))
    assert again == [1]


def test_passes_that_clearly_differ_are_noise_however_they_came_about():
    check = NoiseCheck()
    logits = torch.tensor([[1.0, 2.0], [1.1, 2.0]])
    look(check, logits, again=lambda: logits.clone())
    assert check.done


def test_no_items_decide_nothing_and_nan_is_not_alike():
    check = NoiseCheck()
    look(check, torch.empty(0, 3))
    assert not check.done
    look(check, torch.full((2, 3), float("nan")))
    assert check.done


def test_allowed_warns_once(caplog):
    check = NoiseCheck()
    look(check, torch.ones(2, 3), allowed=True)
    assert check.done


def test_layer_drop_may_drop_nothing_for_a_while():
    model = tiny.bert(dropout=0.0)
    model.config.layerdrop = 0.1
    check = NoiseCheck()
    for step in range(NoiseCheck.PATIENCE - 1):
        look(check, torch.ones(2, 3), step=step, model=model)
    with pytest.raises(ValueError):
        look(check, torch.ones(2, 3), step=NoiseCheck.PATIENCE, model=model)


def compare(check, own, stock, dtype=torch.float32):
    check.look(torch.tensor(own), torch.tensor(stock), dtype, lambda verdict: verdict)


def test_half_precision_logits_round_the_models_own_loss():
    check = LossCheck()
    compare(check, 0.692578, 0.692778, torch.bfloat16)
    assert not check.differs
    compare(check, 0.692578, 0.692778)
    assert check.differs


@pytest.mark.parametrize("own, differs", [(2.0, False), (2.00001, False), (2.01, True)])
def test_losses(own, differs):
    check = LossCheck()
    compare(check, float("nan"), 0.0)  # no labels: nothing decided
    assert not check.done
    for _ in range(LossCheck.BATCHES):
        compare(check, own, 2.0)
    assert check.done and check.differs is differs


def test_a_loss_that_differs_on_a_later_batch_is_noticed():
    """Class weights cancel in a batch of one class."""
    check = LossCheck()
    compare(check, 1.0, 1.0)
    assert not check.done
    compare(check, 1.2, 1.0)
    assert check.done and check.differs
