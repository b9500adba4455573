"""The output folder: what is not overwritten, how a killed run goes on, and two runs in one folder."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from filelock import FileLock
from transformers import BertForSequenceClassification

from rdrop_trainer import RDropTrainer
from rdrop_trainer.script import prepare
from support import SCRIPT
from support.runs import FAST, fails, results, run, script, words, write_csv


def test_a_finished_run_is_not_overwritten(model, here, capsys):
    write_csv(here / "train.csv")
    flags = "--train_file train.csv --output_dir out"
    assert run(model, flags) == 0
    before = (here / "out" / "all_results.json").read_text()

    def refused(*more, model=model):
        message = fails(capsys, "--model_name_or_path", model, *FAST, flags, *more)
        assert (here / "out" / "all_results.json").read_text() == before
        return message

    message = refused()
    assert "out: holds a finished run" in message and "--overwrite_output_dir" in message
    assert "out: is no whole checkpoint" in refused("--resume_from_checkpoint out")
    # A run that cannot start deletes nothing, nor does one that reads what it would delete
    again = "--overwrite_output_dir"
    refused(again, model="nowhere")
    assert "lies in out" in refused(again, model="out")
    assert "is the folder of the model that is to be trained" in refused("--output_dir", model)
    assert "nowhere: is no whole checkpoint" in refused(again, "--resume_from_checkpoint nowhere")
    refused(again, "--lr_scheduler_kwargs", '{"bogus": 1}')
    refused(again, "--dataloader_drop_last --per_device_train_batch_size 99")
    (here / "out" / "checkpoint-3").mkdir()
    assert run(model, flags, again) == 0
    assert not (here / "out" / "checkpoint-3").exists()


def weights(folder):
    return BertForSequenceClassification.from_pretrained(folder).state_dict()


KILLER = f"""
import os, runpy, signal, sys
from transformers import Trainer
save = Trainer._save_checkpoint

def save_and_die(self, *args, **kwargs):
    save(self, *args, **kwargs)
    if self.state.global_step == 10:
        os.kill(os.getpid(), signal.SIGKILL)

Trainer._save_checkpoint = save_and_die
sys.argv[0] = "run_glue_rdrop.py"
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def test_killed_and_resumed(flags, here, capsys):
    """SIGKILL after a checkpoint; the same command goes on and ends with the weights of an uninterrupted run."""
    write_csv(here / "train.csv", rows=48)
    flags = words(*flags[:-2], "--save_steps=5 --rdrop_warmup_steps=0.5")
    done = subprocess.run([sys.executable, "-c", KILLER, *flags, "--output_dir", "cut"], capture_output=True)
    assert done.returncode == -signal.SIGKILL and (here / "cut" / ".lock").exists()
    assert script.main([*flags, "--output_dir", "whole"]) == 0

    def refused(*more):
        return fails(capsys, *flags, *more)

    other = refused("--output_dir cut --learning_rate 1e-3")
    assert "unfinished run with other settings (learning_rate was 5e-05, now 0.001)" in other
    evaluate = "--output_dir cut --validation_file train.csv --do_eval --model_name_or_path whole"
    there = "--resume_from_checkpoint cut/checkpoint-5"
    assert "this run does not train" in refused(evaluate)
    assert "this run does not train" in refused(evaluate, there)
    (here / "other").mkdir()
    shutil.copytree(here / "cut" / "checkpoint-5", here / "other" / "checkpoint-5")
    assert "--resume_from_checkpoint is cut/checkpoint-5" in refused("--output_dir other", there)
    assert "--resume_from_checkpoint is none" in refused("--output_dir cut --resume_from_checkpoint none")
    assert "nowhere: is no whole checkpoint" in refused("--output_dir x --resume_from_checkpoint nowhere")
    settings = here / "cut" / "run_settings.json"
    settings.rename(here / "kept.json")
    assert "no readable run_settings.json" in refused("--output_dir cut")
    (here / "kept.json").rename(settings)
    (here / "cut" / "checkpoint-15").mkdir()  # cut short while it was written: no trainer_state.json
    assert script.main([*flags, "--output_dir", "cut"]) == 0
    whole, cut = weights("whole"), weights("cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_failure_later_keeps_the_checkpoints(flags, here, monkeypatch, caplog):
    step = RDropTrainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise RuntimeError("out of memory")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RDropTrainer, "training_step", failing)
    with pytest.raises(RuntimeError):
        script.main(flags)
    assert (here / "out" / "checkpoint-2" / "model.safetensors").exists()
    assert "The run stopped. out/checkpoint-2 is saved; the same command goes on from there" in caplog.text


def test_weights_alone_are_gone_on_from_when_asked(flags, here, monkeypatch, capsys, caplog):
    """Without the optimizer a run does not end as it would have, so by itself it starts over, and says so."""
    flags, save = [*flags, "--save_only_model"], RDropTrainer._save_checkpoint

    def interrupted(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RDropTrainer, "_save_checkpoint", interrupted)
        assert script.main(flags) == 130
    alone = "out/checkpoint-4 has the weights alone (save_only_model); to go on from them, with a fresh optimizer, add"
    assert f"Interrupted. The same command starts over. {alone} --resume_from" in capsys.readouterr().err
    for more in ("--learning_rate 1e-3", "--save_only_model False"):
        assert "unfinished run with other settings" in fails(capsys, *flags, more)
    shutil.copytree(here / "out", here / "copy")
    caplog.clear()
    assert script.main(flags) == 0
    assert [line for line in caplog.messages if "weights alone" in line] == [f"out: the training starts over. {alone} "
        "--resume_from_checkpoint out/checkpoint-4."]  # fmt: skip
    assert script.main(words(*flags, "--output_dir copy --resume_from_checkpoint copy/checkpoint-4")) == 0
    assert "copy/checkpoint-4: it has no optimizer.pt" in caplog.text
    write_csv(here / "three.csv", labels=("no", "yes", "perhaps"))
    other = "--train_file three.csv --output_dir other --resume_from_checkpoint copy/checkpoint-4"
    assert "it holds a model of 2 labels, and this one has 3 (" in fails(capsys, *flags, other)
    again, whole = (json.loads((here / name / "trainer_state.json").read_text()) for name in ("copy", "out"))
    assert again["global_step"] == whole["global_step"] == 12
    assert script.main([*flags, "--output_dir", "never"]) == 0
    whole, never = weights("out"), weights("never")
    assert all(torch.equal(whole[name], never[name]) for name in whole)


# ---- Two runs in one folder ----


def test_the_second_run_in_a_folder_is_refused(flags, here, capsys):
    (here / "out").mkdir()
    with FileLock(here / "out" / ".lock"):
        message = fails(capsys, *flags)
        assert "out: another process is at work there; wait for its end" in message
        assert [path.name for path in (here / "out").iterdir()] == [".lock"]
    assert script.main(flags) == 0


def test_a_run_that_began_and_ended_meanwhile_is_not_overwritten(flags, here, monkeypatch, capsys):
    """Between the first check of the folder and its lock lies the loading of data and model."""
    load = prepare.load_checkpoint

    def slow(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "load_checkpoint", load)
            assert script.main(flags) == 0
        return load(*args, **kwargs)

    monkeypatch.setattr(prepare, "load_checkpoint", slow)
    assert "out: holds a finished run" in fails(capsys, *flags)
    assert results("out")["metrics"]["steps"] == 12


@pytest.mark.slow
def test_two_runs_share_a_cache_and_an_unset_home(flags, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    env |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    runs = [
        subprocess.Popen([sys.executable, str(SCRIPT), *flags[:-1], f"out{i}"], env=env, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert results("out0")["metrics"]["train_loss"] == results("out1")["metrics"]["train_loss"]


# ---- One folder, one purpose ----


@pytest.mark.parametrize(
    "there, flags, message",
    [
        ("arms.json", "", "holds a comparison (arms.json), and a run needs a folder of its own"),
        ("arms.json", "--overwrite_output_dir", "holds a comparison (arms.json), and a run needs a folder of its own"),
        ("arms.json", "--tune=2", "holds a comparison (arms.json), and a search needs"),
        ("trials.db", "", "holds a search (trials.db), and a run needs"),
        ("trials.db", "--compare_baseline", "holds a search (trials.db), and a comparison needs"),
        ("all_results.json", "--compare_baseline", "holds a run (all_results.json), and a comparison needs"),
        ("run_settings.json", "--compare_baseline --overwrite_output_dir", "holds a run (run_settings.json), and a"),
        ("checkpoint-3", "--tune=2", "holds a run (checkpoint-*), and a search needs"),
    ],
)
@pytest.mark.parametrize("dry", ["", "--dry_run"])
def test_a_folder_of_another_purpose_is_refused(there, flags, message, dry, model, here, capsys):
    write_csv(here / "train.csv")
    (here / "out").mkdir()
    (here / "out" / there).touch()
    said = fails(capsys, "--model_name_or_path", model, *FAST, f"--train_file=train.csv --output_dir=out {flags} {dry}")
    assert f"--output_dir out: {message}" in said
    assert [path.name for path in (here / "out").iterdir()] == [there]


@pytest.mark.parametrize("flags", ["", "--compare_baseline", "--tune=2", "--demo"])
@pytest.mark.parametrize(
    "folder, message",
    [
        ("train.csv", "is a file; expected a folder"),
        ("train.csv/out", "train.csv, which is a file; expected a folder"),
        ("x" * 300, "cannot be written to (File name too long); choose another"),
        ("fine/" + "x" * 300, "cannot be written to (File name too long); choose another"),
        ("/proc/out", "cannot be written to (No such file or directory); choose another"),
    ],
)
def test_a_folder_that_cannot_be_made_is_named_with_its_flag(folder, message, flags, model, here, capsys):
    write_csv(here / "train.csv")
    others = [] if flags == "--demo" else ["--model_name_or_path", model, *FAST, "--train_file=train.csv"]
    said = fails(capsys, *others, f"--output_dir={folder} {flags}")
    assert f"--output_dir {folder}: " in said and message in said and "Errno" not in said
    assert [path.name for path in here.iterdir()] == ["train.csv"]


def test_other_files_in_the_folder_are_named(model, here, caplog):
    write_csv(here / "train.csv")
    for name in ("d.txt", "a.txt", "b.txt", "c.txt", ".hidden", "train.csv", "run.log"):
        (here / "out" / name).parent.mkdir(exist_ok=True)
        (here / "out" / name).touch()
    write_csv(here / "out" / "train.csv")
    assert run(model, "--train_file=out/train.csv --output_dir=out") == 0
    (line,) = (line for line in caplog.messages if "other files" in line)
    assert line.startswith("out: holds other files (a.txt, b.txt, c.txt and 1 more); what is written goes beside them")
    caplog.clear()
    assert run(model, "--train_file=out/train.csv --output_dir=out --overwrite_output_dir") == 0
    assert "other files" not in caplog.text
