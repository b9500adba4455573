"""Time and memory of the loss alone, with its gradient: ours, the official formula, plain cross-entropy, and a copy.

    python benchmarks/bench_loss.py

Every candidate gets the same logits of two passes, (2N, C), and computes their gradient. The peers are the formula of
the official README (cross-entropy of both passes, `kl_div` both ways), plain cross-entropy on the same doubled logits
without R-Drop, and a copy of the logits: no gradient can be made faster than that. The candidates take turns. A time is
the median over rounds, release of the gradient included. Memory is the highest resident memory during one call, less
what was held before and less the gradient (on a GPU, of the CUDA allocator).
"""

import argparse
import gc
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from results import (
    freed_memory_given_back,
    high_water,
    machine,
    mark,
    reset_high_water,
    resident,
    save,
    seconds_between,
    table,
)

from rdrop_trainer.losses import rdrop_loss

SHAPES = ((64, 2), (64, 119), (512, 32_000), (256, 151_936))
ALPHA = 1.0


def official(logits, labels):
    """The formula in the README of dropreg/R-Drop, with the KL summed over classes and averaged over rows."""
    first, second = logits.chunk(2)
    cross_entropy = 0.5 * (F.cross_entropy(first, labels) + F.cross_entropy(second, labels))
    p, q = F.log_softmax(first, -1), F.log_softmax(second, -1)
    there = F.kl_div(p, F.softmax(second, -1), reduction="none").sum()
    back = F.kl_div(q, F.softmax(first, -1), reduction="none").sum()
    return cross_entropy + ALPHA * (there + back) / 2 / len(labels)


def plain(logits, labels):
    """Cross-entropy alone."""
    return F.cross_entropy(logits, labels.repeat(2))


def ours(implementation, logits, labels):
    return rdrop_loss(logits, labels, alpha=ALPHA, implementation=implementation).loss


def step(loss, logits, labels):
    """Compute loss and gradient, and release the gradient."""
    loss(logits, labels).backward()
    logits.grad = None


def copy(logits, labels):
    logits.detach().clone()


def candidates(options):
    losses = {"plain": plain, "official": official, "reference": partial(ours, "reference")}
    losses["auto"] = partial(ours, "auto")
    if torch.cuda.is_available():
        losses["chunked"] = partial(ours, "chunked")
    if options.compile:
        losses["compiled"] = torch.compile(partial(ours, "reference"))
    return {"copy": copy} | {name: partial(step, loss) for name, loss in losses.items()}


def measure(items, classes, options, names=None):
    """Milliseconds and extra MiB for one shape, of every candidate or of those of some names."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype)
    logits = (torch.randn(2 * items, classes, device=device) * 2).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (items,), device=device)
    size = logits.numel() * logits.element_size() / 2**20
    calls = max(1, min(1000, 2**20 // logits.numel()))  # tiny shapes: many calls, or the clock is all that is measured
    found = {name: run for name, run in candidates(options).items() if names is None or name in names}
    times, extra = {name: [] for name in found}, {}
    for warms_up in (True, *[False] * options.rounds):
        for name, run in found.items():
            if warms_up:
                run(logits, labels)
                continue
            start = mark()
            for _ in range(calls):
                run(logits, labels)
            (seconds,) = seconds_between([start, mark()])
            times[name].append(seconds / calls * 1e3)
    with freed_memory_given_back():
        for name, run in found.items():
            gc.collect()
            before = resident()
            reset_high_water()
            run(logits, labels)
            extra[name] = max(0.0, high_water() - before - size)
    ms = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "ms": ms[name],
            "x plain": ms[name] / ms["plain"],
            **({"official / it": ms["official"] / ms[name]} if "official" in ms else {}),
            "extra MiB": extra[name],
            "extra, % of logits": 100 * extra[name] / size,
        }
        for name in found
    }


def draw(results, path):
    """Draw the time of each candidate, as a multiple of plain cross-entropy's, for the large shapes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    large = [shape for shape in results if "plain" in results[shape] and results[shape]["plain"]["ms"] > 10]
    names = {
        "copy": "a copy of the logits",
        "auto": "ours",
        "plain": "plain cross-entropy",
        "official": "official formula",
    }
    figure, axes = plt.subplots(1, len(large), figsize=(4.2 * len(large), 2.4), layout="constrained", squeeze=False)
    for axis, shape in zip(axes[0], large, strict=True):
        values = [results[shape][name]["x plain"] for name in names]
        bars = axis.barh(list(names.values()), values, color=["#bbbbbb", "#2a7f62", "#8da9c4", "#c97b63"])
        axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
        axis.set_xlim(0, 1.15 * max(values))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(f"logits (2 x {shape.replace(' x ', ', ')})", fontsize=10)
        axis.set_xlabel("time, plain cross-entropy = 1")
    for axis in axes[0][1:]:
        axis.set_yticklabels([])
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shapes", nargs="+", default=[f"{n}x{c}" for n, c in SHAPES], metavar="NxC")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the formulas")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--picture", help="also draw them to this file")
    options = parser.parse_args()
    print(machine(), options.dtype, sep=", ")
    results = {}
    for shape in options.shapes:
        items, classes = map(int, shape.split("x"))
        results[f"{items} x {classes:,}"] = measure(items, classes, options)
        print(f"\n{items} items of {classes:,} classes, two passes")
        print(table(results[f"{items} x {classes:,}"]))
    if options.json:
        save(options.json, options, results)
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
