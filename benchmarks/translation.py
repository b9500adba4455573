"""Translation: a small Marian from scratch on Multi30k, German to English, one run per alpha, the runs taking turns.

    python benchmarks/translation.py --data_dir multi30k --max_steps 200 --batch_size 16 --warmup_steps 100

The folder holds train, val and test_2016_flickr, each as .de and .en, a sentence a line
(https://github.com/multi30k/dataset, data/task1/raw). Every alpha has a process of its own, and they take turns of a
few steps, so that their times can be compared on a machine that does other things too. To convergence, on a GPU:

    python benchmarks/translation.py --data_dir multi30k --max_steps 15000 --batch_size 256 --warmup_steps 2000 \\
        --bf16 --do_predict

The settings are those of the translation recipes: dropout 0.3, label smoothing 0.1, Adam with betas (0.9, 0.98),
inverse square root schedule, vocabulary and embeddings shared by both languages; with --do_predict, beam 5 and
sacrebleu. The losses, also on the validation set, are the smoothed ones.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch
import transformers
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

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_LENGTH = 128
WARM_UP_BLOCKS = 2


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


def make_rows(data_dir, split, tokenizer):
    def encode(language):
        texts = read_lines(data_dir, split, language)
        return tokenizer(texts, truncation=True, max_length=MAX_LENGTH, return_token_type_ids=False)

    source, target = encode("de"), encode("en")["input_ids"]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for ids, mask, labels in zip(source["input_ids"], source["attention_mask"], target, strict=True)
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


# ---- One run of several ----


class Turns(TrainerCallback):
    """Train a block of steps at each turn, and time them."""

    def __init__(self, alpha, block, mine, following):
        self.alpha, self.block, self.mine, self.following = alpha, block, mine, following
        self.seconds, self.processor_seconds = [], []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.block == 0:
            self.mine.acquire()
        self.start = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        wall, processor = (b - a for a, b in zip(self.start, self.now(), strict=True))
        self.seconds.append(wall)
        self.processor_seconds.append(processor)
        if state.global_step % self.block == 0 or state.global_step == state.max_steps:
            self.following.release()

    def on_log(self, args, state, control, logs, **kwargs):
        terms = ", ".join(f"{key} {logs[key]:.4f}" for key in ("loss", "task_loss", "divergence") if key in logs)
        if terms:
            print(f"alpha {self.alpha:g}, step {state.global_step}: {terms}", file=sys.stderr, flush=True)

    def now(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def run(alpha, options, folder, mine, following, all_trained):
    """Train with one alpha, evaluate, and write the figures to a file of the folder."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    set_seed(options.seed)
    model = make_model(tokenizer, options)
    arguments = RDropSeq2SeqTrainingArguments(
        f"{folder}/{alpha:g}", rdrop_alpha=alpha, seed=options.seed, max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=64, bf16=options.bf16,
        learning_rate=options.learning_rate, lr_scheduler_type="inverse_sqrt", warmup_steps=options.warmup_steps,
        adam_beta1=0.9, adam_beta2=0.98, weight_decay=1e-4, label_smoothing_factor=options.label_smoothing,
        logging_steps=min(options.logging_steps, options.max_steps), report_to="none", save_strategy="no",
        disable_tqdm=True, predict_with_generate=True, generation_num_beams=5, generation_max_length=MAX_LENGTH,
    )  # fmt: skip
    turns = Turns(alpha, options.block, mine, following)
    trainer = RDropSeq2SeqTrainer(
        model,
        arguments,
        train_dataset=make_rows(options.data_dir, "train", tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    all_trained.wait()  # what follows must not disturb the times of the others
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "loss": logged[-1]["loss"],
        "task_loss": logged[-1].get("task_loss", logged[-1]["loss"]),
        "divergence": logged[-1].get("divergence"),
        "val_loss": trainer.evaluate(make_rows(options.data_dir, "val", tokenizer))["eval_loss"],
        "parameters": model.num_parameters(),
        "seconds": turns.seconds,
        "processor_seconds": turns.processor_seconds,
        "log": logged,
    }
    if options.do_predict:
        figures |= bleu(trainer, tokenizer, options.data_dir)
    (Path(folder) / f"{alpha:g}.json").write_text(json.dumps(figures))


def bleu(trainer, tokenizer, data_dir):
    import sacrebleu

    predictions = trainer.predict(make_rows(data_dir, "test_2016_flickr", tokenizer)).predictions
    predictions = predictions.clip(min=0)  # -100 where another row is longer; 0 is padding
    found = tokenizer.batch_decode(predictions, skip_special_tokens=True)
    metric = sacrebleu.BLEU()
    score = metric.corpus_score(found, [read_lines(data_dir, "test_2016_flickr", "en")]).score
    return {"bleu": score, "signature": str(metric.get_signature())}


# ---- All runs ----


def run_in_turns(options, folder):
    """The figures of every alpha."""
    context = multiprocessing.get_context("spawn")
    turns = [context.Semaphore(int(i == 0)) for i in range(len(options.rdrop_alpha))]
    all_trained = context.Barrier(len(turns))
    processes = [
        context.Process(target=run, args=(alpha, options, folder, mine, following, all_trained), daemon=True)
        for alpha, mine, following in zip(options.rdrop_alpha, turns, turns[1:] + turns[:1], strict=True)
    ]
    for process in processes:
        process.start()
    while running := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in running])
        if any(process.exitcode for process in processes):
            sys.exit("One of the runs failed; see above.")
    return {alpha: json.loads((Path(folder) / f"{alpha:g}.json").read_text()) for alpha in options.rdrop_alpha}


def block_medians(seconds, block):
    """The median step of every block but the first ones."""
    blocks = [seconds[i : i + block] for i in range(0, len(seconds), block)]
    return [statistics.median(steps) for steps in blocks[WARM_UP_BLOCKS:] or blocks]


def add_times(figures, block):
    """Add the median step, and its ratio to the first alpha's: median over blocks that are neighbours in time."""
    first = next(iter(figures.values()))
    for f in figures.values():
        for key in ("seconds", "processor_seconds"):
            steps, base = block_medians(f[key], block), block_medians(first[key], block)
            f[f"{key}_a_step"] = statistics.median(steps)
            f[f"{key}_ratio"] = statistics.median(a / b for a, b in zip(steps, base, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of Multi30k's plain text files")
    parser.add_argument("--rdrop_alpha", type=float, nargs="+", default=[0.0, 5.0], help="one run for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=64, help="sentences")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the highest, at the end of the warm-up")
    parser.add_argument("--warmup_steps", type=int, default=1000)
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--d_model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3, help="of the encoder, and of the decoder")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--label_smoothing", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--block", type=int, default=10, help="steps of a turn")
    parser.add_argument("--logging_steps", type=int, default=50)
    parser.add_argument("--do_predict", action="store_true", help="translate the test set and score it (sacrebleu)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.do_predict:
        try:
            import sacrebleu  # noqa: F401
        except ImportError:
            parser.error("--do_predict scores with sacrebleu, which is missing: pip install sacrebleu")
    with tempfile.TemporaryDirectory() as folder:
        texts = [line for language in ("de", "en") for line in read_lines(options.data_dir, "train", language)]
        make_tokenizer(texts, options.vocab_size).save_pretrained(folder)
        figures = run_in_turns(options, folder)
    add_times(figures, options.block)

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {device}")
    print(
        f"Marian {options.layers}+{options.layers} x {options.d_model}, "
        f"{next(iter(figures.values()))['parameters'] / 1e6:.1f} M parameters, {options.max_steps} steps of "
        f"{options.batch_size} sentences, seed {options.seed}; losses of the last "
        f"{min(options.logging_steps, options.max_steps)} steps\n"
    )
    print("| alpha | loss | task loss | divergence | val loss | BLEU | s a step | ratio | processor s a step | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for alpha, f in figures.items():
        divergence = "-" if f["divergence"] is None else f"{f['divergence']:.4f}"
        score = f"{f['bleu']:.2f}" if "bleu" in f else "-"
        times = [
            f"{f[f'{key}{what}']:.3f}" for key in ("seconds", "processor_seconds") for what in ("_a_step", "_ratio")
        ]
        losses = [f"{f[key]:.4f}" for key in ("loss", "task_loss")]
        print(f"| {' | '.join([f'{alpha:g}', *losses, divergence, format(f['val_loss'], '.4f'), score, *times])} |")
    if options.do_predict:
        print(f"\nBLEU on test_2016_flickr, {next(iter(figures.values()))['signature']}")
    if options.json:
        options.json.write_text(
            json.dumps({"options": vars(options), "figures": figures}, default=str, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
