"""Gradient accumulation, ours beside Trainer's: norm of the first update with 4 x 4 rows over that with 1 x 16.

    python benchmarks/accumulation.py

Exact accumulation gives 1. SGD, dropout off, rows and token labels of unequal length, BERT built from a configuration.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rdrop_trainer import RDropTrainer, RDropTrainingArguments
from rdrop_trainer.glue.scratch import make_bert

HEADS = {"sequence": BertForSequenceClassification, "token": BertForTokenClassification}
SGD = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "max_steps": 1}


def make_rows(head, vocab_size):
    g = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(16):
        length = int(torch.randint(4, 30, (1,), generator=g))
        ids = torch.randint(5, vocab_size, (length,), generator=g).tolist()
        labels = torch.randint(0, 4, (length,), generator=g).tolist()
        rows.append(
            {"input_ids": ids, "attention_mask": [1] * length, "labels": labels if head == "token" else labels[0]}
        )
    return rows


def update(head, trainer_class, rows_per_batch, steps, tokenizer, folder, **settings):
    """The first optimizer step's change of all weights, as one vector."""
    set_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=4,
    )  # fmt: skip
    model = HEADS[head](config)
    before = [p.detach().clone() for p in model.parameters()]
    collator = DataCollatorForTokenClassification if head == "token" else DataCollatorWithPadding
    arguments = RDropTrainingArguments if trainer_class is RDropTrainer else TrainingArguments
    trainer = trainer_class(
        model,
        arguments(
            folder, per_device_train_batch_size=rows_per_batch, gradient_accumulation_steps=steps, report_to="none",
            use_cpu=True, save_strategy="no", disable_tqdm=True, **SGD, **settings,
        ),
        train_dataset=make_rows(head, tokenizer.vocab_size),
        data_collator=collator(tokenizer),
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        make_bert(Path(folder), ["a small made-up vocabulary of some letters and words"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ours = {"rdrop_allow_deterministic": True}
        cases = {
            "Trainer": (Trainer, {}),
            "RDropTrainer, alpha 0": (RDropTrainer, {"rdrop_alpha": 0.0, **ours}),
            "RDropTrainer, alpha 4": (RDropTrainer, ours),
        }
        print(f"torch {torch.__version__}, transformers {transformers.__version__}, CPU, float32")
        print(f"{'|update 4x4| / |update 1x16|':32s}" + "".join(f"{head:>12s}" for head in HEADS))
        for name, (cls, settings) in cases.items():
            figures[name] = {}
            for head in HEADS:
                small, large = (update(head, cls, b, k, tokenizer, folder, **settings) for b, k in ((4, 4), (16, 1)))
                figures[name][head] = {
                    "norm_ratio": (small.norm() / large.norm()).item(),
                    "relative_error": ((small - large).norm() / large.norm()).item(),
                }
            print(f"{name:32s}" + "".join(f"{figures[name][head]['norm_ratio']:12.6f}" for head in HEADS))
        print(
            "relative error of ours: "
            + ", ".join(
                f"{name} {head} {f['relative_error']:.1e}"
                for name, by in list(figures.items())[1:]
                for head, f in by.items()
            )
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
