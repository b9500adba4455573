"""Every head beside plain `Trainer` and beside the definition, on tiny models built from configurations.

    python benchmarks/heads.py

One table, a row per head:

* alpha 0 = Trainer: whether two epochs of AdamW with dropout give the same weights, bit for bit; if not, the relative
  difference of the gradients. GPT-2's differ because `Trainer` divides by all labels of a row, although nothing
  predicts the first. For the other causal models it leaves the first out, as RDropTrainer does for all.
* accumulation: norm of the first update with 4 x 4 rows over that with 1 x 16; exact is 1. SGD, float64, and, in place
  of dropout, noise that is fixed by a row's content, so that the divergence takes part.
* error: loss and divergence that the trainer logs for one batch in float32 with dropout, beside the definition in
  float64 on the same logits, pair by pair and item by item; relative.

The models, the data and the formulas are those of tests/support, in the folder beside this one.
"""

import argparse
import contextlib
import io
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support import (
    formulas,  # noqa: E402
    tiny,  # noqa: E402
    zoo,  # noqa: E402
)

ROWS, ALPHA = 16, 4.0
UNLABELED = (2, 9, 12)


@dataclass
class Case:
    """One head: how to make its model, data and trainer, and what its items are."""

    build: Callable  # () -> model with dropout
    noisy: Callable  # (num_passes) -> float64 model with fixed noise in place of dropout
    data: list
    trainer: Callable  # (model, data, folder, plain, **arguments) -> trainer
    items: Callable  # (outputs of one pass, batch) -> [(logits (n, C), labels (n,))], an entry per part of the head
    problem: str = "single_label"


def of_tiny(head, unlabeled=()):
    """A BERT head of tests/support/tiny.py."""

    def trainer(model, data, folder, plain, **arguments):
        return tiny.trainer(model, data, folder, **({"cls": Trainer} if plain else {}), **arguments)

    def items(outputs, batch):
        logits, labels = outputs["logits"], batch["labels"]
        if head != "token":
            return [(logits, labels)]
        labeled = labels != -100
        counted = labeled | (~labeled.any(1, keepdim=True) & batch["attention_mask"].bool())
        return [(logits[counted], labels[counted])]

    return Case(
        partial(tiny.bert, head),
        partial(zoo.noisy, head),
        tiny.dataset(head, ROWS, unlabeled),
        trainer,
        items,
        "single_label" if head == "token" else head,
    )


def of_zoo(name):
    """A head of tests/support/zoo.py."""
    return Case(
        partial(zoo.build, name),
        partial(zoo.noisy, name),
        zoo.dataset(name, ROWS),
        partial(zoo.trainer, name),
        partial(zoo.items, name),
    )


CASES = {
    "single-label (BERT)": of_tiny("single_label"),
    "single-label, 3 of 16 rows unlabeled (BERT)": of_tiny("single_label", UNLABELED),
    "multi-label (BERT)": of_tiny("multi_label"),
    "regression (BERT)": of_tiny("regression"),
    "token (BERT)": of_tiny("token"),
    "token, 3 of 16 rows unlabeled (BERT)": of_tiny("token", UNLABELED),
    "multiple choice (BERT)": of_zoo("choice"),
    "extractive QA (BERT)": of_zoo("question"),
    "masked LM (BERT)": of_zoo("masked_lm"),
    "causal LM (GPT-2)": of_zoo("gpt2"),
    "causal LM (Llama)": of_zoo("llama"),
    "causal LM (Qwen2)": of_zoo("qwen2"),
    "seq2seq LM (T5)": of_zoo("t5"),
    "seq2seq LM (BART)": of_zoo("bart"),
    "seq2seq LM (Marian)": of_zoo("marian"),
    "seq2seq LM (mBART)": of_zoo("mbart"),
    "image (ViT)": of_zoo("vit"),
    "audio (Wav2Vec2)": of_zoo("wav2vec2"),
}


def train(case, model, folder, plain=False, **arguments):
    """Train silently, and return the change of all weights as one vector."""
    before = tiny.weights(model)
    trainer = case.trainer(model, case.data, folder, plain, **arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return tiny.update(before, tiny.weights(model))


def is_identical(case, folder):
    """Whether two epochs of ours with alpha 0 give the weights that `Trainer` gives, bit for bit."""
    weights = []
    for plain, settings in ((True, {}), (False, {"rdrop_alpha": 0.0})):
        model = case.build()
        train(case, model, folder, plain, num_train_epochs=2, per_device_train_batch_size=4, **settings)
        weights.append(tiny.weights(model))
    return tiny.identical(*weights)


def first_updates(case, folder, plain=False, **settings):
    """The first update with 4 x 4 rows and with 1 x 16."""
    num_passes = 2 if settings.get("rdrop_alpha") else 1
    return [
        train(
            case, case.noisy(num_passes), folder, plain, max_steps=1, per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps, **tiny.PURE_SGD, **settings,
        )
        for rows, steps in ((4, 4), (16, 1))
    ]  # fmt: skip


def against_definition(case, folder):
    """Relative errors of the logged loss and divergence of one batch of 16 rows in float32."""
    model, seen, batches = case.build(), [], []
    model.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    arguments = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": ROWS, "rdrop_alpha": ALPHA}
    trainer = case.trainer(model, case.data, folder, False, **arguments)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "divergence" in entry)

    logits = ({key: value.detach() for key, value in outputs.items() if "logits" in key} for outputs in seen)
    # A language model is first run on a single row, to compare its output head
    outputs = next(found for found in logits if all(len(value) == 2 * ROWS for value in found.values()))
    passes = [{key: value[k * ROWS : (k + 1) * ROWS] for key, value in outputs.items()} for k in range(2)]
    parts = zip(*(case.items(one, batches[0]) for one in passes), strict=True)
    terms = [formulas.rdrop([z for z, _ in part], list(part[0][1]), ALPHA, case.problem) for part in parts]
    loss, _, divergence = (torch.stack(term).mean().item() for term in zip(*terms, strict=True))
    return {key: abs(logged[key] / value - 1) for key, value in (("loss", loss), ("divergence", divergence))}


def measure(case, folder):
    """All figures of one head."""
    allow = {"rdrop_allow_deterministic": True}
    updates = {
        "Trainer": first_updates(case, folder, plain=True),
        "alpha 0": first_updates(case, folder, rdrop_alpha=0.0, **allow),
        "alpha 4": first_updates(case, folder, rdrop_alpha=ALPHA, **allow),
    }
    return {
        "identical_to_trainer": is_identical(case, folder),
        "difference_to_trainer": tiny.relative(updates["alpha 0"][1], updates["Trainer"][1]),
        "accumulation": {
            key: {"norm_ratio": (small.norm() / large.norm()).item(), "relative_error": tiny.relative(small, large)}
            for key, (small, large) in updates.items()
        },
        "error": against_definition(case, folder),
    }


def table_row(name, figures):
    same = "yes" if figures["identical_to_trainer"] else f"no ({figures['difference_to_trainer']:.1e})"
    ratios = [f"{ratio['norm_ratio']:.6f}" for ratio in figures["accumulation"].values()]
    errors = [f"{figures['error'][key]:.1e}" for key in ("loss", "divergence")]
    return f"| {' | '.join([name, same, *ratios, *errors])} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=[""], help="only heads whose name has one of these in it")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    figures = {}
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()} CPU\n")
    print("| head | alpha 0 = `Trainer` | 4x4 / 1x16: `Trainer` | alpha 0 | alpha 4 | error: loss | divergence |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            if any(wanted in name for wanted in options.heads):
                figures[name] = measure(case, folder)
                print(table_row(name, figures[name]), flush=True)
    errors = [f["accumulation"][key]["relative_error"] for f in figures.values() for key in ("alpha 0", "alpha 4")]
    print(
        f"\nLargest relative error of our accumulated updates: {max(errors):.1e}. "
        f"{time.process_time():.0f} s of processor time."
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
