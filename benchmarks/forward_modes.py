"""Peak memory and time of a training step: plain Trainer and the three forward modes, one process each.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/forward_modes.py

Memory is the peak of the process above what it holds before the first step (on a GPU, of the CUDA allocator). The
processes take turns, several rounds, and every time is the median over rounds, given as a ratio to plain Trainer's.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = ("Trainer", "concat", "sequential", "recompute")


def measure(case, options):
    """Train a few steps in this process; prints {"seconds": median step, "mib": peak above the start}."""
    import time

    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    from rdrop_trainer import RDropTrainer, RDropTrainingArguments

    class Stopwatch(TrainerCallback):
        def __init__(self):
            self.marks = []

        def on_step_begin(self, *args, **kwargs):
            self.marks.append(self.now())

        def on_train_end(self, *args, **kwargs):
            self.marks.append(self.now())

        def now(self):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=8000, hidden_size=options.hidden_size, num_hidden_layers=options.layers,
            num_attention_heads=options.hidden_size // 64, intermediate_size=4 * options.hidden_size, num_labels=3,
        )
    )  # fmt: skip
    rows = [
        {"input_ids": torch.randint(5, 8000, (options.length,)), "attention_mask": torch.ones(options.length).long(),
         "labels": i % 3}
        for i in range(options.rows)
    ] * options.steps  # fmt: skip
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder, "per_device_train_batch_size": options.rows, "max_steps": options.steps,
            "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "optim": "sgd",
        }  # fmt: skip
        if case == "Trainer":
            trainer = Trainer(model, TrainingArguments(**common), train_dataset=rows, callbacks=[watch])
        else:
            args = RDropTrainingArguments(**common, rdrop_forward_mode=case)
            trainer = RDropTrainer(model, args, train_dataset=rows, callbacks=[watch])
        cuda = torch.cuda.is_available()
        before = torch.cuda.memory_allocated() / 2**20 if cuda else _peak_mib()
        trainer.train()
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_mib()
    steps = [b - a for a, b in zip(watch.marks[1:], watch.marks[2:], strict=False)]  # the first step warms up
    print(json.dumps({"seconds": statistics.median(steps), "mib": peak - before}))


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return measure(options.case, options)
    runs = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            runs[case].append(json.loads(done.stdout.strip().splitlines()[-1]))
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {device}")
    print(f"BERT {options.layers} x {options.hidden_size}, {options.rows} rows of {options.length} tokens, float32")
    print(f"{'':12s}{'peak MiB':>10s}{'x Trainer':>11s}{'s a step':>10s}{'x Trainer':>11s}")
    median = {c: {k: statistics.median(r[k] for r in rs) for k in ("mib", "seconds")} for c, rs in runs.items()}
    for case, m in median.items():
        base = median["Trainer"]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs[case], runs["Trainer"], strict=True)]
        m["memory_ratio"], m["time_ratio"] = m["mib"] / base["mib"], statistics.median(ratios)
        print(f"{case:12s}{m['mib']:10.0f}{m['memory_ratio']:11.2f}{m['seconds']:10.3f}{m['time_ratio']:11.2f}")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "median": median}, default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
