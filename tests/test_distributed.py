"""Two processes equal one with twice the rows: every head and forward mode, with and without accumulation (CPU).

Of 13 rows the last batch is short, and the last window of accumulation not full. accelerate fills the short batch with
rows from the start of the epoch, as for plain `Trainer`; the one process gets the same rows.
"""

import json
import os

import pytest
import torch

from support import distributed, tiny
from support.distributed import BARE, FUSED, MODES, OWN_COUNT, TRAINED, UNEVEN
from support.semi_supervised import flat

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All runs at once: {processes: (updates, found per rank)}."""
    out, found = tmp_path_factory.mktemp("distributed"), {}
    distributed.run("distributed_run.py", out)
    for processes in (1, 2):
        folder = out / f"{processes}_processes"
        of_ranks = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(processes)]
        found[processes] = (torch.load(folder / "updates.pt"), of_ranks)
    return found


CASES = [f"{head}-{mode}-{steps}-{alpha:g}" for head, mode, steps, alpha in TRAINED]
CASES += [f"fused-{head}-{mode}-{steps}" for head, mode, steps in FUSED] + ["fused-auto"]
CASES += [f"{name}-{head}-{mode}" for name, head, mode in BARE]
CASES += [f"uneven-{head}-{mode}" for head, mode in UNEVEN] + [
    f"{name}-{mode}" for name in ("all-used", "row_share") for mode in MODES
]
CASES += ["FGM", "AWP"]  # docs/adversarial-training.md
CASES += ["multi_label", "regression", "loss_func", "own_loss", "schedule", "shuffled", "stream", "unlabeled_dataset"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, results):
    one, two = (results[p][0][case] for p in (1, 2))
    assert one.norm() > 1e-3 and tiny.relative(two, one) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_logged_terms_are_equal_on_all_ranks(case, results):
    (one,), (first, second) = ([found["logs"][case] for found in results[p][1]] for p in (1, 2))
    assert first == second and len(first) == len(one)
    for step, expected in zip(first, one, strict=True):
        assert step == pytest.approx(expected, rel=1e-5, abs=1e-7)
        if "divergence" in step and case != "schedule":
            assert step["loss"] == pytest.approx(step["task_loss"] + 2 * step["divergence"], rel=1e-5)
            assert step["divergence"] > 0 or case.startswith("fused") and "recompute" in case


@pytest.mark.parametrize("run", ["-".join(run) for run in OWN_COUNT])
def test_every_process_counts_for_itself(run, results):
    """`average_tokens_across_devices=False`: the mean of the processes' own means."""
    case = f"own-count-{run}"
    (updates, (found,)), (two, ranks) = results[1], results[2]
    assert tiny.relative(two[case], (updates[f"{case}-0"] + updates[f"{case}-1"]) / 2) < 1e-5
    first, second = (rank["logs"][case] for rank in ranks)
    assert first == second and len(first) == 1
    for term, value in first[0].items():
        alone = [found["logs"][f"{case}-{rank}"][0][term] for rank in (0, 1)]
        assert value == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_counting_together_is_another_thing(results):
    """Rows of unequal numbers of tokens: the two settings differ."""
    run = "bare-micro-batch-token-concat"
    assert tiny.relative(results[2][0][f"own-count-{run}"], results[2][0][run]) > 1e-2


def test_the_last_batch_is_filled_with_the_first_rows(results):
    first, second = (found["seen"]["rows"] for found in results[2][1])
    assert first == [[0, 1], [4, 5], [8, 9], [12, 0]]
    assert second == [[2, 3], [6, 7], [10, 11], [1, 2]]


def test_sequential_and_recompute_agree_under_dropout(results):
    """Real dropout on two processes: the recomputed passes draw it again, through DistributedDataParallel."""
    sequential, recompute = (results[2][0][f"dropout-{mode}"] for mode in MODES[1:])
    assert sequential.norm() > 0 and tiny.relative(recompute, sequential) < 1e-6


def test_a_fused_head_makes_no_logits(results):
    assert not any(any(found["seen"]["logits"]) for processes in (1, 2) for found in results[processes][1])


def test_one_process_may_fuse_its_micro_batch_and_the_other_not(results):
    first, second = (found["seen"]["fused"] for found in results[2][1])
    assert len(first) == len(second) and first != second


def test_a_process_names_its_own_rows_where_the_loss_is_nan(results):
    first, second = (found["seen"]["poisoned"] for found in results[2][1])
    assert "batch 2 of epoch 1: rows [4, 5] of train_dataset" in first
    assert "batch 2 of epoch 1: rows [6, 7] of train_dataset" in second


def test_processes_that_find_different_checkpoints_do_not_wait_for_each_other(results):
    for found in results[2][1]:
        assert "different checkpoints to resume from (that of step 1, none)" in found["seen"]["apart"]


def test_unequal_numbers_of_batches_are_refused_where_a_training_gets_there(results):
    for found in results[2][1]:
        seen = found["seen"]
        assert "The processes have 2, 1 batches an epoch" in seen["unequal"] and "even_batches" in seen["unequal"]
        assert seen["unequal-after"] == seen["unequal"] and seen["unequal-before"] is None
        assert "The data of 1 of 2 processes has ended before that of the others" in seen["ending"]
    (one,) = results[1][1]
    assert not any(one["seen"][name] for name in ("unequal", "unequal-before", "unequal-after", "ending"))


@pytest.mark.parametrize("mode", MODES)
def test_reentrant_checkpoints(mode, results):
    (one,), two = results[1][1], results[2][1]
    found = [process["seen"][f"reentrant-{mode}"] for process in two]
    assert one["seen"][f"reentrant-{mode}"] is None
    if mode == "concat":
        assert found == [None, None]
    else:
        assert all("use_reentrant': False" in message and f"'{mode}'" in message for message in found)


def test_processes_never_see_the_same_unlabeled_row_at_one_step(results):
    """Resumed, they go on with the rows of the next step."""
    ranks = [found["seen"] for found in results[2][1]]
    one, other = (seen["whole"] for seen in ranks)
    assert len(one) == len(other) == 12  # 22 rows, 2 x 2 a step, 2 epochs
    for a, b in zip(one, other, strict=True):
        assert not set(a[0]) & set(b[0]) and not set(a[1]) & set(b[1])
        assert len(a[1]) == len(a[0])
    first_round = flat(one[:5], 1) + flat(other[:5], 1)
    assert len(set(first_round)) == 20
    assert all(seen["resumed"] == seen["whole"][7:] for seen in ranks)
