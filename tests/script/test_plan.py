"""`--dry_run` of a comparison or a search: which runs, in which folders, and about what they take."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from rdrop_trainer.script import dry_run, plan
from rdrop_trainer.script.dry_run import DryRun
from rdrop_trainer.script.estimate import Cost, Workload, _times
from support.runs import FAST, Pretended, fails, launched_by, make_place, results, script

FLAGS = [*FAST, "--model_name_or_path=model", "--train_file=train.csv", "--validation_file=dev.csv"]


@pytest.fixture
def here(here):
    make_place(here, rows=24)
    return here


@pytest.fixture
def costs(monkeypatch):
    """Runs whose cost is known: 100 s with alpha 0, 160 s with R-Drop, 5 MB; and the flags of those done dry."""
    dry = []

    def run_dry(command):
        assert command.data.dry_run
        dry.append(command)
        return DryRun(
            "a run", ["rows      24"], [], Cost(160 if command.training.rdrop_alpha else 100, 5_000_000), "cpu"
        )

    monkeypatch.setattr(plan, "run_dry", run_dry)
    return dry


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def finish(folder, flags):
    """Leave the finished run of a job in its folder."""
    assert script.main([*FLAGS, *flags, f"--output_dir={folder}"]) == 0


def test_a_comparison(here, costs, capsys):
    before = files(here)
    assert script.main([*FLAGS, "--compare_baseline", "--seeds", "3", "7", "--output_dir=both", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "Dry run of a comparison in both: 4 runs, 0 of them finished" in said
    for arm in ("plain", "rdrop"):
        for seed in (3, 7):
            assert f"run       {arm}, seed {seed}: both/{arm}-seed{seed}, to come" in said
    assert "time      about 8.7 min for 4 runs, 1 at a time on cpu (one run: plain 100 s, rdrop 2.7 min)" in said
    assert "disk      about 20 MB: 5.0 MB for each of 4 runs" in said and "written   nothing" in said
    assert said.splitlines()[-1].endswith("--compare_baseline --seeds 3 7 --output_dir=both")
    assert files(here) == before
    assert [(c.training.rdrop_alpha, c.training.seed) for c in costs] == [(0, 3), (4, 3)]


def test_runs_at_the_same_time_and_arms_of_ones_own(here, costs, capsys):
    arms = ["--arms", "plain", "rdrop", "plain_longer", "long:num_train_epochs=9"]
    flags = ["--compare_baseline", "--seeds", "1", "2", "--parallel=2", "--dry_run", *arms]
    assert script.main([*FLAGS, *flags]) == 0
    said = capsys.readouterr().out
    # 2 seeds: 100 + 160 + 160 (as long as R-Drop) + 160, two at a time
    assert "time      about 9.7 min for 8 runs, 2 at a time" in said
    assert [c.training.num_train_epochs for c in costs] == [1, 1, 9, 1]
    assert "plain_longer, seed 2: runs/custom-comparison/plain_longer-seed2, to come" in said


def test_finished_runs_are_said_and_cost_nothing(here, costs, capsys, monkeypatch):
    finish("done", [])
    launch = launched_by(Pretended(here / "done", plain_seed2=1), monkeypatch)
    flags = [*FLAGS, "--compare_baseline", "--seeds", "1", "2", "--output_dir=both"]
    found = results(here / "done")
    found["settings"]["measure"] = "quick"
    (here / "done" / "all_results.json").write_text(json.dumps(found))
    assert script.main(flags) == 1
    capsys.readouterr()
    assert script.main([*flags, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 3 of them finished" in said and "rdrop, seed 1: both/rdrop-seed1, finished" in said
    assert "plain, seed 2: both/plain-seed2, to come" in said and "about 100 s for 1 runs" in said
    launch.codes.clear()
    assert script.main(flags) == 0
    capsys.readouterr()
    assert script.main([*flags, "--dry_run"]) == 0
    assert "left      nothing: all runs are finished" in capsys.readouterr().out and len(costs) == 1
    assert script.main([*flags, "--dry_run", "--overwrite_output_dir"]) == 0
    assert "4 runs, 0 of them finished" in capsys.readouterr().out
    assert "rdrop_alpha was 4.0, now 2.0" in fails(capsys, *flags, "--dry_run", "--rdrop_alpha=2")


def test_a_search(here, costs, capsys):
    pytest.importorskip("optuna")
    before = files(here)
    assert script.main([*FLAGS, "--tune=6", "--seed=3", "--parallel=2", "--output_dir=search", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "Dry run of a search in search: 6 trials, 0 of them finished, seed 3" in said
    assert "run       trial 0 (alpha 0): search/trial-0, to come" in said
    assert "run       trial 1 (the given settings): search/trial-1, to come" in said
    assert "run       trials 2 to 5 (drawn by Optuna): search/trial-2 to trial-5, 0 of them finished" in said
    # (100 + 5 x 160) / 2; the weights of the best, and those of two that run
    assert "time      about 7.5 min for 6 runs, 2 at a time" in said and "disk      about 15 MB" in said
    assert files(here) == before
    finish("search/trial-0", ["--rdrop_alpha=0", "--seed=3", "--do_train", "--do_eval"])
    shutil.copytree(here / "search" / "trial-0", here / "search" / "trial-4")
    capsys.readouterr()
    (here / "search" / "trials.db").touch()
    assert script.main([*FLAGS, "--tune=6", "--seed=3", "--output_dir=search", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "6 trials, 2 of them finished" in said and "trial 0 (alpha 0): search/trial-0, finished" in said
    assert "search/trial-2 to trial-5, 1 of them finished" in said and "about 10.7 min" in said.replace(
        "11 min", "10.7 min"
    )


@pytest.mark.parametrize("tuned", [False, True])
def test_what_a_run_would_refuse_is_refused(tuned, here, capsys):
    flags = ["--tune=2"] if tuned else ["--compare_baseline"]
    before = files(here)
    assert "no active dropout" in fails(capsys, *FLAGS, *flags, "--dry_run", "--dropout=0")
    assert files(here) == before


def test_the_estimate_of_a_comparison_is_of_its_runs(here, capsys, monkeypatch):
    """A whole dry run of tiny models: bytes to the byte, seconds by the parts that it measured."""
    taken = iter([2.0, 0.5, 3.0, 0.5])  # a step of plain, a batch of 8 rows; the same with R-Drop
    monkeypatch.setattr(dry_run, "seconds_of", lambda function, device: (function(), next(taken))[1])
    monkeypatch.setattr(
        "rdrop_trainer.script.estimate.seconds_of", lambda function, device: (function(), next(taken))[1]
    )
    flags = ["--save_strategy=epoch", "--save_total_limit=2", "--num_train_epochs=6", "--compare_baseline", "--seeds=1"]
    assert script.main([*FLAGS, *flags, "--dry_run"]) == 0
    said = capsys.readouterr().out
    evaluating = 16 * 0.5 / 8  # once
    # 24 rows in batches of 8, six epochs: 18 steps, and a fifth for measuring; plain and R-Drop
    seconds = 1.2 * (18 * 2.0 + 18 * 3.0) + 2 * evaluating
    found = float(re.search(r"time      about (\d+) s for 2 runs", said)[1])
    assert seconds - 0.5 <= found < seconds + 30  # and the loading
    weights = sum(t.nbytes for t in load_file(here / "model" / "model.safetensors").values())
    head = (16 + 1) * 2 * 4
    whole = (weights + head) * (1 + 2 * 3) * 2
    assert f"disk      about {whole / 1000:.0f} kB" in said


def test_the_cost_of_a_training():
    training = Workload(steps=10, step_seconds=2.0, evaluations=3, checkpoints=300, weights=100)
    cost = [training.cost(load=5.0, evaluation=4.0, measure=measure) for measure in ("none", "quick", "full")]
    assert cost == [Cost(5 + 20 + 16, 400), Cost(5 + 20 + 4 + 16, 400), Cost(5 + 20 + 16 + 20 * 4, 400)]


@pytest.mark.parametrize(
    "strategy, every, times", [("no", 500, 0), ("epoch", 500, 3), ("steps", 20, 5), ("steps", 500, 1)]
)
def test_how_often(strategy, every, times):
    assert _times(strategy, every, SimpleNamespace(num_train_epochs=3, max_steps=100)) == times


def test_no_gradient_is_left(here, monkeypatch):
    kept = {}
    workload_of = dry_run.workload_of

    def watching(trainer, state, batch):
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        found = workload_of(trainer, state, batch)
        assert all(p.grad is None and p.equal(before[name]) for name, p in trainer.model.named_parameters())
        kept["training"] = found
        return found

    monkeypatch.setattr(dry_run, "workload_of", watching)
    assert script.main([*FLAGS, "--dry_run"]) == 0
    assert kept["training"].steps == 3 and kept["training"].step_seconds > 0


def test_a_last_batch_that_is_not_full_is_part_of_its_epoch(here, capsys):
    flags = ["--per_device_train_batch_size=16", "--num_train_epochs=3", "--dry_run"]
    assert script.main([*FLAGS, *flags]) == 0
    assert "6 steps (3.0 epochs) of 16 rows" in capsys.readouterr().out
