"""Time of a training step: plain `Trainer`, the forward modes, and the fused head.

    python benchmarks/bench_step.py

One process per training, several rounds in turn. Seconds are medians, to be compared only within one run.
"""

from training import compare


def columns(case, trainer):
    return {"s a step": case["seconds"], "x Trainer": case["seconds"] / trainer["seconds"]}


if __name__ == "__main__":
    compare(__doc__, columns)
