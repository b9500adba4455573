"""The script where things go wrong around it: signals, a full disk, NaN, a cut checkpoint."""

import errno
import json
import os
import resource
import signal
import subprocess

import pytest
import torch
from transformers import BertForSequenceClassification

from rdrop_trainer import InputError, RDropTrainer
from rdrop_trainer.script import prepare
from rdrop_trainer.script.interrupts import is_full
from rdrop_trainer.script.run import StoppedError
from rdrop_trainer.script.several import alone_in
from support.runs import fails, results, script, words, write_csv


def weights(folder):
    return BertForSequenceClassification.from_pretrained(folder).state_dict()


def at_step(monkeypatch, step, act):
    """Do something at the beginning of an optimizer step."""
    training_step = RDropTrainer.training_step

    def spied(self, *args, **kwargs):
        if self.state.global_step == step:
            act()
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(RDropTrainer, "training_step", spied)


# ---- Signals ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number, flags, here, monkeypatch, capsys):
    before = signal.getsignal(number)
    assert script.main([*flags[:-1], "whole"]) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), number))
        assert script.main([*flags, "--save_steps=500"]) == 130
    error = capsys.readouterr().err
    assert "Stopping after this step, with a checkpoint" in error and "Traceback" not in error
    assert "Interrupted. out/checkpoint-5 is saved; the same command goes on from there" in error
    assert [path.name for path in (here / "out").glob("checkpoint-*")] == ["checkpoint-5"]
    assert signal.getsignal(number) == before
    assert script.main([*flags, "--save_steps=500"]) == 0
    a, b = weights("whole"), weights("out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_second_ctrl_c_stops_at_once(flags, here, monkeypatch, capsys):
    at_step(monkeypatch, 3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert script.main(flags) == 130
    assert "Interrupted. out/checkpoint-2 is saved" in capsys.readouterr().err
    assert [path.name for path in (here / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_ctrl_c_after_the_last_step(flags, here, monkeypatch, capsys):
    at_step(monkeypatch, 11, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert script.main(flags) == 130
    assert "out/checkpoint-12 is saved" in capsys.readouterr().err
    assert script.main(flags) == 0
    assert "training  12 steps\n" in capsys.readouterr().out
    assert "train_loss" not in results("out")["metrics"]  # of no step


def test_ctrl_c_before_anything_was_saved(flags, here, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "load_checkpoint", interrupted)
    assert script.main(flags) == 130
    assert "Interrupted. There is no checkpoint in out yet." in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_signal_that_is_ignored_stays_ignored(flags, monkeypatch):
    """A shell starts what runs in its background so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert script.main(flags) == 0
    finally:
        signal.signal(signal.SIGINT, before)


# ---- Disks ----


@pytest.mark.parametrize("part", ["_save", "_save_optimizer_and_scheduler", "_save_rng_state"])  # safetensors; torch
def test_a_full_disk_loses_no_checkpoint(part, flags, here, monkeypatch, capsys):
    save, limits = getattr(RDropTrainer, part), resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, *args, **kwargs):
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return save(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(RDropTrainer, part, full)
        message = fails(capsys, *flags)
    assert "out: no space is left on the disk, or a quota or `ulimit -f` allows no more; make room. " in message
    assert "out/checkpoint-2 is saved; the same command goes on from there" in message
    assert script.main(flags) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_how_libraries_say_that_a_disk_is_full(number):
    said = os.strerror(number)
    assert is_full(OSError(number, said)) and is_full(RuntimeError(f"I/O error: {said} (os error {number})"))
    try:
        raise ValueError("the study could not be saved") from RuntimeError("database or disk is full")
    except ValueError as error:
        assert is_full(error)
    assert not is_full(OSError(errno.EACCES, "Permission denied")) and not is_full(RuntimeError("out of memory"))


def test_a_disk_that_fills_up_between_the_runs_of_a_comparison(here):
    def report():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoppedError, match="runs: no space is left on the disk, .* What is finished is kept, and the"):
        alone_in(here / "runs", report)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("kilobytes", [60, 150, 400, 700])
def test_a_disk_that_is_really_full(kilobytes, flags, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        message = fails(capsys, *flags[:-1], disk / "out", "--num_train_epochs", "4")
        assert "no space is left on the disk" in message
        assert not (disk / "out" / "all_results.json").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        assert script.main([*flags[:-1], str(disk / "out"), "--num_train_epochs", "4"]) == 0
        assert results(disk / "out")["metrics"]["steps"] == 24
    finally:
        subprocess.run(["umount", str(disk)])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(flags, here, capsys):
    (here / "out").mkdir(mode=0o555)
    assert "out: cannot be written to; choose another --output_dir" in fails(capsys, *flags)


def test_a_folder_whose_name_is_too_long(flags, capsys):
    name = "x" * 300
    message = fails(capsys, *flags[:-1], name)
    assert f"--output_dir {name}: cannot be written to (File name too long); choose another" in message


def test_a_data_dir_that_cannot_be_read(model, here, monkeypatch, capsys):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (here / "data").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", denied)
    message = fails(capsys, "--model_name_or_path", model, "--task_name cola --data_dir data")
    assert "data: cannot be read: Permission denied" in message


# ---- Numbers and checkpoints ----


def test_a_loss_that_is_nan_is_one_sentence(flags, capsys):
    assert script.main([*flags, "--learning_rate", "1e30", "--max_grad_norm", "0"]) == 4
    captured = capsys.readouterr().err
    message = captured.strip().splitlines()[-1]
    assert "Traceback" not in captured and message.startswith("run_glue_rdrop.py: error: ")
    assert "The loss is nan at step" in message and "of train_dataset" in message
    assert "The last good checkpoint is out/checkpoint-" in message or "There is no checkpoint before it" in message


@pytest.mark.parametrize("rank, machine_rank", [(0, 0), (8, 0), (1, 1)])
@pytest.mark.parametrize("error", [InputError, StoppedError])
def test_who_says_what_is_wrong(error, rank, machine_rank, monkeypatch, capsys):
    """Of wrong input the first process of a machine, and another where that one goes on; of what may be one process's
    alone, that one.
    """
    waited = []
    monkeypatch.setattr("rdrop_trainer.script.main.time.sleep", waited.append)

    def wrong(argv):
        raise error("something")

    monkeypatch.setattr(script, "read_flags", wrong)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(machine_rank))
    assert script.main([]) == 2
    assert len(waited) == (error is InputError and machine_rank == 1)
    assert capsys.readouterr().err == "run_glue_rdrop.py: error: something\n"


def test_another_number_of_processes_does_not_go_on(flags, here, monkeypatch, capsys):
    """They would train on other rows."""
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert script.main(flags) == 130
    settings = json.loads((here / "out" / "run_settings.json").read_text())
    assert settings["processes"] == 1
    (here / "out" / "run_settings.json").write_text(json.dumps(settings | {"processes": 2}))
    capsys.readouterr()
    assert "(processes was 2, now 1)" in fails(capsys, *flags)


@pytest.mark.parametrize("stops", ["", "--early_stopping_patience 9"])
def test_a_run_does_not_go_on_with_other_rows(stops, flags, here, monkeypatch, capsys):
    """It would be of two data sets, and its best checkpoint chosen by scores of different rows."""
    write_csv(here / "dev.csv", rows=8)
    flags = words(*flags, "--validation_file dev.csv", *[stops] * bool(stops))
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert script.main(flags) == 130
    train = (here / "train.csv").read_bytes()
    (here / "train.csv").write_bytes(train.replace(b",negative", b",positive", 1))
    assert "other settings (the train_file was edited since" in fails(capsys, *flags)
    (here / "train.csv").write_bytes(train)
    write_csv(here / "dev.csv", rows=6)
    if stops:
        assert "other settings (the validation_file was edited since" in fails(capsys, *flags)
        write_csv(here / "dev.csv", rows=8)
        assert "max_eval_samples was None, now 4" in fails(capsys, *flags, "--max_eval_samples 4")
    assert script.main(flags) == 0 and results("out")["rows"]["validation"] == (8 if stops else 6)


def test_a_checkpoint_that_was_cut_is_passed_over(flags, here, monkeypatch, capsys, caplog):
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert script.main(flags) == 130
    optimizer = here / "out" / "checkpoint-10" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    assert script.main(flags) == 0
    assert (
        "out/checkpoint-10 is not whole: its optimizer.pt is cut short; going on from out/checkpoint-8" in caplog.text
    )
    assert script.main([*flags[:-1], "whole"]) == 0
    a, b = weights("whole"), weights("out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_training_ends_in_time_and_is_scored(flags, here, monkeypatch, capsys, caplog):
    """Seconds of an interrupted run count: it had 3 s, and ends with the first step that makes 5."""
    now = iter(range(10**6))
    monkeypatch.setattr("rdrop_trainer.script.training_time.time.perf_counter", lambda: float(next(now)))
    flags = [*flags, "--max_seconds", "5", "--validation_file", "train.csv", "--do_train", "--do_eval"]
    assert script.main(flags) == 0
    found = json.loads((here / "out" / "all_results.json").read_text())
    assert 1 <= found["metrics"]["steps"] < 12 and "eval_accuracy" in found["metrics"]
    assert f"--max_seconds 5: ended at step {found['metrics']['steps']} of 12" in caplog.text
    assert (here / "out" / "model.safetensors").exists()
