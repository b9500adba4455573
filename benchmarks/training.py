"""One training in one process, measured: what `bench_step.py` and `bench_memory.py` run, and print as tables.

Every case of a model is trained for a few steps in a process of its own, which prints the seconds of a step and the
most memory it held. The processes take turns, and each figure is the median over rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from results import high_water, machine, mark, resident, save, seconds_between, table

# Name in the table: (arguments of the trainer, or None for transformers' own)
CASES = {
    "Trainer": None,
    "concat": {"rdrop_forward_mode": "concat", "rdrop_fused_head": False},
    "sequential": {"rdrop_forward_mode": "sequential", "rdrop_fused_head": False},
    "recompute": {"rdrop_forward_mode": "recompute", "rdrop_fused_head": False},
    "fused, concat": {"rdrop_forward_mode": "concat", "rdrop_fused_head": True},
    "fused, recompute": {"rdrop_forward_mode": "recompute", "rdrop_fused_head": True},
    "fused, checkpointing": {"rdrop_fused_head": True, "gradient_checkpointing": True},
}
MODELS = {
    "bert": "classification: BERT of 6 layers and width 384, 16 rows of 128 tokens",
    "causal": "causal LM: Qwen2 of 4 layers and width 256, 151,936 classes, 4 rows of 256 tokens",
    "seq2seq": "sequence to sequence: T5-small's shape, 32,128 classes, 8 rows of 128 and 64 tokens",
}


def build(name):
    """The model, from scratch, and one row of its data."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Qwen2Config,
        Qwen2ForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    def ids(length, classes=8000):
        return torch.randint(5, classes, (length,))

    if name == "bert":
        config = BertConfig(
            vocab_size=8000, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
            num_labels=3,
        )  # fmt: skip
        rows = [{"input_ids": ids(128), "attention_mask": torch.ones(128).long(), "labels": i % 3} for i in range(16)]
        return BertForSequenceClassification(config), rows
    if name == "causal":
        config = Qwen2Config(
            vocab_size=151_936, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=1024, attention_dropout=0.1, tie_word_embeddings=True,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in (ids(256, 151_936) for _ in range(4))]
        return Qwen2ForCausalLM(config), rows
    config = T5Config(vocab_size=32_128, decoder_start_token_id=0)  # the rest is T5-small
    rows = [{"input_ids": ids(128, 32_000), "labels": ids(64, 32_000)} for _ in range(8)]
    return T5ForConditionalGeneration(config), rows


def train(model, rows, case, steps, **arguments):
    """Train in this process; the seconds of a step, the most MiB held, and the MiB held before.

    Args:
        model: from scratch.
        rows: a batch.
        case: one of `CASES`.
        steps: how many; the first one warms up.
        **arguments: of the training.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from rdrop_trainer import RDropTrainer, RDropTrainingArguments

    class Stopwatch(TrainerCallback):
        def __init__(self):
            self.marks = []

        def on_step_begin(self, *args, **kwargs):
            self.marks.append(mark())

        on_train_end = on_step_begin

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder, "per_device_train_batch_size": len(rows), "max_steps": steps, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no",
            **arguments,
        }  # fmt: skip
        kind, args = Trainer, TrainingArguments(**common)
        if CASES[case] is not None:
            kind, args = RDropTrainer, RDropTrainingArguments(**common, **CASES[case])
        trainer = kind(model, args, train_dataset=rows * steps, callbacks=[watch])
        before = resident()
        trainer.train()
    seconds = statistics.median(seconds_between(watch.marks[1:]))
    return {"seconds": seconds, "peak MiB": high_water(), "before MiB": before}


def compare(description, columns, draw=None):
    """Run a benchmark's command line: train all cases of all models, print a table each, write JSON and a picture.

    Args:
        columns: makes the columns of a case from the medians of this case and of `Trainer`.
        draw: draws the results to a file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--picture", help="also draw them to this file")
    options = parser.parse_args()
    import transformers  # noqa: F401  its version is printed

    print(machine(), "float32", sep=", ")
    results = {}
    for model in options.models:
        cases = [case for case in options.cases if model != "bert" or "fused" not in case]
        runs = {case: [] for case in cases}
        for _ in range(options.rounds):
            for case in cases:
                command = [sys.executable, __file__, model, case, str(options.steps)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                runs[case].append(json.loads(done.stdout.strip().splitlines()[-1]))
        median = {
            case: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for case, found in runs.items()
        }
        results[MODELS[model]] = {case: columns(median[case], median["Trainer"]) for case in cases}
        print(f"\n{MODELS[model]}")
        print(table(results[MODELS[model]]))
    if options.json:
        save(options.json, options, results)
    if options.picture:
        draw(results, Path(options.picture))


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(train(*build(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
