"""What a training logs of the R-Drop loss: averages over R-Drop steps."""

import torch

from rdrop_trainer.logged_terms import LoggedTerms
from rdrop_trainer.losses import RDropLoss


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
