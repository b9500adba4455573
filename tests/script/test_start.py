"""What is refused at once, and what starting imports."""

import shutil
import subprocess
import sys

import pytest

from rdrop_trainer.script import adapter
from support import SCRIPT
from support.runs import fails, write_csv

# What a training needs, and reading a command line does not: together they take longer than all the rest
HEAVY = "datasets evaluate sklearn scipy peft pandas pyarrow optuna matplotlib transformers.modeling_utils".split()
LISTED = "; import sys; print([name for name in {} if sys.modules.get(name)])"


@pytest.mark.parametrize(
    "flags", ["--help", "--rdrop_alhpa 1", "--model_name_or_path m --train_file none.csv --dry_run"]
)
def test_reading_the_command_line_imports_nothing_of_a_training(flags):
    code = (
        "import sys\nsys.modules['peft'] = None  # transformers imports it wherever it is installed\n"
        "from rdrop_trainer.script.main import main\n"
        f"try:\n    main({flags.split()})\nexcept SystemExit:\n    pass" + LISTED.format(HEAVY).replace("; ", "\n")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("module", ["hub", "report"])
def test_the_other_commands_need_no_torch_for_their_help(module):
    code = (
        "import runpy, sys\nsys.argv[1:] = ['--help']\n"
        f"try:\n    runpy.run_module('rdrop_trainer.{module}', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        + LISTED.format(["torch", "transformers", *HEAVY])[2:]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--train_file none.csv", "--train_file none.csv: no such file"),
        ("--train_file train.csv --unlabeled_file none.txt", "--unlabeled_file none.txt: no such file"),
        ("--train_file train.csv --seeds 1 2", "--seeds has no effect without --compare_baseline"),
        ("--train_file train.csv --tune 3 --seeds 1 2", "--seeds has no effect without --compare_baseline"),
        ("--train_file train.csv --tune_metric loss", "--tune_metric has no effect without --tune"),
        ("--train_file train.csv --parallel 2", "--parallel has no effect without --compare_baseline or --tune"),
        ("--train_file train.csv --rdrop_unlabeled_ratio 2", "has no effect without --unlabeled_file"),
        ("--train_file train.csv --doc_stride 64", "--doc_stride: a classification does not use it"),
        ("--task_name mrpc --num_beams 2", "--num_beams: mrpc does not use it"),
        ("--train_file train.csv --load_best_model_at_end", "add --eval_strategy epoch and --save_strategy epoch"),
        ("--train_file train.csv --tune 2 --compare_baseline", "two commands"),
        ("--train_file train.csv --lora_r 8", "--lora_r has no effect without --use_peft: add that, or leave this out"),
        ("--train_file train.csv --load_in_4bit", "--load_in_4bit has no effect without --use_peft"),
        ("--train_file train.csv --use_peft --lora_r 0", "lora_r must be at least 1, got 0"),
        ("--train_file train.csv --use_peft --lora_dropout 1", "lora_dropout must be in [0, 1), got 1.0"),
        ("--task_name mrpc --task_type tokens", "--task_type tokens: is for your own files; mrpc is of its own type"),
        ("--train_file train.csv --source_column a", "--source_column: a classification does not use it"),
        ("--train_file train.csv --task_type tokens --num_beams 2", "--num_beams: --task_type tokens does not use it"),
        (
            "--train_file train.csv --task_type seq2seq --label_column a",
            "of pairs are --source_column and --target_column",
        ),
        (
            "--train_file train.csv --task_type lm --pad_to_max_length",
            "--pad_to_max_length: --task_type lm does not use",
        ),
        ("--train_file train.csv --task_type qa --id_column a", "--id_column: --task_type qa does not use it"),
        ("--train_file train.csv --task_type lm --mlm_probability 1", "must be above 0 and below 1, got 1.0"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_loaded(flags, message, here, capsys):
    write_csv(here / "train.csv")
    assert message in fails(capsys, "--model_name_or_path nowhere", *flags.split())


@pytest.mark.parametrize(
    "installed, flags, message",
    [
        ({}, "", '--use_peft: peft is needed and not installed: pip install "rdrop-trainer[peft]"'),
        ({"peft"}, "--load_in_4bit", "bitsandbytes is needed and not installed: pip install bitsandbytes; without it"),
    ],
)
def test_what_this_machine_cannot_adapt(installed, flags, message, here, capsys, monkeypatch):
    """Said before a model of many gigabytes is loaded."""
    monkeypatch.setattr(adapter, "find_spec", lambda name: name if name in installed else None)
    write_csv(here / "train.csv")
    said = fails(capsys, "--model_name_or_path nowhere --train_file train.csv --use_peft", *flags.split())
    assert message in said


def test_the_demo_takes_no_other_flag(capsys):
    said = fails(capsys, "--demo", "--seed 3")
    assert "--demo takes no other flags than --output_dir and --use_cpu, got --seed" in said


def test_the_program_starts_by_its_file(tmp_path):
    """Also where it lies elsewhere than the package, as in a job of the Hub."""
    copied = shutil.copy(SCRIPT, tmp_path)
    done = subprocess.run([sys.executable, copied, "--seedd", "1"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "did you mean --seed" in done.stderr
