"""Images: a small ViT on scikit-learn's handwritten digits, with and without R-Drop, paired over seeds.

    python benchmarks/digits.py

The data come with scikit-learn: 1,797 images of 8 x 8 pixels, half of them to train on and half to test. The
halves are always the same. The ViT starts from scratch, with dropout 0.1 in its layers and its attention. A seed fixes
the initial weights and the order of the rows, so runs of one seed are paired. R-Drop's second pass costs time, so the
last row gives plain training twice the epochs. Some five minutes on one core.
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ViTConfig, ViTForImageClassification, set_seed

from rdrop_trainer import RDropTrainer, RDropTrainingArguments


def load_halves():
    """Training rows and test rows: pixel_values (1, 8, 8) in [-1, 1], labels 0-9."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]
    return train_test_split(rows, test_size=0.5, random_state=0, stratify=labels)


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean().item()}


def run(alpha, epochs, seed, train, test, folder, options):
    """Train one model and test it."""
    set_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=256, num_labels=10, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        )
    )  # fmt: skip
    arguments = RDropTrainingArguments(
        folder, rdrop_alpha=alpha, num_train_epochs=epochs, seed=seed, learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=256, warmup_steps=0.1,
        weight_decay=0.01, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = RDropTrainer(model, arguments, train_dataset=train, eval_dataset=test, compute_metrics=accuracy)
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        result = trainer.evaluate()
    return {
        "alpha": alpha, "epochs": epochs, "seed": seed, "accuracy": result["eval_accuracy"],
        "loss": result["eval_loss"], "steps": trainer.state.global_step, "processor_seconds": seconds,
    }  # fmt: skip


def mean_sd(values, digits=2):
    values = list(values)
    sd = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def table_row(alpha, epochs, results, base):
    """A row of the table; `base` are the runs that these are compared with, seed by seed."""
    points = [100 * (r["accuracy"] - b["accuracy"]) for r, b in zip(results, base, strict=True)]
    signs = [sum(p > 0 for p in points), sum(p == 0 for p in points), sum(p < 0 for p in points)]
    compared = ["-", "-"] if results is base else [mean_sd(points), "/".join(map(str, signs))]
    scores = mean_sd(100 * r["accuracy"] for r in results)
    losses = mean_sd((r["loss"] for r in results), digits=3)
    return f"| {' | '.join([f'{alpha:g}', str(epochs), str(results[0]['steps']), scores, *compared, losses])} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alphas", type=float, nargs="+", default=[4.0], help="beside alpha 0")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--json", type=Path, help="also write the figures of every run to this file")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    train, test = load_halves()
    settings = [(0.0, options.epochs), *((a, options.epochs) for a in options.alphas), (0.0, 2 * options.epochs)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {device}, float32")
    print(f"{len(train)} training and {len(test)} test images, {options.seeds} seeds, mean ± standard deviation\n")
    print("| alpha | epochs | steps | accuracy, % | points above the first row | better/equal/worse | test loss |")
    print("|---|---|---|---|---|---|---|")
    seeds, runs = range(1, options.seeds + 1), {}
    with tempfile.TemporaryDirectory() as folder:
        for alpha, epochs in settings:
            results = [run(alpha, epochs, seed, train, test, folder, options) for seed in seeds]
            runs[alpha, epochs] = results
            print(table_row(alpha, epochs, results, runs[settings[0]]), flush=True)
    print("\nProcessor seconds of a training run, mean:", end=" ")
    seconds = {s: statistics.mean(r["processor_seconds"] for r in results) for s, results in runs.items()}
    print(", ".join(f"alpha {a:g} for {e} epochs {seconds[a, e]:.1f}" for a, e in settings))
    if options.json:
        options.json.write_text(json.dumps([r for results in runs.values() for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
