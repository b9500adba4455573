"""`--dry_run` of several runs: which they would be, in which folders, and about what they would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .command_line import parse_arguments
from .estimate import duration, size
from .jobs import Job
from .run import run_dry


def plan(title: str, listed: Sequence[str], pending: Sequence[Job], at_once: int, kept: int) -> str:
    """What the runs of a command would be and take. One run of each arm is done dry.

    Args:
        title: the first line, after "Dry run of".
        kept: of how many runs the models and checkpoints are on the disk at the same time.
    """
    lines = [f"Dry run of {title}", *(f"run       {line}" for line in listed)]
    if not pending:
        return "\n".join([*lines, "left      nothing: all runs are finished", "written   nothing"])
    counts = Counter(job.arm for job in pending)
    found = {arm: run_dry(parse_arguments(next(job for job in pending if job.arm == arm).flags)) for arm in counts}
    shown = list(found.values())[:2][-1]  # the baseline comes first
    lines += [f"of which  {shown.title}", *shown.about]
    costs = {arm: one.cost for arm, one in found.items() if one.cost is not None}
    if len(costs) == len(counts):
        seconds = sum(costs[arm].seconds * count for arm, count in counts.items()) / min(at_once, len(pending))
        each = ", ".join(f"{arm} {duration(cost.seconds)}" for arm, cost in costs.items())
        lines.append(
            f"time      about {duration(seconds)} for {len(pending)} runs, {at_once} at a time on {shown.device} (one "
            f"run: {each}), by the first batches"
        )
        most = max(cost.bytes for cost in costs.values())
        lines.append(f"disk      about {size(most * kept)}: {size(most)} for each of {kept} runs")
    return "\n".join([*lines, "written   nothing"])
