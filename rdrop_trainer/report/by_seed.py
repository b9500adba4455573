"""Pictures of what runs end with: their scores by seed, and the predictions that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import figure_of, finish, label, looks
from .quantities import Quantity
from .runs import FinishedRun
from .tables import ARMS, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BETWEEN = 0.48  # between the first and the last arm of a seed; seeds are 1 apart


def draw_scores(scores: Sequence[Quantity], arms: Mapping[str, Sequence[FinishedRun]], title: str) -> Figure | None:
    """Scores by seed, with the means as lines."""
    if not scores:
        return None
    seeds = [run.seed for run in arms["rdrop"]]
    figure, panels = figure_of(len(scores), 3.4)
    places = np.linspace(-_BETWEEN / 2, _BETWEEN / 2, len(arms)) if len(arms) > 2 else (-0.12, 0.12)
    for axes, score in zip(panels, scores, strict=True):
        values = {arm: _by_seed(score, runs) for arm, runs in arms.items()}
        for i, seed in enumerate(seeds):
            of_seed = [(i + place, values[arm].get(seed)) for arm, place in zip(arms, places, strict=True)]
            known = [point for point in of_seed if point[1] is not None]
            axes.plot(*zip(*known, strict=True), color="#999999", linewidth=1, zorder=1) if len(known) > 1 else None
        for (arm, look), place in zip(looks(arms).items(), places, strict=True):
            points = [(i + place, values[arm][seed]) for i, seed in enumerate(seeds) if seed in values[arm]]
            if points:
                axes.plot(*zip(*points, strict=True), label=label(arm), markersize=6, **look | {"linestyle": ""})
                line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.2}
                axes.axhline(_mean(arm, values), **line)
        axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
        axes.set_xlabel("seed")
        axes.set_ylabel(named(score))
        axes.margins(x=0.08, y=0.15)
    return finish(figure, panels[0], title)


def _by_seed(score: Quantity, runs: Sequence[FinishedRun]) -> dict[int, float]:
    """Seed -> score in the unit of a quantity, where it is known."""
    return {run.seed: score.in_its_unit(value) for run in runs if (value := run.known(score.key)) is not None}


def _mean(arm: str, values: Mapping[str, Mapping[int, float]]) -> float:
    """Over the seeds that the tables count: those of which the baseline and the arm are known."""
    other = values["rdrop" if arm == "baseline" else "baseline"]
    return mean([value for seed, value in values[arm].items() if seed in other] or values[arm].values())


def draw_flips(flips: Sequence[Quantity], title: str) -> Figure | None:
    """The shares of predictions that change, a row for each cause."""
    if not flips:
        return None
    figure, (axes,) = figure_of(1, 1.4 + 0.42 * len(flips))
    y = np.arange(len(flips))[::-1]
    for (arm, style), shift in zip(looks(ARMS).items(), (0.16, -0.16), strict=True):
        look: dict[str, Any] = style | {"linestyle": "", "clip_on": False}
        for place, quantity in zip(y, flips, strict=True):
            values = [v for v in getattr(quantity, arm) if v is not None]
            axes.plot(values, [place + shift] * len(values), alpha=0.4, markersize=5, markeredgewidth=0, **look)
            once = label(arm) if place == y[0] else None
            axes.plot(np.mean(values), place + shift, markersize=8, markeredgecolor="black", label=once, **look)
    axes.set_yticks(y, [quantity.name.removeprefix("flipped by").lstrip(": ") for quantity in flips])
    axes.set_xlabel("predictions that change (%); large: mean over seeds")
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(flips) - 0.4)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return finish(figure, axes, title)
