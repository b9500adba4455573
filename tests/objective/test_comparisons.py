"""Is a loss what it is taken for? The verdict on losses made for the purpose."""

import pytest
import torch

from rdrop_trainer.objective.task_loss import LossComparison


def compare(comparison, own, expected, dtype=torch.float32):
    return comparison.compare(torch.tensor(own), torch.tensor(expected), dtype, lambda verdict: verdict)


def test_half_precision_rounds_the_models_own_loss():
    assert not compare(LossComparison(), 0.692578, 0.692778, torch.bfloat16).differs
    assert compare(LossComparison(), 0.692578, 0.692778).differs


@pytest.mark.parametrize("own, differs", [(2.0, False), (2.00001, False), (2.01, True)])
def test_losses(own, differs):
    comparison = compare(LossComparison(), float("nan"), 0.0)  # no labels: nothing decided
    assert comparison == LossComparison()
    for _ in range(1 if differs else LossComparison.ENOUGH):
        assert not comparison.done
        comparison = compare(comparison, own, 2.0)
    assert comparison.done and comparison.differs is differs


def test_a_loss_that_differs_on_a_later_batch_is_noticed():
    """Class weights cancel in a batch of one class."""
    comparison = compare(LossComparison(), 1.0, 1.0)
    assert not comparison.done
    comparison = compare(comparison, 1.2, 1.0)
    assert comparison.done and comparison.differs
