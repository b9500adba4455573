"""Pictures of what happens while runs train; a star marks the checkpoint of a run that is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import SCORED, figure_of, finish, label, looks
from .quantities import Quantity
from .runs import FinishedRun
from .tables import named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {"probe_loss": "task loss", "probe_divergence": "divergence"}
_THICK = 2.0  # the mean over runs
_SCORED_LABEL = "scored weights"


def draw_learning_curves(arms: Mapping[str, Sequence[FinishedRun]], nats: bool, title: str) -> Figure | None:
    """Task loss and divergence by step, as a `DivergenceProbe` logged them; None where an arm has neither."""
    lines = {key: {arm: [_logged(run, key) for run in runs] for arm, runs in arms.items()} for key in CURVES}
    keys = [key for key in CURVES if all(any(len(line) > 1 for line in found) for found in lines[key].values())]
    if not keys:
        return None
    figure, panels = figure_of(len(keys), 3.4)
    for axes, key in zip(panels, keys, strict=True):
        for arm, runs in arms.items():
            _draw_lines(axes, arm, arms, lines[key][arm], [run.scored_step for run in runs])
        axes.plot([], [], color="#ffffff", label=_SCORED_LABEL, **SCORED)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(CURVES[key] + (" (nats)" if nats else ""))
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.margins(x=0.02)
    return finish(figure, panels[0], title)


def draw_against_seconds(
    scores: Sequence[Quantity], arms: Mapping[str, Sequence[FinishedRun]], title: str
) -> Figure | None:
    """Scores against seconds of training; None unless the seconds of all arms are known.

    A run's seconds are spread evenly over its steps. A run without evaluations while it trained is its star alone.
    """
    timed = {arm: [run for run in runs if run.train_seconds] for arm, runs in arms.items()}
    if not scores or not all(timed.values()):
        return None
    figure, panels = figure_of(len(scores), 3.4)
    for axes, score in zip(panels, scores, strict=True):
        for arm, runs in timed.items():
            lines, ends = [], []
            for run in runs:
                points = _logged(run, f"eval_{score.key}")
                last = run.last_step or (points[-1, 0] if len(points) else 1.0)
                scored = last if run.scored_step is None else run.scored_step
                if (value := run.known(score.key)) is not None:
                    before, after = points[points[:, 0] < scored], points[points[:, 0] > scored]
                    points = np.array([*before, (scored, value), *after])
                lines.append(points * (run.train_seconds / last, score.in_its_unit(1.0)))
                ends.append(scored * run.train_seconds / last)
            _draw_lines(axes, arm, arms, lines, ends)
        if any(line.get_linewidth() == _THICK for line in axes.lines):
            axes.plot([], [], color="#ffffff", label=_SCORED_LABEL, **SCORED)
        axes.set_xlabel("seconds of training")
        axes.set_ylabel(named(score))
        axes.set_xlim(left=0)
        axes.margins(y=0.1)
    return finish(figure, panels[0], title)


def _draw_lines(
    axes: Axes,
    arm: str,
    arms: Mapping[str, Sequence[FinishedRun]],
    lines: Sequence[np.ndarray],
    scored: Sequence[float | None],
) -> None:
    """The lines of an arm's runs, thin, their mean, and a star for each run where it is scored (None: at its end)."""
    look = looks(arms)[arm]
    plain = {"color": look["color"], "linestyle": look["linestyle"]}
    drawn = [(line, place) for line, place in zip(lines, scored, strict=True) if len(line)]
    longer = [line for line, _ in drawn if len(line) > 1]
    for line in longer:
        axes.plot(*line.T, linewidth=0.7, alpha=0.35, **plain)
    if longer:
        marks: dict[str, Any] = {"markevery": max(1, min(map(len, longer)) // 8), "markersize": 5}
        axes.plot(*_mean_line(longer), linewidth=_THICK, label=label(arm), **look, **marks)
    for i, (line, place) in enumerate(drawn):
        x = line[-1, 0] if place is None else place
        name = label(arm) if not longer and not i else None
        axes.plot(x, np.interp(x, *line.T), color=look["color"], label=name, zorder=3, **SCORED)


def _mean_line(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of lines (n, 2), by points where they have as many, else over the stretch that all cover."""
    if len({len(line) for line in lines}) == 1:
        places, values = np.mean(lines, axis=0).T
        return places, values
    low, high = max(line[0, 0] for line in lines), min(line[-1, 0] for line in lines)
    places = np.unique(np.concatenate([line[:, 0] for line in lines]))
    places = places[(places >= low) & (places <= high)]
    return places, np.mean([np.interp(places, *line.T) for line in lines], axis=0)


def _logged(run: FinishedRun, key: str) -> np.ndarray:
    """(n, 2) steps and values of what a run logged, a step once; n may be 0."""
    found = {entry["step"]: entry[key] for entry in run.log_history if entry.get(key) is not None and "step" in entry}
    return np.array(sorted(found.items()), dtype=float).reshape(-1, 2)
