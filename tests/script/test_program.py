"""The three ways to start the script, and what its messages call it."""

import runpy
import sys

import pytest

from rdrop_trainer.script import program
from rdrop_trainer.script.main import main
from support import SCRIPT


@pytest.mark.parametrize(
    "argv0, name, in_short, words, several",
    [
        ("run_glue_rdrop.py", "run_glue_rdrop.py", "python run_glue_rdrop.py", "python run_glue_rdrop.py",
         "torchrun --nproc_per_node 2 run_glue_rdrop.py"),
        ("/bin/rdrop-glue", "rdrop-glue", "rdrop-glue", "rdrop-glue",
         "torchrun --nproc_per_node 2 -m rdrop_trainer.script"),
        ("/x/rdrop_trainer/script/__main__.py", "run_glue_rdrop.py", "python run_glue_rdrop.py",
         "python -m rdrop_trainer.script", "torchrun --nproc_per_node 2 -m rdrop_trainer.script"),
    ],
)  # fmt: skip
def test_it_is_called_as_it_was_started(argv0, name, in_short, words, several, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [argv0])
    assert (program.name(), program.in_short()) == (name, in_short)
    assert (" ".join(program.words()), " ".join(program.words(2))) == (words, several)
    assert main(["--no_such_flag"]) == 2
    assert capsys.readouterr().err.startswith(f"{name}: error: unknown flag --no_such_flag")
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {name} [RECIPE") and f"\n  {in_short} --demo\n" in said


@pytest.mark.parametrize("run, what", [(runpy.run_path, str(SCRIPT)), (runpy.run_module, "rdrop_trainer.script")])
def test_the_file_and_the_module_are_the_same_program(run, what, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--seed=x"])
    with pytest.raises(SystemExit) as stop:
        run(what, run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("run_glue_rdrop.py: error: argument --seed")


def test_the_demo_starts_its_own_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("rdrop_trainer.script.demo.run_demo", lambda *args: 0)
    assert main(["--demo", "--output_dir", str(tmp_path / "demo")]) == 2
    assert "run it with python, not torchrun" in capsys.readouterr().err and not any(tmp_path.iterdir())
