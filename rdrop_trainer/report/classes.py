"""The classes of a comparison: how well each is predicted, and what is taken for what, by both arms."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from .runs import FinishedRun
from .tables import markdown_table

LARGEST = 20  # confusion matrix, in classes


def classes_section(baseline: Sequence[FinishedRun], rdrop: Sequence[FinishedRun]) -> str:
    """Markdown of the scores of each class and of the confusion matrices; empty where runs have none."""
    if not all(run.by_class for run in (*baseline, *rdrop)):
        return ""
    names = list(rdrop[0].by_class["scores"])
    header = ["class", "rows", *(f"{score}: baseline / R-Drop" for score in ("precision", "recall", "F1"))]
    rows = [
        [
            name,
            f"{rdrop[0].by_class['scores'][name]['rows']:,}",
            *(
                f"{_percent(baseline, name, score)} / {_percent(rdrop, name, score)}"
                for score in ("precision", "recall", "f1")
            ),
        ]
        for name in names
    ]
    parts = [f"In %, mean ± standard deviation over the seeds.\n\n{markdown_table(header, rows)}"]
    if len(names) <= LARGEST:
        parts += [
            f"Confusion matrix of {arm}, rows of data over all seeds: labels down, predictions across.\n\n"
            + _matrix(runs, names)
            for arm, runs in (("the baseline", baseline), ("R-Drop", rdrop))
        ]
    return "\n\n".join(parts)


def _percent(runs: Sequence[FinishedRun], name: str, score: str) -> str:
    values = [100 * run.by_class["scores"][name][score] for run in runs]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _matrix(runs: Sequence[FinishedRun], names: Sequence[str]) -> str:
    def count(label: str, predicted: str) -> int:
        return sum(run.by_class["confusion"].get(label, {}).get(predicted, 0) for run in runs)

    return markdown_table(["", *names], [[label, *(f"{count(label, name):,}" for name in names)] for label in names])
