"""Which pictures a comparison has, and what they show. They need Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .by_seed import draw_flips, draw_scores
from .calibration import draw_reliability
from .figures import DPI
from .over_time import draw_against_seconds, draw_learning_curves
from .quantities import Quantity
from .runs import FinishedRun

_MOST_PANELS = 4
_SCORED = "the checkpoint that is scored"
_CAPTION_OF_CURVES = "Task loss and divergence of some training rows, under dropout, while it trains"


def draw_pictures(
    baseline: Sequence[FinishedRun],
    rdrop: Sequence[FinishedRun],
    quantities: Sequence[Quantity],
    folder: Path,
    others: Mapping[str, Sequence[FinishedRun]],
) -> dict[Path, str]:
    """Draw the pictures for which there is data: PNG file -> caption; none without Matplotlib."""
    if find_spec("matplotlib") is None:
        return {}
    both = {"baseline": baseline, "rdrop": rdrop}
    every = {**both, **others}
    scores = [q for q in quantities if q.group == "score"]
    shown = [q for q in scores if q.key != "loss"][:_MOST_PANELS]
    flips = [q for q in quantities if q.key.endswith("flip_rate") and (any(q.baseline) or any(q.rdrop))]
    nats = not any(run.is_regression for run in [*baseline, *rdrop])
    title = _title_of(rdrop)
    drawn = {}
    for name, caption, figure in (
        ("scores.png", "Scores by seed; the lines are means", draw_scores(shown, every, title)),
        (
            "seconds.png",
            f"Scores against seconds of training; thick: mean over the seeds; a star: {_SCORED}",
            draw_against_seconds([*shown[:1], *(q for q in scores if q.key == "loss")], every, title),
        ),
        (
            "curves.png",
            f"{_CAPTION_OF_CURVES}; a star: {_SCORED}",
            draw_learning_curves(both, nats, title),
        ),
        (
            "reliability.png",
            "How often predictions are right, and how many there are, by their confidence; all seeds together",
            draw_reliability(every, title),
        ),
        (
            "flips.png",
            "Predictions that change under dropout and under small edits of the text",
            draw_flips(flips, title),
        ),
    ):
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI)
            drawn[folder / name] = caption
    return drawn


def _title_of(rdrop: Sequence[FinishedRun]) -> str:
    """What the pictures of a comparison are of: task, alpha and number of seeds."""
    name = f"{rdrop[0].name}: " if rdrop[0].name else ""
    return f"{name}R-Drop with alpha {rdrop[0].alpha:g}, {len(rdrop)} seed{'s' * (len(rdrop) > 1)}"


def draw_curves(
    log_history: Sequence[Mapping[str, Any]],
    alpha: float,
    folder: Path,
    is_regression: bool = False,
    *,
    title: str = "",
    scored_step: int | None = None,
) -> dict[Path, str]:
    """Draw the learning curves that a `DivergenceProbe` logged in one run.

    Args:
        log_history: `trainer.state.log_history`.
        alpha: of R-Drop.
        folder: the folder to write `curves.png` to.
        is_regression: whether the task is a regression, whose losses are not in nats.
        title: of the picture; default: alpha.
        scored_step: the step of the checkpoint that is scored; None for the weights at the end.

    Returns:
        PNG file -> caption; empty without a curve, or without Matplotlib.
    """
    if find_spec("matplotlib") is None:
        return {}
    run = FinishedRun(0, alpha, {}, log_history=log_history, scored_step=scored_step)
    title = title or f"alpha {alpha:g}"
    figure = draw_learning_curves({"rdrop" if alpha else "baseline": [run]}, not is_regression, title)
    if figure is None:
        return {}
    path = folder / "curves.png"
    figure.savefig(path, dpi=DPI)
    return {path: f"{_CAPTION_OF_CURVES}; a star: {_SCORED}"}
