"""Flags, recipes and models that do not go together: one sentence and exit code 2, before anything is trained."""

import re
import shutil

import pytest

from support.runs import fails, write_csv

BEST = "--load_best_model_at_end --eval_strategy epoch --save_strategy epoch --metric_for_best_model"


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "which model"),
        ("MODEL", "which data"),
        ("MODEL --task_name mprc --data_dir .", "'mprc': did you mean mrpc"),
        ("MODEL --data_dir .", "needs --task_name"),
        ("MODEL --task_name cola --data_dir nowhere", "nowhere"),
        (
            "--model_name_or_path nowhere --train_file train.csv",
            "nowhere: no folder here .* from the Hub it cannot",
        ),
        ("MODEL --train_file train.csv --do_predict", "needs test rows"),
        ("MODEL --train_file train.csv --do_eval", "--do_eval needs validation rows"),
        ("MODEL --validation_file train.csv --do_train", "--do_train needs train rows"),
        ("MODEL --train_file train.csv --label_column lable", "lable"),
        ("MODEL --task_name cluener", "cluener.*data_dir"),
        ("MODEL --train_file train.csv --unlabeled_file train.csv", "none are left"),
        ("MODEL --train_file float.csv --unlabeled_file more.txt", "custom is a regression"),
        ("MODEL --train_file train.csv --dropout 0", "no active dropout.*--dropout 0.1"),
        ("MODEL --task_name sst2 --validation_file train.csv", "has no trained head"),
        ("MODEL --train_file train.csv --eval_strategy epoch", "--eval_strategy needs validation rows"),
        ("MODEL --train_file train.csv --report_to foo", "foo"),
        (
            f"MODEL --train_file train.csv --validation_file train.csv {BEST} bleu",
            "custom has no such score; it has acc",
        ),
        ("--model_name_or_path /nowhere/m --train_file train.csv", "/nowhere/m: no such folder"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size must be a number of at least 1, got 0"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps must be"),
        ("--num_train_epochs 0", "num_train_epochs must be a number above 0, got 0.0"),
        ("--num_train_epochs inf", "num_train_epochs must be a number above 0, got inf"),
        ("--max_steps 0", "max_steps must be at least 1, or -1 .*, got 0"),
        (
            "MODEL --train_file train.csv --dataloader_drop_last --per_device_train_batch_size 999",
            "--dataloader_drop_last leaves out batches of fewer than 999 rows, and there are",
        ),
        ("--learning_rate nan", "learning_rate must be a number of at least 0, got nan"),
        ("--label_smoothing_factor 2", "label_smoothing_factor must be below 1"),
        ("--output_dir=", "output_dir is empty"),
        ("two.json", "two.json: '2' belongs to no flag"),
        ("MODEL --train_file train.csv --output_dir train.csv", "is a file"),
        ("--rdrop_alpha -1", "rdrop_alpha must be a finite number of at least 0, got -1.0"),
        ("--rdrop_alpha four", "--rdrop_alpha.*'four'"),
        ("--rdrop_forward_mode both", "--rdrop_forward_mode.*'both'"),
        ("--dropout 1", "dropout must be in"),
        ("--max_train_samples 0", "max_train_samples must be at least 1"),
        ("--rdrop_alhpa 1", "unknown flag --rdrop_alhpa; did you mean --rdrop_alpha"),
        ("recipe.toml", "recipe.toml: expected a .yaml or .json recipe"),
        ("--train_file d\udcff.csv", "'d.udcff.csv' holds what is no text in UTF-8; rename the file"),
        ("none.yaml", "none.yaml: there is no such recipe$"),
        ("brokne.yaml", "brokne.yaml: there is no such recipe; did you mean broken.yaml[?]"),
        ("mrcp.yaml", "mrcp.yaml: there is no such recipe; did you mean recipes/mrpc.yaml[?]"),
        ("recipes/mrcp.yaml", "there is no such recipe; did you mean recipes/mrpc.yaml[?]"),
        ("mrpc", "mrpc: expected a .yaml or .json recipe first.*; did you mean recipes/mrpc.yaml[?]"),
        ("folder.yaml", "folder.yaml: cannot be read .Is a directory., expected a .yaml or .json file"),
        ("latin.yaml", "latin.yaml: cannot be read as UTF-8 text: .*; save it as UTF-8$"),
        ("broken.yaml", "broken.yaml:3: not valid YAML"),
        ("windows.yaml", "windows.yaml:1: not valid YAML: .*unknown escape.*; write paths with / in the place of"),
        ("--model_name_or_path C:\\\\bert --train_file train.csv", "bert: no such folder, expected a model"),
        ("list.json", "list.json: expected a mapping"),
        ("odd.json", "unknown flag --rdrop_apha; did you mean --rdrop_alpha"),
        ("--seed 99999999999", "seed must be below"),
        ("--seed 1 stray", "'stray' belongs to no flag"),
    ],
)
def test_wrong_input_is_one_sentence(flags, message, model, here, capsys):
    write_csv(here / "train.csv")
    (here / "more.txt").write_text("one\ntwo\n")
    (here / "broken.yaml").write_text("a: 1\nb: [1,\n")
    (here / "windows.yaml").write_text('train_file: "C:\\data.csv"')
    (here / "list.json").write_text("[1]")
    (here / "two.json").write_text('{"rdrop_alpha": [1, 2]}')
    write_csv(here / "float.csv", labels=("0.5", "1.5"))
    (here / "recipes").mkdir()
    (here / "recipes" / "mrpc.yaml").write_text("seed: 1")
    (here / "folder.yaml").mkdir()
    (here / "latin.yaml").write_bytes("run_name: größe".encode("latin-1"))
    (here / "odd.json").write_text('{"rdrop_apha": 1}')
    flags = flags.replace("MODEL", f"--model_name_or_path {model}")
    assert re.search(message, fails(capsys, *flags.split()))


def test_validation_rows_without_a_label_are_refused_before_the_training(model, here, capsys):
    write_csv(here / "train.csv")
    write_csv(here / "dev.csv", labels=("-100",))
    flags = f"--model_name_or_path {model} --train_file train.csv --validation_file dev.csv --output_dir out"
    assert "custom: the references have no labels, as in a test set; nothing to score" in fails(capsys, *flags.split())
    assert not (here / "out").exists()


def test_a_model_without_its_tokenizer(model, here, capsys):
    """transformers would make one that knows no word."""
    write_csv(here / "train.csv")
    shutil.copytree(model, here / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    message = fails(capsys, "--model_name_or_path bare --train_file train.csv")
    assert "bare: its tokenizer knows no words, because its files (tokenizer.json, vocab.txt) are missing" in message
