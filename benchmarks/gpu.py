"""The figures that are to be reached on a GPU, each beside its target: the loss, the fused head, and training steps.

    python benchmarks/gpu.py --json gpu.json

The fused head and the training steps are in bf16. Times are medians, taken with CUDA events; memory is the CUDA
allocator's. The JSON is written after every measurement. `--tiny` runs small sizes, on a CPU too, to try the program:
its figures mean nothing.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import bench_loss
import torch
import training
from results import high_water, machine, mark, reset_high_water, resident, save, seconds_between, table
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rdrop_trainer.losses import rdrop_linear_loss, rdrop_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Items, classes, type
LOSSES = [
    (8192, 151_936, "bfloat16"),
    (2048, 151_936, "float32"),
    (4096, 32_000, "bfloat16"),
    (512, 32_000, "float32"),
    (64, 2, "float32"),
    (4096, 9, "float32"),
]
HEAD = (4096, 896, 151_936)  # items, hidden size, classes
STEPS = {
    "bert": ("Trainer", "concat", "sequential", "recompute"),
    "bart": ("Trainer", "concat", "fused, concat"),
    "qwen2": ("Trainer", "fused, concat", "fused, recompute", "fused, checkpointing"),
}
TINY = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass
class Row:
    """A measure beside its target.

    Attributes:
        measure: its name.
        value: takes it out of the results; a KeyError says that it is not among them.
        target: to be reached.
        unit: of both.
        at_least: the target is a lower bound, else an upper one.
    """

    measure: str
    value: Callable[[], float]
    target: float
    unit: str = ""
    at_least: bool = False

    def __str__(self):
        bound = f"{'>=' if self.at_least else '<='} {self.target:g}{self.unit}"
        try:
            value = self.value()
        except KeyError:
            return f"{self.measure:70s}{'-':>12s}{bound:>14s}  not measured"
        met = value >= self.target if self.at_least else value <= self.target
        return f"{self.measure:70s}{f'{value:.3g}{self.unit}':>12s}{bound:>14s}  {'met' if met else 'MISSED'}"


# ---- The loss of logits ----


def loss(items, classes, dtype, rounds):
    """As `bench_loss.py` measures it; and the milliseconds for which kernels run in one call."""
    options = argparse.Namespace(dtype=dtype, rounds=rounds, compile=False)
    found = bench_loss.measure(items, classes, options, ("copy", "plain", "official", "auto"))
    if DEVICE == "cuda":
        logits = torch.randn(2 * items, classes, device=DEVICE, dtype=getattr(torch, dtype)).requires_grad_()
        labels = torch.randint(0, classes, (items,), device=DEVICE)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            rdrop_loss(logits, labels, alpha=1.0).loss.backward()
            torch.cuda.synchronize()
        found["auto"]["kernels ms"] = sum(event.self_device_time_total for event in profile.key_averages()) / 1e3
    return found


def rows_of_losses(results, shapes):
    names = [f"loss, {n} x {c}, {dtype}" for n, c, dtype in shapes]

    def ratio(name, over, to, key="ms"):
        return results[name][over]["ms"] / results[name][to][key]

    for name, target in ((names[0], 75), (names[1], 80)):
        for what, key in (("of a copy's speed", "ms"), ("the same, kernels alone", "kernels ms")):
            share = partial(ratio, name, "copy", "auto", key)
            yield Row(f"{name}: {what}", lambda share=share: 100 * share(), target, " %", at_least=True)
    for name, target in ((names[2], 0.5), (names[3], 0.3)):
        yield Row(name, lambda name=name: results[name]["auto"]["ms"], target, " ms")
    for name in names[4:]:
        yield Row(f"{name}: x plain", partial(ratio, name, "auto", "plain"), 1.5)


# ---- The fused head ----


def head(items, size, classes, rounds):
    """Milliseconds, and the most MiB beside hidden states and weights, of the fused head and its peers."""
    torch.manual_seed(0)
    hidden = torch.randn(2 * items, size, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(classes, size, device=DEVICE) / size**0.5).bfloat16().requires_grad_()
    labels = torch.randint(0, classes, (items,), device=DEVICE)
    doubled = labels.repeat(2)

    candidates = {
        "fused": lambda: rdrop_linear_loss(hidden, weight, labels, alpha=1.0).loss,
        "logits, then rdrop_loss": lambda: rdrop_loss(hidden @ weight.T, labels, alpha=1.0).loss,
    }
    if find_spec("cut_cross_entropy") and DEVICE == "cuda":
        from cut_cross_entropy import linear_cross_entropy

        candidates["cut-cross-entropy, no R-Drop"] = lambda: linear_cross_entropy(hidden, weight, doubled)
    if find_spec("liger_kernel") and DEVICE == "cuda":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        candidates["Liger, no R-Drop"] = lambda: LigerFusedLinearCrossEntropyLoss()(weight, hidden, doubled)
    found = {}
    for name, candidate in candidates.items():
        times = []
        for _ in range(rounds + 1):  # the first warms up
            gc.collect()
            reset_high_water()
            before, start = resident(), mark()
            candidate().backward()
            times += seconds_between([start, mark()])
            peak = high_water() - before
            hidden.grad = weight.grad = None
        found[name] = {"ms": statistics.median(times[1:]) * 1e3, "peak MiB": peak}
    return found


# ---- Training steps ----


def build(name, tiny):
    """A model, from scratch, and a batch."""
    if name == "bert":
        config = BertConfig(**TINY) if tiny else BertConfig()  # base
        (n, length), model = ((4, 16) if tiny else (32, 128)), BertForSequenceClassification
    elif name == "bart":
        small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        config = BartConfig(**small, decoder_ffn_dim=64, encoder_ffn_dim=64) if tiny else BartConfig()  # large
        (n, length), model = ((2, 16) if tiny else (16, 256)), BartForConditionalGeneration
    else:
        sizes = {"num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14, "intermediate_size": 4864}
        config = Qwen2Config(
            vocab_size=151_936, num_key_value_heads=2, attention_dropout=0.1, tie_word_embeddings=True,
            **(TINY if tiny else sizes),
        )  # fmt: skip
        (n, length), model = ((1, 8) if tiny else (8, 1024)), Qwen2ForCausalLM
    ids = torch.randint(5, config.vocab_size, (n, length))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    if name == "bert":
        rows = [
            {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 2} for i, row in enumerate(ids)
        ]
    elif name == "bart":
        rows = [{"input_ids": row, "labels": row[: length // 2]} for row in ids]
    with torch.device(DEVICE):
        return model(config), rows


def step(name, case, tiny, steps):
    torch.manual_seed(0)
    model, rows = build(name, tiny)
    reset_high_water()
    found = training.train(model, rows, case, steps, bf16=True, use_cpu=DEVICE == "cpu")
    return {case: {"ms": found["seconds"] * 1e3, "peak MiB": found["peak MiB"], "before MiB": found["before MiB"]}}


def rows_of_steps(results):
    def ratio(model, case, to="Trainer", of="ms"):
        return results[f"step, {model}, {case}"][case][of] / results[f"step, {model}, {to}"][to][of]

    yield Row("BART-large, 16 x (256, 128): fused / logits", partial(ratio, "bart", "fused, concat", "concat"), 1.03)
    yield Row("BERT-base, 32 x 128: recompute / sequential", partial(ratio, "bert", "recompute", "sequential"), 1.35)
    for case, time, memory in (("concat", 1.91, 0.991), ("recompute", 2.66, 0.633), ("checkpointing", 2.21, 0.287)):
        name, fused = f"Qwen2-0.5B, 8 x 1,024, {case}, fused", f"fused, {case}"
        yield Row(f"{name}: time / Trainer", partial(ratio, "qwen2", fused), time)
        yield Row(f"{name}: peak memory / Trainer", partial(ratio, "qwen2", fused, of="peak MiB"), memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the loss and the head; default 7")
    parser.add_argument("--steps", type=int, default=12, help="of a training, the first of which warms up; default 12")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--json", help="also write the figures to this file, as they come")
    options = parser.parse_args()
    if DEVICE == "cpu" and not options.tiny:
        sys.exit("benchmarks/gpu.py needs a GPU, and torch sees none here; --tiny tries the program on a CPU.")
    shapes = [(min(n, 64), min(c, 1000), dtype) for n, c, dtype in LOSSES] if options.tiny else LOSSES
    sizes = (64, 32, 1000) if options.tiny else HEAD
    tasks = {f"loss, {n} x {c}, {dtype}": partial(loss, n, c, dtype, options.rounds) for n, c, dtype in shapes}
    tasks["head"] = partial(head, *sizes, options.rounds)
    for model, cases in STEPS.items():
        for case in cases:
            tasks[f"step, {model}, {case}"] = partial(step, model, case, options.tiny, options.steps)

    print(machine(), flush=True)
    results = {}
    for name, measure in tasks.items():
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        try:
            results[name] = measure()
        except Exception as error:  # the others are worth measuring
            print(f"\n{name}: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"\n{name}\n{table(results[name])}", flush=True)
        if options.json:
            save(options.json, options, results)

    fused = "fused head, 2 x {:,} x {} -> {:,}".format(*sizes)
    in_head = [
        Row(f"{fused}: time", lambda: results["head"]["fused"]["ms"], 12, " ms"),
        Row(f"{fused}: memory", lambda: results["head"]["fused"]["peak MiB"], 800, " MiB"),
    ]
    rows = [*rows_of_losses(results, shapes), *in_head, *rows_of_steps(results)]
    print("\n".join(["", machine(), "", *map(str, rows)]))
    if len(results) < len(tasks):
        sys.exit(1)


if __name__ == "__main__":
    main()
