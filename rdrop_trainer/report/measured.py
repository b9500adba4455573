"""How much stands behind the stability that a report compares: rows, repeats, and intervals over other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from .runs import FinishedRun
from .tables import ARMS

_PARTS = {"dropout": "flipped by dropout", "edits": "flipped by small edits"}


def measured(baseline: Sequence[FinishedRun], rdrop: Sequence[FinishedRun]) -> str:
    """Sentences on what was measured; empty where the runs do not say it."""
    known = [run.stability for run in [*baseline, *rdrop] if run.stability and run.stability.get("of_rows")]
    if not known:
        return ""
    sentences = [_share(known)]
    for part, what in _PARTS.items():
        both = [[_interval(run, part) for run in pair] for pair in zip(baseline, rdrop, strict=True)]
        pairs = [ends for ends in both if all(ends)]  # of the seeds that the tables count
        if pairs:
            ends = dict(zip(ARMS, zip(*pairs, strict=True), strict=True))
            said = ", ".join(f"{ARMS[arm]} {_percent(found)}" for arm, found in ends.items())
            sentences.append(f"With other rows, the share {what} would lie within: {said}.")
    if len(sentences) > 1:
        sentences.append("These are 95 % intervals (Wilson's, a row counting once), the mean over the seeds.")
    edits = known[0].get("edits") or {}
    if edits.get("unseen"):
        of_all = edits["unseen"] + edits["edited"]
        sentences.append(
            f"{edits['unseen']:,} of {of_all:,} edits leave the model's input ids as they were (its tokenizer does not "
            "tell them apart, or they lie behind the cut), so they do not count."
        )
    return " ".join(sentences)


def _share(known: Sequence[Mapping[str, Any]]) -> str:
    counts, of_rows = {found["rows"] for found in known}, known[0]["of_rows"]
    fewest, most = min(counts), max(counts)
    which = "all " if fewest == of_rows else f"{fewest:,} of " if fewest == most else f"{fewest:,} to {most:,} of "
    said = f"Measured on {which}{of_rows:,} evaluation rows"
    repeats = {(found.get("dropout") or {}).get("num_samples") for found in known}
    if len(repeats) == 1 and None not in repeats:
        said += f", each predicted {min(repeats)} times under dropout"
    if fewest == most < of_rows:
        said += ", the same in every run"
    return said + ("." if fewest == of_rows else "; `--measure full` measures all. Calibration is that of all rows.")


def _interval(run: FinishedRun, part: str) -> list[float] | None:
    return ((run.stability or {}).get(part) or {}).get("flip_interval")


def _percent(intervals: Sequence[Sequence[float]]) -> str:
    low, high = (100 * mean(ends) for ends in zip(*intervals, strict=True))
    return f"{low:.1f} to {high:.1f} %"
