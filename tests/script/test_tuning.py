"""--tune: which trials it starts, what it repeats, what it survives, what it leaves and says, what it refuses."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from rdrop_trainer.script import several, tuning
from rdrop_trainer.script.command_line import parse_arguments
from support import SCRIPT
from support.device import USE_CPU
from support.runs import InProcess, Pretended, fails, launched_by, make_place, results, script

FLAGS = ["--max_seq_length=16", f"--use_cpu={USE_CPU}", "--per_device_train_batch_size=8", "--num_train_epochs=1"]
FLAGS += ["--model_name_or_path=model", "--train_file=train.csv", "--validation_file=dev.csv"]
FLAGS += ["--learning_rate=1e-3", "--output_dir=search"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, data, and a finished search of three trials."""
    folder = tmp_path_factory.mktemp("search")
    make_place(folder, rows=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch = launched_by(InProcess(), patch)
        assert script.main([*FLAGS, "--tune=3"]) == 0
        assert launch.started == ["trial-0", "trial-1", "trial-2"]
    return folder


@pytest.fixture
def here(place, here):
    """A copy of it, as the current folder."""
    return Path(shutil.copytree(place, here, dirs_exist_ok=True))


@pytest.fixture
def launch(place, monkeypatch):
    return launched_by(Pretended(place / "search" / "trial-0"), monkeypatch)


def study():
    return optuna.load_study(study_name="rdrop", storage="sqlite:///search/trials.db")


def test_the_first_trials_are_the_baseline_and_the_given_settings(place):
    baseline, given, drawn = (results(place / "search" / f"trial-{i}")["settings"] for i in range(3))
    tuned = ("rdrop_alpha", "rdrop_dropout", "learning_rate")
    assert [baseline[name] for name in tuned] == [0, None, 1e-3]
    assert [given[name] for name in tuned] == [4, None, 1e-3]
    for name, low, high in (("rdrop_alpha", 0.5, 64), ("rdrop_dropout", 0.1, 0.3), ("learning_rate", 3.1e-4, 3.2e-3)):
        assert low <= drawn[name] <= high
    for other in (given, drawn):
        differ = {name for name, value in other.items() if baseline[name] != value}
        assert differ <= {*tuned, "output_dir"}


@pytest.mark.parametrize(
    "given, name, expected",
    [
        (5e-5, "learning_rate", (1e-5, 1e-4)),
        (1e-3, "learning_rate", (1e-3 / 10**0.5, 1e-3 * 10**0.5)),
        (16.0, "rdrop_alpha", (0.5, 64)),
        (128.0, "rdrop_alpha", (128 / 128**0.5, 128 * 128**0.5)),
        (0.5, "rdrop_dropout", (0.1, 0.5)),
        (None, "rdrop_dropout", (0.1, 0.3)),
    ],
)
def test_the_ranges_hold_what_was_given(given, name, expected):
    assert tuning.range_around(given, *tuning.SPACE[name])[:2] == pytest.approx(expected)


def test_what_a_search_leaves(place):
    found = json.loads((place / "search" / "trials.json").read_text())
    scores = {trial["trial"]: trial["scores"]["eval_accuracy"] for trial in found["trials"]}
    for number, score in scores.items():
        assert results(place / "search" / f"trial-{number}")["headline"]["eval_accuracy"] == score
    assert list(scores.values()) == sorted(scores.values(), reverse=True) and found["score"] == "eval_accuracy"
    table = (place / "search" / "trials.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table if line.startswith("| ")][2:] == [f"| {number}" for number in scores]
    best = found["trials"][0]["folder"]
    assert [path.parent.name for path in (place / "search").rglob("*.safetensors")] == [best]


def test_the_recipe_is_the_best_trial_again(here):
    recipe = yaml.safe_load((here / "search" / "recipe.yaml").read_text())
    assert not {"tune", "output_dir", "parallel"} & recipe.keys()
    best = json.loads((here / "search" / "trials.json").read_text())["trials"][0]
    assert script.main(["search/recipe.yaml", "--output_dir=again", "--save_strategy=no"]) == 0
    again = results(here / "again")
    assert again["headline"] == best["scores"]
    assert again["metrics"]["eval_loss"] == results(here / "search" / best["folder"])["metrics"]["eval_loss"]


def test_the_same_command_repeats_nothing_and_a_larger_number_goes_on(here, launch, capsys):
    before = [trial.params for trial in study().trials]
    assert script.main([*FLAGS, "--tune=3"]) == 0 and not launch.started
    assert "3 of them finished before" in capsys.readouterr().out
    assert script.main([*FLAGS, "--tune=5", "--parallel=2"]) == 0
    assert sorted(launch.started) == ["trial-3", "trial-4"]
    params = [trial.params for trial in study().trials]
    assert params[:3] == before and len({tuple(each.values()) for each in params}) == 5


def test_a_trial_that_was_cut_off_goes_on_in_its_folder(here, launch, capsys):
    launch.codes["trial_3"] = KeyboardInterrupt
    assert script.main([*FLAGS, "--tune=4"]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    (params,) = (trial.params for trial in study().trials if trial.state.name == "RUNNING")
    launch.codes.clear()
    assert script.main([*FLAGS, "--tune=4"]) == 0
    assert launch.started == ["trial-3", "trial-3"] and study().trials[3].params == params
    settings = results("search/trial-3")["settings"]
    assert settings["rdrop_dropout"] == pytest.approx(params["rdrop_dropout"], rel=1e-2)


def test_a_trial_that_ended_unseen_is_not_repeated(here, launch, monkeypatch):
    """Cut off between the end of the run and its result in the study."""

    class Unseen(Pretended):
        def __call__(self, job):
            super().__call__(job)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(several, "launcher", lambda *_: Unseen(launch.finished, {"trial-3": 0.75}))
        assert script.main([*FLAGS, "--tune=4"]) == 130
    assert study().trials[3].state.name == "RUNNING"
    assert script.main([*FLAGS, "--tune=4"]) == 0
    assert not launch.started and study().trials[3].value == 0.75


def test_a_task_with_two_validation_sets(here, launch, capsys):
    for path in Path("search").glob("*/all_results.json"):
        found = json.loads(path.read_text())
        found["rows"] = {"train": 16, "validation_matched": 16, "validation_mismatched": 12}
        path.write_text(json.dumps(found))
    assert script.main([*FLAGS, "--tune=3"]) == 0
    assert "of 16 validation rows" in capsys.readouterr().out


def test_nothing_but_failures(here, launch, capsys):
    launch.codes["trial_0"] = 1
    assert script.main([*FLAGS, "--output_dir=other", "--tune=1"]) == 1
    assert "No trial has a score" in capsys.readouterr().out and not Path("other/recipe.yaml").exists()


def test_failed_trials_are_said_and_survived(here, launch, capsys):
    launch.codes["trial_3"] = 1
    assert script.main([*FLAGS, "--tune=5"]) == 1
    said = capsys.readouterr().out
    assert launch.started == ["trial-3", "trial-4"] and "trial 3: failed with exit code 1" in said
    assert "1 trials failed: trial 3 (search/trial-3/run.log)" in said and "this is why" in said
    assert [trial["trial"] for trial in json.loads(Path("search/trials.json").read_text())["trials"]].count(3) == 0
    launch.codes.clear()
    assert script.main([*FLAGS, "--tune=5"]) == 0 and launch.started[2:] == ["trial-3"]


def test_scores_that_are_not_defined(here, launch, capsys):
    launch.scores["trial-3"] = None
    assert script.main([*FLAGS, "--tune=4"]) == 0
    assert json.loads(Path("search/trials.json").read_text())["trials"][-1]["trial"] == 3
    assert "not defined" in Path("search/trials.md").read_text()
    assert script.main([*FLAGS, "--tune=4"]) == 0 and launch.started == ["trial-3"]


def test_the_summary(here, launch, capsys):
    launch.scores["trial-3"] = 0.99
    assert script.main([*FLAGS, "--tune=4"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    (best,) = (line for line in lines if line.startswith("best"))
    (plain,) = (line for line in lines if line.startswith("alpha 0"))
    settings = results("search/trial-3")["settings"]
    assert "0.9900  trial 3: " in best and f"rdrop_alpha {settings['rdrop_alpha']:g}, rdrop_dropout" in best
    assert f"{results('search/trial-0')['headline']['eval_accuracy']:.4f}  trial 0: rdrop_alpha 0" in plain
    assert "optimistic" in said and len(lines) < 24
    (check,) = (line for line in lines if line.startswith("check"))
    words = shlex.split(check)[3:]
    command = parse_arguments(words)
    assert command.several.compare_baseline and command.several.seeds == [1, 2, 3, 4, 5]
    assert command.training.rdrop_alpha == settings["rdrop_alpha"] and command.training.seed == 42
    assert [path.parent.name for path in Path("search").rglob("*.safetensors")] == ["trial-3"]


def test_where_plain_training_wins_it_is_said(here, launch, capsys):
    shutil.move("search", "before")
    launch.scores |= {"trial-0": 0.9, "trial-2": 0.5}
    assert script.main([*FLAGS, "--tune=3", "--seed=3"]) == 0
    said = capsys.readouterr().out
    assert "No trial with R-Drop was better than plain fine-tuning" in said
    assert yaml.safe_load(Path("search/recipe.yaml").read_text())["rdrop_alpha"] == 0
    (check,) = (line for line in said.splitlines() if line.startswith("check"))
    command = parse_arguments(shlex.split(check)[3:])  # of the best with R-Drop, since a comparison needs an alpha
    assert command.training.rdrop_alpha == results("search/trial-2")["settings"]["rdrop_alpha"] > 0
    assert command.several.seeds == [1, 2, 4, 5, 6]
    # It is there to be read later, and who compares the recipe is led to it
    table, recipe = Path("search/trials.md").read_text(), Path("search/recipe.yaml").read_text()
    assert check.removeprefix("check     ") in table.splitlines() and "trials.md has the command" in recipe
    assert "at the end of its trials.md" in fails(capsys, "search/recipe.yaml", "--compare_baseline")


def test_a_search_by_the_evaluation_loss(here, launch, capsys, monkeypatch):
    """The lowest loss wins, though its accuracy is the worst, and its weights are those that stay."""
    losses, accuracies = {"trial-0": 0.7, "trial-1": 0.3, "trial-2": 0.5}, {"trial-0": 0.9, "trial-1": 0.1}

    class WithLoss(Pretended):
        def __call__(self, job):
            super().__call__(job)
            found = results(job.folder)
            found["metrics"]["eval_loss"] = losses[job.folder.name]
            (job.folder / "all_results.json").write_text(json.dumps(found))
            return 0

    pretended = WithLoss(launch.finished, accuracies)
    launched_by(pretended, monkeypatch)
    words = [*FLAGS, "--output_dir=other", "--tune=3"]
    assert script.main([*words, "--tune_metric=eval_loss"]) == 0
    found = json.loads(Path("other/trials.json").read_text())
    assert [trial["trial"] for trial in found["trials"]] == [1, 2, 0] and found["score"] == "eval_loss"
    assert found["trials"][0]["scores"] == {"eval_loss": 0.3, "eval_accuracy": 0.1}
    by_optuna = optuna.load_study(study_name="rdrop", storage="sqlite:///other/trials.db")
    assert by_optuna.best_trial.number == 1 and by_optuna.direction.name == "MINIMIZE"
    assert [path.parent.name for path in Path("other").rglob("*.safetensors")] == ["trial-1"]
    assert "score     eval_loss of 16 validation rows, the lower the better" in capsys.readouterr().out
    recipe = yaml.safe_load(Path("other/recipe.yaml").read_text())
    assert recipe["rdrop_alpha"] == 4 and recipe["metric_for_best_model"] == "loss"
    assert "tune_metric" not in recipe
    assert "choose another" in fails(capsys, *words)  # another score, in the same folder
    assert "choose another" in fails(capsys, *words, "--tune_metric=accuracy")


def test_a_search_by_the_loss_of_real_runs(here, capsys, monkeypatch):
    launched_by(AsProcess(capsys), monkeypatch)
    words = [*FLAGS, "--output_dir=other", "--tune=2"]
    line = fails(capsys, *words, "--tune_metric=rouge")
    assert "trial 0: --metric_for_best_model rouge: custom has no such score; it has accuracy" in line
    assert not list(Path("other").rglob("all_results.json"))
    epochs = "--eval_strategy=epoch --save_strategy=epoch --load_best_model_at_end=true".split()
    assert script.main([*words, "--tune_metric=eval_loss", *epochs]) == 0
    assert "trial 1: eval_loss " in capsys.readouterr().out
    found = json.loads(Path("other/trials.json").read_text())["trials"]
    losses = [results(Path("other") / trial["folder"])["metrics"]["eval_loss"] for trial in found]
    assert losses == sorted(losses) == [trial["scores"]["eval_loss"] for trial in found]
    settings = results("other/trial-0")["settings"]  # the checkpoints were chosen by it too
    assert (settings["metric_for_best_model"], settings["greater_is_better"]) == ("loss", False)


def test_trials_of_other_settings_are_not_mixed(here, launch, capsys):
    line = fails(capsys, *FLAGS, "--tune=4", "--num_train_epochs=2")
    assert "trial-0: is a finished run with other settings (num_train_epochs was 1.0, now 2.0)" in line
    (here / "search" / "trial-2" / "all_results.json").unlink()
    assert "trial-2/all_results.json: is missing, though search/trials.db counts" in fails(capsys, *FLAGS, "--tune=4")
    assert not launch.started
    assert script.main([*FLAGS, "--tune=2", "--num_train_epochs=2", "--overwrite_output_dir"]) == 0
    assert launch.started == ["trial-0", "trial-1"] and len(study().trials) == 2


def test_what_a_search_refuses(here, launch, capsys, monkeypatch):
    for words, expected in (
        (["--tune=0"], "tune must be at least 1, got 0"),
        (["--tune=-2"], "tune must be at least 1, got -2"),
        (["--tune=3", "--rdrop_alpha=0"], "leave out --rdrop_alpha 0"),
        (["--tune=3", "--push_to_hub"], "choose one afterwards"),
        (["--tune=3", "--compare_baseline"], "two commands"),
        (["--tune=3", "--tune_metric=loss", "--metric_for_best_model=loss"], "leave out --metric_for_best_model"),
        (["--tune=3", "--do_train"], "give both --do_train and --do_eval, or neither"),
        (["--tune=3", "--resume_from_checkpoint=model"], "resumes each of its trials by itself"),
    ):
        assert expected in fails(capsys, *FLAGS, *words)
    launch.codes["trial_3"] = 2
    assert "trial 3: this is why" in fails(capsys, *FLAGS, "--tune=9")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'optuna is needed and not installed: pip install "rdrop-trainer[tune]"' in fails(capsys, *FLAGS, "--tune=3")
    assert launch.started == ["trial-3"]


def test_a_search_needs_validation_rows(here, launch, capsys, monkeypatch):
    words = [word for word in FLAGS if "validation" not in word and "output" not in word]
    launched_by(AsProcess(capsys), monkeypatch)
    line = fails(capsys, *words, "--output_dir=other", "--tune=2")
    assert "trial 0: custom: --do_eval needs validation rows, but the data holds only: train" in line


class AsProcess(InProcess):
    """Runs jobs in this process, with a log of what they say."""

    def __init__(self, capsys):
        super().__init__()
        self.capsys = capsys

    def __call__(self, job):
        code = super().__call__(job)
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "run.log").write_text(self.capsys.readouterr().err)
        return code


@pytest.mark.slow
def test_in_processes_of_their_own(here):
    command = [sys.executable, str(SCRIPT), *FLAGS, "--output_dir=other", "--tune=2", "--parallel=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout and "recipe    other/recipe.yaml" in done.stdout
    for number in (0, 1):
        one, other = results(f"search/trial-{number}"), results(f"other/trial-{number}")
        assert one["metrics"]["eval_loss"] == other["metrics"]["eval_loss"]
