"""Translation from little data: a small Marian from scratch on Multi30k, German to English, at equal seconds.

    python benchmarks/translation.py --data_dir multi30k --max_seconds 1200
    python benchmarks/translation.py --report

The folder holds train, val and test_2016_flickr, each as .de and .en, a sentence a line
(https://github.com/multi30k/dataset, data/task1/raw). Every run trains for the same seconds: those of the steps alone,
of the processor on a machine without a GPU. On the way and at the end the validation set gives a smoothed loss and BLEU
(greedy), so the curves show both arms after equal seconds, and whether they are flat. The weights with
the lowest validation loss are scored on the test set: BLEU with beam 5, and loss, accuracy and calibration error of the
next token. The schedule does not depend on the end, so `plain` at fewer steps is the same run, and needs no arm of its
own. Every run is a line of the results file as soon as it ends; a second call goes on where the first stopped.

With a GPU, all pairs, until both arms are flat:

    python benchmarks/translation.py --data_dir multi30k --pairs 29000 --batch_size 512 --d_model 256 --layers 3 \\
        --vocab_size 8000 --learning_rate 2e-3 --bf16 --max_seconds 900

The settings are those of the translation recipes: dropout 0.3, label smoothing 0.1, Adam with betas (0.9, 0.98),
inverse square root schedule, vocabulary and embeddings shared by both languages.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from results import add_run, machine, read_runs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from rdrop_trainer import RDropSeq2SeqTrainer, RDropSeq2SeqTrainingArguments
from rdrop_trainer.stability import expected_calibration_error

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_LENGTH = 128
MOST_TOKENS = 64  # of a translation; those of the test set have up to 40
SETTINGS = (
    "pairs", "max_seconds", "batch_size", "learning_rate", "warmup_steps", "vocab_size", "d_model", "layers", "heads",
    "dropout", "label_smoothing", "bf16", "alpha_warmup_steps", "evaluations",
)  # fmt: skip
FIGURES = {
    "steps": ("steps", 1), "val_loss": ("validation loss", 1), "loss": ("test loss, nats a token", 1),
    "accuracy": ("next token right, %", 100), "calibration_error": ("its calibration error, %", 100),
    "val_bleu": ("validation BLEU, greedy", 1), "bleu": ("test BLEU, beam 5", 1),
}  # fmt: skip


# ---- Data and model ----


def read_lines(data_dir, split, language):
    return (Path(data_dir) / f"{split}.{language}").read_text(encoding="utf-8").rstrip("\n").split("\n")


def make_tokenizer(texts, vocab_size):
    """A byte-pair encoding for both languages."""
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, EOS, UNKNOWN], show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def make_rows(texts, tokenizer):
    source, target = (tokenizer(side, truncation=True, max_length=MAX_LENGTH) for side in texts)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": len(ids)}
        for ids, labels in zip(source["input_ids"], target["input_ids"], strict=True)
    ]


def make_model(tokenizer, options):
    size, layers, heads = options.d_model, options.layers, options.heads
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    return MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer), d_model=size, encoder_layers=layers, decoder_layers=layers,
            encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * size,
            decoder_ffn_dim=4 * size, dropout=options.dropout, activation_function="relu", scale_embedding=True,
            init_std=size**-0.5, max_position_embeddings=2 * MAX_LENGTH, pad_token_id=pad, eos_token_id=eos,
            forced_eos_token_id=eos, decoder_start_token_id=pad,
        )
    )  # fmt: skip


# ---- One run ----


def now():
    """Seconds of the device that trains."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Seconds(TrainerCallback):
    """End a training after its seconds, evaluate on the way, and keep the weights with the lowest validation loss."""

    def __init__(self, limit, evaluations):
        self.limit, self.evaluations = limit, evaluations
        self.seconds, self.history, self.best = 0.0, [], None

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += now() - self.start
        control.should_training_stop = self.seconds >= self.limit
        due = self.seconds >= self.limit * (len(self.history) + 1) / self.evaluations
        control.should_evaluate = control.should_training_stop or due

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        loss, bleu = metrics["eval_loss"], metrics["eval_bleu"]
        self.history.append({"step": state.global_step, "seconds": self.seconds, "val_loss": loss, "val_bleu": bleu})
        if loss <= min(found["val_loss"] for found in self.history):
            self.best = copy.deepcopy(model.state_dict())


class Bench:
    """Data and settings of all runs."""

    def __init__(self, options):
        def pairs(split):
            return [read_lines(options.data_dir, split, language) for language in ("de", "en")]

        self.options = options
        train = [side[: options.pairs] for side in pairs("train")]
        self.tokenizer = make_tokenizer([*train[0], *train[1]], options.vocab_size)
        test = pairs("test_2016_flickr")
        self.references = test[1]
        parts = (train, pairs("val"), test)
        self.train, self.validation, self.test = (make_rows(texts, self.tokenizer) for texts in parts)

    def run(self, alpha, seed, folder):
        """Train one model and measure it."""
        options = self.options
        set_seed(seed)
        model = make_model(self.tokenizer, options)
        arguments = RDropSeq2SeqTrainingArguments(
            folder, rdrop_alpha=alpha, rdrop_warmup_steps=options.alpha_warmup_steps, seed=seed,
            num_train_epochs=100_000, bf16=options.bf16,
            per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=64,
            train_sampling_strategy="group_by_length", dataloader_num_workers=options.workers,
            learning_rate=options.learning_rate, lr_scheduler_type="inverse_sqrt", warmup_steps=options.warmup_steps,
            adam_beta1=0.9, adam_beta2=0.98, weight_decay=1e-4, label_smoothing_factor=options.label_smoothing,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            predict_with_generate=True, generation_max_length=MOST_TOKENS,
        )  # fmt: skip
        seconds = Seconds(options.max_seconds, options.evaluations)
        trainer = RDropSeq2SeqTrainer(
            model, arguments, train_dataset=self.train, eval_dataset=self.validation, processing_class=self.tokenizer,
            data_collator=DataCollatorForSeq2Seq(self.tokenizer, model=model), callbacks=[seconds],
            compute_metrics=lambda found: {"bleu": self.bleu(found.predictions, found.label_ids)},
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.load_state_dict(seconds.best)
        arguments.train_sampling_strategy = "random"  # by length, predictions would be in another order
        predictions = trainer.predict(self.test, num_beams=5).predictions
        best = min(seconds.history, key=lambda found: found["val_loss"])
        return {
            "alpha": alpha, "seed": seed, "steps": trainer.state.global_step, "seconds": seconds.seconds,
            "val_loss": best["val_loss"], "val_bleu": best["val_bleu"], **next_token(trainer, self.test),
            "bleu": self.bleu(predictions, self.references), "history": seconds.history,
            "parameters": model.num_parameters(),
        }  # fmt: skip

    def texts(self, ids):
        # -100 where another row is longer
        return self.tokenizer.batch_decode(ids.clip(min=0), skip_special_tokens=True)

    def bleu(self, predictions, references):
        import sacrebleu

        texts = references if isinstance(references, list) else self.texts(references)
        return sacrebleu.corpus_bleu(self.texts(predictions), [texts]).score


def next_token(trainer, rows):
    """Loss, accuracy and calibration error of the next token, the tokens before it given."""
    probabilities, labels, model = [], [], trainer.model.eval()
    for batch in trainer.get_eval_dataloader(rows):
        with torch.no_grad():
            logits = model(**batch).logits.float()
        counted = batch["labels"] != -100
        probabilities.append(logits[counted].softmax(-1).cpu())
        labels.append(batch["labels"][counted].cpu())
    probabilities, labels = torch.cat(probabilities).double(), torch.cat(labels)
    return {
        "loss": -probabilities.gather(-1, labels[:, None]).log().mean().item(),
        "accuracy": (probabilities.argmax(-1) == labels).double().mean().item(),
        "calibration_error": expected_calibration_error(probabilities, labels),
    }


# ---- All runs ----


def measure(options):
    """All runs that the results file does not hold yet, seed after seed."""
    settings = {name: getattr(options, name) for name in SETTINGS} | {"machine": machine()}
    records = read_runs(options.results)
    if any(record["settings"] != settings for record in records):
        raise SystemExit(f"{options.results} holds runs of other settings than {settings}: name another --results.")
    done = {(record["alpha"], record["seed"]) for record in records}
    todo = [(alpha, seed) for seed in options.seeds for alpha in options.alphas if (alpha, seed) not in done]
    if not todo:
        return
    bench = Bench(options)
    for alpha, seed in todo:
        with tempfile.TemporaryDirectory() as folder:
            record = {"settings": settings, **bench.run(alpha, seed, folder)}
        add_run(options.results, record)
        print(f"seed {seed}, alpha {alpha:g}: validation loss {record['val_loss']:.3f}, BLEU {record['bleu']:.2f}")


# ---- Report ----


def table(records):
    """Markdown: means over the seeds, and the smallest and the largest."""
    lines = [
        f"| alpha | seeds | {' | '.join(name for name, _ in FIGURES.values())} |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    for alpha, runs in by_alpha(records).items():
        cells = [f"{alpha:g}", str(len(runs))]
        for key, (_, scale) in FIGURES.items():
            values = [scale * run[key] for run in runs]
            digits = 0 if key == "steps" else 2
            cells.append(f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_alpha(records):
    return {a: [r for r in records if r["alpha"] == a] for a in sorted({r["alpha"] for r in records})}


def draw(records, path):
    """Validation loss and BLEU against seconds of training, a line per run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    panels = {"val_loss": "validation loss, smoothed", "val_bleu": "BLEU of the validation set, greedy"}
    for axis, (key, name) in zip(axes, panels.items(), strict=True):
        for number, (alpha, runs) in enumerate(by_alpha(records).items()):
            for run in runs:
                label = f"alpha {alpha:g}" if run is runs[0] else None
                points = [(found["seconds"], found[key]) for found in run["history"]]
                axis.plot(*zip(*points, strict=True), ".-", color=f"C{number}", linewidth=1, label=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("seconds of training")
        axis.set_ylabel(name)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of Multi30k's plain text files")
    parser.add_argument("--results", type=Path, default=Path("runs/translation/results.jsonl"))
    parser.add_argument("--picture", type=Path, help="default: beside the results")
    parser.add_argument("--report", action="store_true", help="train nothing: table and picture of what there is")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 5.0])
    parser.add_argument("--alpha_warmup_steps", type=int, default=0, help="over which alpha rises from 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_seconds", type=float, default=4000, help="of a run's training")
    parser.add_argument("--evaluations", type=int, default=10, help="of a run, evenly spaced")
    parser.add_argument("--pairs", type=int, default=10_000, help="of the training set, the first")
    parser.add_argument("--batch_size", type=int, default=32, help="sentences")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3, help="the highest, at the end of the warm-up")
    parser.add_argument("--warmup_steps", type=int, default=400)
    parser.add_argument("--vocab_size", type=int, default=2000)
    parser.add_argument("--d_model", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2, help="of the encoder, and of the decoder")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--label_smoothing", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--workers", type=int, default=0, help="processes that load the data")
    options = parser.parse_args()
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        parser.error("sacrebleu, which scores the translations, is missing: pip install sacrebleu")
    transformers.utils.logging.set_verbosity_error()
    if not options.report:
        if options.data_dir is None:
            parser.error("--data_dir is missing: the folder of Multi30k's plain text files")
        measure(options)
    records = read_runs(options.results)
    if not records:
        parser.error(f"{options.results}: no runs there yet")
    print(f"{records[0]['settings']}, {records[0]['parameters'] / 1e6:.1f} M parameters\n\n{table(records)}")
    draw(records, options.picture or options.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
