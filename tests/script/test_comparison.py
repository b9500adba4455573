"""--compare_baseline: which runs it starts, what it repeats, what it survives, what it refuses."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from rdrop_trainer import RDropTrainer
from rdrop_trainer.script.command_line import parse_arguments
from support import tiny
from support.runs import FAST, InProcess, Pretended, fails, launched_by, make_place, results, script

FLAGS = [*FAST, "--model_name_or_path=model", "--train_file=train.csv", "--validation_file=dev.csv"]
FLAGS += ["--learning_rate=1e-3", "--compare_baseline", "--output_dir=both"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, data, and a finished comparison of two seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    make_place(folder, rows=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch = launched_by(InProcess(), patch)
        assert script.main([*FLAGS, "--seeds", "1", "2"]) == 0
        assert launch.started == ["plain-seed1", "rdrop-seed1", "plain-seed2", "rdrop-seed2"]
    return folder


@pytest.fixture
def here(place, here):
    """A copy of it, as the current folder."""
    return Path(shutil.copytree(place, here, dirs_exist_ok=True))


@pytest.fixture
def launch(place, monkeypatch):
    return launched_by(Pretended(place / "both" / "rdrop-seed1"), monkeypatch)


def test_both_arms_are_the_same_run_but_for_alpha(here):
    for seed in (1, 2):
        plain, rdrop = (results(here / "both" / f"{arm}-seed{seed}") for arm in ("plain", "rdrop"))
        differ = {name for name, value in rdrop["settings"].items() if plain["settings"][name] != value}
        assert differ <= {"rdrop_alpha", "output_dir"}
        assert (plain["settings"]["rdrop_alpha"], rdrop["settings"]["rdrop_alpha"]) == (0, 4)
        assert plain["settings"]["seed"] == rdrop["settings"]["seed"] == seed


def test_each_run_has_its_recipe(here):
    for folder in sorted((here / "both").glob("*-seed*")):
        recipe, found = parse_arguments([str(folder / "recipe.yaml")]), results(folder)
        assert sorted(recipe.given) == found["given"] and recipe.training.output_dir == found["settings"]["output_dir"]
        assert recipe.training.rdrop_alpha == found["settings"]["rdrop_alpha"]


def test_each_run_measures_its_stability(here):
    """As much as a fifth of its training pays for, the same in both arms."""
    for arm in ("plain", "rdrop"):
        folder = here / "both" / f"{arm}-seed1"
        found = results(folder)
        measured = found["stability"]
        assert (measured["split"], measured["rows"], measured["of_rows"]) == ("validation", 2, 16)
        assert measured["dropout"]["num_samples"] == 2 and measured["dropout"]["divergence"] > 0
        with open(folder / "edits.csv", encoding="utf-8", newline="") as file:
            edits = list(csv.DictReader(file))
        assert len(edits) == measured["edits"]["edited"] == 2 * 2
        flipped = sum(edit["flipped"] == "True" for edit in edits) / len(edits)
        assert measured["edits"]["flip_rate"] == pytest.approx(flipped)
        assert 0 <= measured["calibration"]["expected_calibration_error"] <= 1
        assert found["peak_memory"]["bytes"] > 1e8


def test_the_data_come_in_the_same_order(tmp_path):
    seen = {}
    for alpha in (0.0, 4.0):

        class Watching(RDropTrainer):
            def compute_loss(self, model, inputs, *args, alpha=alpha, **kwargs):
                seen.setdefault(alpha, []).append(inputs["input_ids"].clone())
                return super().compute_loss(model, inputs, *args, **kwargs)

        data = tiny.dataset(rows=20)
        options = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "seed": 3}
        tiny.trainer(tiny.bert(), data, tmp_path, Watching, rdrop_alpha=alpha, **options).train()
    assert len(seen[0.0]) == 15 and all(torch.equal(a, b) for a, b in zip(seen[0.0], seen[4.0], strict=True))


def test_the_report_is_of_the_runs(here, launch, capsys):
    assert script.main([*FLAGS, "--seeds", "1", "2"]) == 0
    said = capsys.readouterr().out
    assert "4 of them finished before" in said and not launch.started
    assert (here / "both" / "report.md").exists()
    report = json.loads((here / "both" / "report.json").read_text())
    scores = [results(here / "both" / f"plain-seed{seed}")["metrics"]["eval_accuracy"] for seed in (1, 2)]
    assert str(sum(scores) / 2)[:6] in json.dumps(report)


def test_a_card_has_its_baseline_whichever_ended_first(here, launch):
    path = here / "both" / "rdrop-seed1" / "README.md"
    whole = path.read_text()
    assert "| baseline, alpha 0 | difference |\n" in whole and "\n\nSingle runs: small differences" in whole
    table = whole[whole.index("| data | split |") : whole.index("\n\nSingle runs")]
    alone = "\n".join(f"{' |'.join(row.split(' |')[:4])} |" for row in table.splitlines())
    path.write_text(re.sub("\n\nSingle runs.*", "", whole.replace(table, alone)))
    assert "baseline" not in path.read_text()
    assert script.main([*FLAGS, "--seeds", "1", "2"]) == 0 and path.read_text() == whole
    path.write_text(re.sub(r"\| 0\.\d+ \| [-+]0\.\d+ \|\n", "| 0.1234 | +0.4321 |\n", whole))  # of another baseline
    assert path.read_text().count("0.1234") == 1
    assert script.main([*FLAGS, "--seeds", "1", "2"]) == 0 and path.read_text() == whole


def test_only_what_is_missing_is_run(here, launch):
    (here / "both" / "rdrop-seed2" / "all_results.json").unlink()
    assert script.main([*FLAGS, "--seeds", "1", "2", "3"]) == 0
    assert launch.started == ["rdrop-seed2", "plain-seed3", "rdrop-seed3"]
    before = (here / "both" / "report.json").read_text()
    assert script.main([*FLAGS, "--seeds", "2", "3"]) == 0
    assert len(launch.started) == 3 and (here / "both" / "report.json").read_text() != before


def test_a_failed_run_takes_nothing_else_with_it(here, launch, capsys):
    launch.codes["plain_seed3"] = 1
    assert script.main([*FLAGS, "--seeds", "1", "3", "2"]) == 1
    assert launch.started == ["plain-seed3", "rdrop-seed3"]
    said = capsys.readouterr().out
    assert "plain, seed 3: failed with exit code 1" in said and "this is why" in said
    assert "1 of 6 runs failed" in said and "tries them again" in said
    assert "one of the two runs is missing: seed 3" in (here / "both" / "report.md").read_text()
    launch.codes.clear()
    assert script.main([*FLAGS, "--seeds", "1", "3", "2"]) == 0 and launch.started[2:] == ["plain-seed3"]


def test_a_loss_that_is_nan_takes_no_other_run_with_it(here, monkeypatch, capsys):
    launched = InProcess()
    launched_by(launched, monkeypatch)
    hot = "hot:learning_rate=1e30,max_grad_norm=0"
    assert script.main([*FLAGS, "--seeds", "1", "2", "--arms", "plain", "rdrop", hot]) == 1
    assert launched.started == ["hot-seed1", "hot-seed2"]
    said = capsys.readouterr().out
    assert "2 of 6 runs failed" in said and "over 2 seeds" in said.lower()


def test_wrong_input_is_said_once(here, launch, capsys):
    launch.codes["plain_seed3"] = 2
    assert "plain, seed 3: this is why" in fails(capsys, *FLAGS, "--seeds", "3", "4")
    assert launch.started == ["plain-seed3"]


def test_an_interruption_keeps_what_is_finished(here, launch, capsys):
    launch.codes["rdrop_seed3"] = KeyboardInterrupt
    assert script.main([*FLAGS, "--seeds", "3"]) == 130
    assert launch.stopped and "the same command goes on" in capsys.readouterr().out
    launch.codes.clear()
    assert script.main([*FLAGS, "--seeds", "3"]) == 0
    assert launch.started == ["plain-seed3", "rdrop-seed3", "rdrop-seed3"]


def test_runs_of_other_settings_are_not_mixed(here, launch, capsys):
    line = fails(capsys, *FLAGS, "--seeds", "1", "--rdrop_alpha", "2")
    assert "rdrop-seed1: is a finished run with other settings (rdrop_alpha was 4.0, now 2.0)" in line
    assert "max_seq_length was 16, now 12" in fails(capsys, *FLAGS, "--seeds", "1", "--max_seq_length", "12")
    assert "max_eval_samples was None, now 5" in fails(capsys, *FLAGS, "--seeds", "1", "--max_eval_samples", "5")
    assert script.main([*FLAGS, "--seeds", "1", "--rdrop_alpha", "2", "--overwrite_output_dir"]) == 0
    assert launch.started == ["plain-seed1", "rdrop-seed1"]
    assert results(here / "both" / "rdrop-seed1")["settings"]["rdrop_alpha"] == 2
    assert json.loads((here / "both" / "report.json").read_text())["alpha"] == 2


def test_runs_on_other_rows_are_not_mixed(here, launch, capsys):
    rows = (here / "dev.csv").read_bytes()
    (here / "dev.csv").write_bytes(rows[: rows.rindex(b"\n", 0, -1) + 1])
    line = fails(capsys, *FLAGS, "--seeds", "1", "2", "3")
    assert "plain-seed1: is a finished run with other settings (the validation_file was edited since" in line
    (here / "dev.csv").write_bytes(rows)
    assert script.main([*FLAGS, "--seeds", "1", "2", "3"]) == 0 and launch.started == ["plain-seed3", "rdrop-seed3"]


def test_a_recipe_may_ask_for_a_comparison(here, launch):
    recipe = dict(word.removeprefix("--").split("=") for word in FLAGS if "=" in word)
    pairs = zip(FAST[::2], FAST[1::2], strict=True)
    recipe |= {flag.removeprefix("--"): value for flag, value in pairs}
    lines = [f"{name}: {value}" for name, value in recipe.items()] + ["compare_baseline: true", "seeds: [1, 3]"]
    (here / "recipe.yaml").write_text("\n".join(lines))
    assert script.main(["recipe.yaml", "--parallel", "2"]) == 0
    assert sorted(launch.started) == ["plain-seed3", "rdrop-seed3"]


def set_seconds(folder, seconds):
    found = results(folder)
    found["seconds"]["train"] = seconds
    (folder / "all_results.json").write_text(json.dumps(found))


def test_plain_longer_trains_for_as_long_as_r_drop(here, launch, capsys):
    set_seconds(here / "both" / "plain-seed1", 10.0)
    set_seconds(here / "both" / "rdrop-seed1", 17.0)
    unknown = results(here / "both" / "rdrop-seed2")  # resumed from a checkpoint that does not know them
    unknown["seconds"] = {"train since the resume": 1.0}
    (here / "both" / "rdrop-seed2" / "all_results.json").write_text(json.dumps(unknown))
    flags = [*FLAGS, "--arms", "rdrop", "plain_longer", "plain", "--seeds", "1"]
    assert script.main([*flags, "2"]) == 0 and launch.started == ["plain_longer-seed1", "plain_longer-seed2"]
    assert results(here / "both" / "plain_longer-seed1")["settings"] | {"output_dir": ""} == results(
        here / "both" / "plain-seed1"
    )["settings"] | {"output_dir": "", "num_train_epochs": 1.7}
    said = capsys.readouterr().out
    assert "plain_longer trains 1.70 times as long as plain" in said
    assert "## Arms" in (here / "both" / "report.md").read_text()
    assert "The times leave out R-Drop, seed 2" in said
    # The time was measured once: what comes later is as long as what there is
    assert script.main([*flags, "3"]) == 0
    assert launch.started[2:] == ["plain-seed3", "rdrop-seed3", "plain_longer-seed3"]
    assert results(here / "both" / "plain_longer-seed3")["settings"]["num_train_epochs"] == 1.7


def test_arms_of_ones_own(here, launch):
    own = ["--arms", "plain", "rdrop", "dropout", "strong:rdrop_alpha=16,learning_rate=1e-4"]
    assert script.main([*FLAGS, "--dropout", "0.3", "--output_dir=arms", "--seeds", "1", *own]) == 0
    settings = {
        arm: results(here / "arms" / f"{arm}-seed1")["settings"] for arm in ("plain", "rdrop", "dropout", "strong")
    }
    found = {arm: (s["rdrop_alpha"], s["rdrop_dropout"], s["learning_rate"]) for arm, s in settings.items()}
    assert found == {
        "plain": (0, None, 1e-3), "rdrop": (4, 0.3, 1e-3), "dropout": (0, 0.3, 1e-3), "strong": (16, 0.3, 1e-4),
    }  # fmt: skip
    report = json.loads((here / "arms" / "report.json").read_text())
    pairs = [(pair["arm"], pair["against"]) for pair in report["arms"]]
    assert pairs[:3] == [(arm, "plain") for arm in ("rdrop", "dropout", "strong")]
    assert pairs[3:] == [("rdrop", "dropout"), ("strong", "dropout")]


@pytest.mark.parametrize(
    "arms, message",
    [
        ("plain", "expected plain and rdrop"),
        ("plain rdrop rdrop", "twice"),
        ("plain rdrop stronger", "expected plain, plain_longer, dropout, rdrop, or an arm of your own"),
        ("plain rdrop dropout", "give that with --dropout"),
        ("plain rdrop a:rdrop_alhpa=3", "unknown flag --rdrop_alhpa; did you mean --rdrop_alpha"),
        ("plain rdrop a:seed=3", "seed is the same for all arms"),
        ("plain rdrop a:load_best_model_at_end=True", "load_best_model_at_end is the same for all arms"),
        ("plain rdrop a/b:rdrop_alpha=3", "'a/b' cannot be the name"),
        ("plain rdrop Plain:rdrop_alpha=3", "'Plain' cannot be the name"),
        ("plain rdrop a:rdrop_alpha=3 A:rdrop_alpha=5", "twice"),
    ],
)
def test_arms_that_cannot_be(arms, message, here, launch, capsys):
    assert message in fails(capsys, *FLAGS, "--arms", *arms.split())
    assert not launch.started


def test_what_the_report_needs_is_missed_before_training(here, launch, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert 'pip install "rdrop-trainer[report]"' in fails(capsys, *FLAGS, "--seeds", "3")
    assert not launch.started


def test_what_a_comparison_refuses(here, launch, capsys, monkeypatch):
    for words, expected in (
        (["--rdrop_alpha", "0"], "give the alpha above 0"),
        (["--push_to_hub"], "choose one afterwards"),
        (["--do_train"], "give both --do_train and --do_eval, or neither"),
        (["--resume_from_checkpoint", "model"], "resumes each of its runs by itself"),
        (["--seeds", "1", "1"], "seeds must be different"),
        (["--parallel", "0"], "parallel must be at least 1, got 0"),
        (["--engine", "slurm"], "invalid choice"),
    ):
        assert expected in fails(capsys, *FLAGS, *words)
    with FileLock(here / "both" / ".lock"):
        assert "another process is at work there" in fails(capsys, *FLAGS)
    (here / "both" / "plain-seed1" / "all_results.json").write_text("{")
    assert "is damaged" in fails(capsys, *FLAGS)
    assert not launch.started
