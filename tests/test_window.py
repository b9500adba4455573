"""Counting items, choosing them from logits, and averaging what is logged."""

import pytest
import torch

from rdrop_trainer.heads import REGRESSION, SINGLE_LABEL, TOKEN
from rdrop_trainer.losses import RDropLoss
from rdrop_trainer.window import LoggedTerms, Window


def test_items_of_tokens_behind_a_soft_prompt():
    """Positions that the model put before the text are left out: logits and labels align from the right."""
    labels = torch.tensor([[-100, 1, 2], [0, -100, -100]])
    logits = torch.arange(4 * 5 * 3.0).reshape(4, 5, 3)  # two passes of two rows, two positions of a prompt
    chosen, kept = TOKEN.items(logits, {"labels": labels}, num_passes=2)
    assert kept.tolist() == [1, 2, 0]
    expected = [logits[0, 3], logits[0, 4], logits[1, 2], logits[2, 3], logits[2, 4], logits[3, 2]]
    assert torch.equal(chosen, torch.stack(expected))


def test_counts():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    labels = torch.tensor([[-100, 1, -100], [-100, -100, -100], [2, -100, -100]])
    # one label in rows 0 and 2, no label and two attended tokens in row 1
    assert TOKEN.count({"labels": labels, "attention_mask": mask}).tolist() == [2, 4]
    assert TOKEN.count({"labels": labels}).tolist() == [2, 5]
    assert SINGLE_LABEL.count({"labels": torch.tensor([0, -100, 3])}).tolist() == [2, 3]
    assert REGRESSION.count({"labels": torch.tensor([0.5, -100.0])}).tolist() == [2, 2]


def test_windows_add_up_over_batches_and_processes():
    batches = [{"labels": torch.tensor([0, -100])}, {"labels": torch.tensor([1, 2, 3])}]
    window = Window.count(SINGLE_LABEL, batches, torch.device("cpu"))
    assert (window.task_items, window.divergence_items, window.micro_batches) == (4, 5, 2)
    assert not window.is_one_batch and window.share(batches[1]) == 3 / 4
    shared = Window.count(SINGLE_LABEL, batches[:1], torch.device("cpu"), 2, lambda counts: 3 * counts)
    assert (shared.task_items, shared.divergence_items) == (3, 6) and not shared.is_one_batch
    assert shared.share(batches[0]) == pytest.approx(2 / 3)


def terms(task, divergence):
    return RDropLoss(torch.tensor(0.0), torch.tensor(task), torch.tensor(divergence))


def test_logged_terms_average_steps_and_forget_a_window_begun_again():
    logged = LoggedTerms(torch.device("cpu"))
    assert logged.take(lambda sums: sums) == {}
    for step, values in ((0, [(1.0, 2.0), (3.0, 4.0)]), (1, [(9.0, 9.0)]), (1, [(2.0, 6.0), (2.0, 0.0)])):
        logged.start_window(step)  # step 1 ran out of memory after one micro-batch, and began again
        for value in values:
            logged.add(terms(*value), step)
    assert logged.take(lambda sums: sums) == {"task_loss": 4.0, "divergence": 6.0}
    logged.start_window(2)
    logged.add(terms(100.0, 100.0), 2)
    logged.start_window(0)  # training began again from its first step
    logged.add(terms(1.0, 1.0), 0)
    assert logged.take(lambda sums: sums) == {"task_loss": 1.0, "divergence": 1.0}
    logged.start_window(1)
    assert logged.take(lambda sums: sums) == {}
