"""Time of a training step: plain `Trainer`, the forward modes, and the fused output head.

    python benchmarks/bench_step.py

One process per training, several rounds in turn; seconds are medians, to be compared within a run only.
"""

from training import compare


def columns(case, trainer):
    return {"s a step": case["seconds"], "x Trainer": case["seconds"] / trainer["seconds"]}


if __name__ == "__main__":
    compare(__doc__, columns)
