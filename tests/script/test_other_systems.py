"""What differs on Windows and macOS, as far as it can be had here: code pages, shells, open files, spawned workers."""

import io
import os
import runpy
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.hub import __main__ as hub
from rdrop_trainer.report import __main__ as report
from rdrop_trainer.run_folder import write_text
from rdrop_trainer.script import main as script
from rdrop_trainer.script import release, trials
from rdrop_trainer.script.jobs import Local
from rdrop_trainer.script.output_dir import check_writable
from rdrop_trainer.script.processors import PROCESSORS
from rdrop_trainer.script.summary import command_without_dry_run
from support import tiny

SAID = "电影: α 4.00 ± 0.1"


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")


@pytest.mark.parametrize(
    "program, argv, what",
    [
        (script, [], "rdrop_trainer.script.main._dispatch"),
        (release, ["a.yaml", "--namespace", "ada"], "rdrop_trainer.script.release.release"),
        (report, ["runs"], "rdrop_trainer.report.writing.report_folder"),
        (hub, ["download", "ada/m"], "rdrop_trainer.hub.download.download_checkpoint"),
    ],
)
@pytest.mark.parametrize(
    "encoding, shown",
    [("cp1252", r"\u7535\u5f71: \u03b1 4.00 ± 0.1"), ("gbk", SAID), ("ascii", r"\u7535\u5f71: \u03b1 4.00 \xb1 0.1")],
)
def test_no_program_ends_over_what_it_prints(program, argv, what, encoding, shown, monkeypatch):
    monkeypatch.setattr(what, lambda *_, **__: print(SAID) or SimpleNamespace(summary=lambda: ""))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding, "strict"))
    program.main(argv)
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().decode(encoding).splitlines()[0] == shown


def test_commands_are_in_the_quotes_of_the_shell(monkeypatch):
    words = ["--output_dir", "C:\\my runs\\a", "--dry_run"]
    folder, found = Path("my runs"), [SimpleNamespace(score=1.0, number=2, values={})]
    command = SimpleNamespace(training=SimpleNamespace(seed=1))
    assert command_without_dry_run(words, 1).endswith(" --output_dir 'C:\\my runs\\a'")
    assert "py 'my runs/recipe.yaml' '--output_dir=my runs/" in trials._check_command(folder, found, command)
    monkeypatch.setattr(sys, "platform", "win32")
    assert command_without_dry_run(words, 1).endswith(' --output_dir "C:\\my runs\\a"')
    assert 'py "my runs/recipe.yaml" "--output_dir=my runs' in trials._check_command(folder, found, command)


def test_a_file_that_another_process_has_open_for_a_moment(windows, tmp_path, monkeypatch):
    replace, tries = os.replace, []

    def refused(*paths):
        tries.append(paths)
        if len(tries) % 3:
            raise PermissionError(13, "Access is denied")
        replace(*paths)

    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    write_text(tmp_path / "a", "before\n")
    write_text(tmp_path / "a", "after\n")
    assert (tmp_path / "a").read_bytes() == b"after\n" and len(tries) == 6
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Access is denied")))
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a", "never")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_has_a_number_in_any_language(windows):
    is_full = runpy.run_module("rdrop_trainer.script.interrupts")["is_full"]
    assert is_full(RuntimeError("I/O error: 磁盘空间不足。 (os error 112)")) and is_full(OSError(28, "No space left"))
    assert not is_full(RuntimeError("Unknown error"))  # what Windows calls the number of a quota


def test_a_search_is_begun_anew_though_its_store_cannot_be_deleted(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    from rdrop_trainer.script.tuning import _forget
    from rdrop_trainer.search import open_study, study_in

    open_study("maximize", **study_in(tmp_path))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "in use")))
    for _ in range(2):
        _forget(tmp_path)
    assert open_study("minimize", **study_in(tmp_path)).trials == []


def test_runs_that_ctrl_c_has_reached_may_save(windows, tmp_path):
    waits, saves = "print(flush=True), time.sleep(60)", "time.sleep(0.3), print('saved')"
    code = f"import time\ntry: {waits}\nexcept KeyboardInterrupt: {saves}"
    launch = Local(1)
    process = launch._start(["-c", code], launch._places.get(), stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(2)
    launch.stop()
    assert process.communicate()[0] == "saved\n"


@pytest.mark.parametrize("head", [*PROCESSORS, "unlabeled"])
def test_workers_that_are_spawned_get_what_makes_batches(head, tmp_path):
    """On Windows and macOS a process that loads data is started anew, and is sent them."""
    options = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4}
    if head == "unlabeled":
        options["unlabeled_dataset"] = [{"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1]}] * 6
    else:
        settings = SimpleNamespace(pad_to_max_length=False, mlm_probability=0.15)
        task = SimpleNamespace(suite="custom")
        options["data_collator"] = PROCESSORS[head](task, tiny.tokenizer(), None, settings, 16).collator()
    loader = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, **options).get_train_dataloader()
    parts = loader.dataset, loader.collate_fn, loader.worker_init_fn
    dataset, collate, _ = ForkingPickler.loads(ForkingPickler.dumps(parts))
    assert len(dataset) == len(loader.dataset) and type(collate) is type(loader.collate_fn)


def test_a_drive_that_is_not_there(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(InputError, match="--output_dir runs/a: there is no /; choose another"):
        check_writable(Path("runs/a"))
