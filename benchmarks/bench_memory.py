"""Peak memory of a training: plain `Trainer`, the forward modes, and the fused head.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/bench_memory.py

"Whole process" counts everything, Python and libraries included; it is what the picture, the README and
docs/memory-and-speed.md show. "Training" counts what is added after the model was built: activations, logits, gradients
and the state of AdamW. (On a GPU both are the CUDA allocator's.) The variable makes freed memory go back to the system
at once, so that peaks are of memory in use.
"""

from training import compare

# Case -> its name in the picture, the README and docs/memory-and-speed.md
NAMES = {
    "Trainer": "Trainer",
    "concat": "concat, logits made",
    "sequential": "sequential, logits made",
    "recompute": "recompute, logits made",
    "fused, concat": "fused head, concat",
    "fused, recompute": "fused head, recompute",
    "fused, checkpointing": "fused head, concat,\ngradient_checkpointing",
}


def columns(case, trainer):
    training, of_trainer = (run["peak MiB"] - run["before MiB"] for run in (case, trainer))
    return {
        "whole process, MiB": case["peak MiB"],
        "x Trainer": case["peak MiB"] / trainer["peak MiB"],
        "training, MiB": training,
        "x Trainer's": training / of_trainer,
    }


def draw(results, path):
    """Draw the peak of the whole process, as a multiple of plain Trainer's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [NAMES[case] for case in max(results.values(), key=len)]
    figure, axes = plt.subplots(
        1, len(results), figsize=(2.6 * len(results) + 1.6, 3.2), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (title, rows) in zip(axes[0], results.items(), strict=True):
        values = [row["x Trainer"] for row in rows.values()]
        colours = ["#8da9c4" if name == "Trainer" else "#2a7f62" for name in rows]
        places = [names.index(NAMES[case]) for case in rows]
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # so that the line at 1 crosses no figure
        bars = axis.barh(places, values, color=colours)
        axis.axvline(1, color="#555555", linewidth=0.8, zorder=0.5)
        axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, bbox=white)
        axis.set_xlim(0, 1.3 * max(values))
        axis.set_yticks(range(len(names)), names)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(title.replace(": ", ":\n").replace(", ", ",\n"), fontsize=9)
    axes[0][0].invert_yaxis()
    figure.supxlabel("peak memory of the process, Trainer = 1", fontsize=10)
    figure.savefig(path, dpi=180)


if __name__ == "__main__":
    compare(__doc__, columns, draw)
