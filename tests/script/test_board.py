"""How far runs are: what a run writes of itself, the time left for all, the table and the lines."""

import io
import json
import sys
import time
from pathlib import Path

import pytest

from rdrop_trainer import RDropTrainer
from rdrop_trainer.script import board, progress
from rdrop_trainer.script.board import Board, Lines, Table, display
from rdrop_trainer.script.estimate import duration, size
from rdrop_trainer.script.jobs import Job
from rdrop_trainer.script.several import run_all
from support.runs import launched_by, results, run, script, write_csv

# ---- What a run writes ----


def seen_while(monkeypatch, moment):
    """What progress.json of `out` holds whenever a method of the trainer is called."""
    seen, method = [], getattr(RDropTrainer, moment)

    def watching(self, *args, **kwargs):
        seen.append(json.loads(Path("out/progress.json").read_text()))
        return method(self, *args, **kwargs)

    monkeypatch.setattr(RDropTrainer, moment, watching)
    return seen


def test_a_run_says_how_far_it_is(flags, here, monkeypatch):
    write_csv(here / "dev.csv", rows=8)
    monkeypatch.setattr(progress, "_AT_MOST_EVERY", 0.0)
    steps, evaluations = seen_while(monkeypatch, "training_step"), seen_while(monkeypatch, "evaluate")
    by_loss = ["--eval_strategy=epoch", "--metric_for_best_model=eval_loss"]  # as a search by the loss has
    assert script.main([*flags, "--validation_file=dev.csv", *by_loss]) == 0
    assert [seen["step"] for seen in steps] == list(range(12)) and {seen["phase"] for seen in steps} == {"train"}
    assert {seen["max_steps"] for seen in steps[1:]} == {12} and steps[-1]["seconds"] > steps[1]["seconds"] > 0
    assert not steps[5]["score"] and list(steps[6]["score"]) == ["eval_loss", "eval_accuracy"]  # six steps an epoch
    assert 0 <= steps[6]["score"]["eval_accuracy"] <= 1
    assert [seen["phase"] for seen in evaluations] == ["train", "train", "eval"]
    assert not Path("out/progress.json").exists() and "progress.json" not in results("out")


def test_at_most_once_a_second(flags, here, monkeypatch):
    written = []
    monkeypatch.setattr(progress, "write_json", lambda path, content: written.append(content))
    assert script.main(flags) == 0
    assert len(written) <= 3  # the begin of the training, and once a second of the second that it takes


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_ends_early_leaves_no_progress(error, flags, here, monkeypatch):
    def fail(*args, **kwargs):
        assert Path("out/progress.json").exists()
        raise error("no more")

    monkeypatch.setattr(RDropTrainer, "training_step", fail)
    try:
        script.main(flags)
    except RuntimeError:
        pass
    assert not Path("out/progress.json").exists()


def test_a_progress_that_cannot_be_written_stops_no_run(flags, here, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "write_json", full)
    assert script.main(flags) == 0


def test_a_damaged_progress_counts_as_none(here):
    for text in ("", "{", "[1]", '{"other": 1}'):
        Path("progress.json").write_text(text)
        assert progress.read_progress(here) is None


# ---- The time left ----


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    return now


def job(folder, arm, seed=1):
    return Job(f"{arm}, seed {seed}", {}, folder / f"{arm}-seed{seed}", arm=arm)


def write_progress(job, **values):
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "progress.json").write_text(json.dumps({"phase": "train", **values}))


def test_runs_take_as_long_as_the_finished_ones_of_their_arm(here, clock):
    runs = Board(["plain", "rdrop", "plain", "rdrop"], at_once=1)
    assert runs.left() == ""
    plain, rdrop = job(here, "plain"), job(here, "rdrop")
    runs.begin(plain)
    assert runs.left() == ""
    runs.end(plain, 100.0)
    assert runs.left() == "about 5.0 min left"  # of the other arm nothing is known
    runs.begin(rdrop)
    runs.end(rdrop, 250.0)
    assert runs.left() == "about 5.8 min left"  # 100 + 250
    runs.begin(job(here, "plain", 2))
    clock[0] += 40
    assert runs.left() == "about 5.2 min left"  # 60 + 250
    assert runs.title() == "2 ended, 1 running, 1 to come; about 5.2 min left"


def test_before_a_run_has_ended_the_rate_of_its_steps_counts(here, clock):
    runs, plain = Board(["plain", "plain"], at_once=2), job(here, "plain")
    runs.begin(plain)
    clock[0] += 30
    write_progress(plain, step=50, max_steps=150, first_step=30, seconds=20.0)
    # A second a step: 100 s are left of this one, and 130 s of the other, which runs at the same time
    assert runs.left() == "at least 2.2 min left"
    write_progress(plain, phase="eval", step=150, max_steps=150, seconds=120.0)
    assert runs.left() == "at least 30 s left"  # of the other; nothing is known of the evaluation of this one
    (plain.folder / "progress.json").unlink()
    assert runs.rows()[0][1:3] == ("ends", "150 of 150")


def test_the_longest_run_is_waited_for(here, clock):
    runs = Board(["a", "a", "b"], at_once=2)
    runs.learn("a", 70.0)
    runs.learn("b", 90.0)
    assert runs.left() == "about 115 s left"  # (70 + 70 + 90) / 2
    for seed in (1, 2):
        runs.begin(job(here, "a", seed))
        runs.end(job(here, "a", seed), 70.0)
    assert runs.left() == "about 90 s left"
    runs.begin(job(here, "b"))
    assert runs.left() == "about 90 s left"


def test_a_failed_run_says_nothing_of_the_others(here, clock):
    runs, first = Board(["a", "a"], at_once=1), job(here, "a")
    runs.begin(first)
    runs.end(first, None)
    assert runs.left() == "" and runs.title() == "1 ended, 0 running, 1 to come"


def test_what_a_killed_run_left_is_not_taken_for_the_next(here, clock):
    runs, first = Board(["a"], at_once=1), job(here, "a")
    write_progress(first, step=7, max_steps=9)
    runs.begin(first)
    assert runs.rows()[0][:4] == ("a, seed 1", "load", "", "")


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (119, "119 s"), (150, "2.5 min"), (3000, "50 min"), (9000, "2.5 h"), (1e6, "12 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("number, text", [(12, "12 bytes"), (4321, "4.3 kB"), (91e6, "91 MB"), (1.3e9, "1.3 GB")])
def test_sizes(number, text):
    assert size(number) == text


# ---- What is shown ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rows_of_the_table(here, clock):
    runs, first = Board(["rdrop"], at_once=1), job(here, "rdrop", seed=3)
    runs.begin(first)
    clock[0] += 12
    write_progress(first, step=1200, max_steps=3000, seconds=9.0, score={"eval_f1": 0.81234})
    log = str(first.folder / "run.log")
    assert runs.rows() == [("rdrop, seed 3", "train", "1,200 of 3,000", "eval_f1 0.8123", "12 s", log)]


def ended(jobs, monkeypatch):
    """Run jobs that are over at once; the board, and what was printed of it."""

    def launch(job):
        write_progress(job, step=1, max_steps=2)
        time.sleep(0.05)
        (job.folder / "run.log").write_text("why it failed\n")
        return 1

    launch.stop = lambda: None
    launched_by(launch, monkeypatch)
    return run_all(jobs, "local", 1, Board([job.arm for job in jobs], 1))


def test_a_terminal_has_a_table(here, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    ended([job(here, "[plain]")], monkeypatch)
    said = sys.stdout.getvalue()
    assert "[plain], seed 1: failed with exit code 1" in said and "score so far" in said
    assert "0 ended, 1 running, 0 to come" in said and "begins" not in said


def test_elsewhere_there_are_lines(here, monkeypatch, capsys):
    ended([job(here, "plain"), job(here, "rdrop")], monkeypatch)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"plain, seed 1: begins, log {here / 'plain-seed1' / 'run.log'}"
    assert second.startswith("plain, seed 1: failed with exit code 1") and second.endswith("why it failed")


def test_lines_without_rich_and_on_a_cluster(monkeypatch):
    runs = Board([], 1)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(display(runs, reports=False), Lines)
    pytest.importorskip("rich")
    assert isinstance(display(runs, reports=True), Table)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(runs, reports=True), Lines)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.live", None)
    assert isinstance(display(runs, reports=True), Lines)


def test_a_single_run_prints_nothing_of_it(model, here, capsys):
    write_csv(here / "train.csv")
    assert run(model, "--train_file train.csv --output_dir out") == 0
    assert "progress" not in capsys.readouterr().out
