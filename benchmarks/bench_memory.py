"""Peak memory of a training: plain `Trainer`, the forward modes, and the fused head.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/bench_memory.py

"Whole process" counts everything, Python and libraries included. "Training" counts what is added after the model was
built: activations, logits, gradients and the state of AdamW. (On a GPU both are the CUDA allocator's.) The variable
makes freed memory go back to the system at once, so that peaks are of memory in use.
"""

from training import compare


def columns(case, trainer):
    training, of_trainer = (run["peak MiB"] - run["before MiB"] for run in (case, trainer))
    return {
        "whole process, MiB": case["peak MiB"],
        "x Trainer": case["peak MiB"] / trainer["peak MiB"],
        "training, MiB": training,
        "x Trainer's": training / of_trainer,
    }


def draw(results, path):
    """Draw the peak of the training, as a multiple of plain Trainer's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4 * len(results), 2.6), layout="constrained", squeeze=False)
    for axis, (title, rows) in zip(axes[0], results.items(), strict=True):
        values = [row["x Trainer's"] for row in rows.values()]
        colours = ["#8da9c4" if name == "Trainer" else "#2a7f62" for name in rows]
        axis.bar_label(axis.barh(list(rows), values, color=colours), [f"{value:.2f}" for value in values], padding=3)
        axis.axvline(1, color="#555555", linewidth=0.8)
        axis.set_xlim(0, 1.18 * max(values))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(title.replace(": ", ":\n").replace(", ", "\n", 1), fontsize=8)
        axis.set_xlabel("peak memory of the training, Trainer = 1", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    compare(__doc__, columns, draw)
