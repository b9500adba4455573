"""Pictures of a comparison: scores by seed, learning curves, flip rates. They need Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .quantities import Quantity
from .runs import FinishedRun
from .tables import ARMS, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito, which colour-blind readers can tell apart; marker and line differ too, for grey
_STYLE: dict[str, dict[str, Any]] = {
    "baseline": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "rdrop": {"color": "#D55E00", "marker": "D", "linestyle": "--"},
}
_WIDTH, _DPI = 8.0, 200  # inches: 1,600 pixels, shown at about half of that
_MOST_PANELS = 4
_CAPTION_OF_CURVES = "Task loss and divergence of some training rows, under dropout, while it trains"
_CURVES = {"probe_loss": "task loss", "probe_divergence": "divergence"}


def draw_pictures(
    baseline: Sequence[FinishedRun], rdrop: Sequence[FinishedRun], quantities: Sequence[Quantity], folder: Path
) -> dict[Path, str]:
    """Draw the pictures for which there is data.

    Args:
        baseline, rdrop: the runs, of the same seeds in the same order.
        quantities: of the runs.
        folder: the folder to write the files to.

    Returns:
        PNG file -> caption; empty without Matplotlib.
    """
    if find_spec("matplotlib") is None:
        return {}
    scores = [q for q in quantities if q.group == "score" and q.key != "loss"][:_MOST_PANELS]
    seeds = [run.seed for run in rdrop]
    flips = [q for q in quantities if q.key.endswith("flip_rate") and _has_values(q)]
    arms = {"baseline": baseline, "rdrop": rdrop}
    is_regression = any(run.is_regression for run in [*baseline, *rdrop])
    curves = {key: {arm: _curves(runs, key) for arm, runs in arms.items()} for key in _CURVES}
    curves = {key: lines for key, lines in curves.items() if all(lines.values())}
    drawn = {}
    for name, caption, figure in (
        ("scores.png", "Scores by seed; the lines are means", _draw_scores(scores, seeds)),
        ("curves.png", _CAPTION_OF_CURVES, _draw_curves(curves, is_regression)),
        ("flips.png", "Predictions that change under dropout and under small edits of the text", _draw_flips(flips)),
    ):
        if figure is not None:
            figure.savefig(folder / name, dpi=_DPI)
            drawn[folder / name] = caption
    return drawn


def draw_curves(
    log_history: Sequence[Mapping[str, Any]], alpha: float, folder: Path, is_regression: bool = False
) -> dict[Path, str]:
    """Draw the learning curves that a `DivergenceProbe` logged in one run.

    Args:
        log_history: `trainer.state.log_history`.
        alpha: of R-Drop.
        folder: the folder to write `curves.png` to.
        is_regression: whether the task is a regression, whose losses are not in nats.

    Returns:
        PNG file -> caption; empty without a curve, or without Matplotlib.
    """
    run = FinishedRun(0, alpha, {}, log_history=log_history)
    arm = "rdrop" if alpha else "baseline"
    curves = {key: {arm: lines} for key in _CURVES if (lines := _curves([run], key))}
    if not curves or find_spec("matplotlib") is None:
        return {}
    path = folder / "curves.png"
    _draw_curves(curves, is_regression).savefig(path, dpi=_DPI)
    return {path: _CAPTION_OF_CURVES}


def _draw_scores(scores: Sequence[Quantity], seeds: Sequence[int]) -> Figure | None:
    if not scores:
        return None
    figure, panels = _figure(len(scores), height=3.4)
    for axes, score in zip(panels, scores, strict=True):
        places = {"baseline": -0.12, "rdrop": 0.12}
        x = np.arange(len(seeds))
        for i, pair in enumerate(zip(score.baseline, score.rdrop, strict=True)):
            if None not in pair:
                axes.plot([x[i] + place for place in places.values()], pair, color="#999999", linewidth=1, zorder=1)
        for arm, place in places.items():
            values = np.array(getattr(score, arm), dtype=float)
            style = _STYLE[arm]
            axes.plot(x + place, values, style["marker"], color=style["color"], label=ARMS[arm], markersize=6)
            axes.axhline(score.describe(arm)["mean"], color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
        axes.set_xticks(x, [str(seed) for seed in seeds])
        axes.set_xlabel("seed")
        axes.set_ylabel(named(score))
        axes.margins(x=0.08, y=0.15)
    _finish(figure, panels[0])
    return figure


def _draw_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]], is_regression: bool
) -> Figure | None:
    """`curves`: key -> arm -> a line (steps, values) for each run."""
    if not curves:
        return None
    figure, panels = _figure(len(curves), height=3.4)
    for axes, (key, arms) in zip(panels, curves.items(), strict=True):
        for arm, lines in arms.items():
            style = {name: _STYLE[arm][name] for name in ("color", "linestyle")}
            for steps, values in lines:
                axes.plot(steps, values, linewidth=0.7, alpha=0.35, **style)
            shared = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in lines)))
            means = [np.mean([values[steps == step][0] for steps, values in lines]) for step in shared]
            every = max(1, len(shared) // 8)
            axes.plot(shared, means, linewidth=2, label=ARMS[arm], markevery=every, markersize=5, **_STYLE[arm])
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(_CURVES[key] + ("" if is_regression else " (nats)"))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
    _finish(figure, panels[0])
    return figure


def _draw_flips(flips: Sequence[Quantity]) -> Figure | None:
    if not flips:
        return None
    figure, (axes,) = _figure(1, height=1.1 + 0.42 * len(flips))
    y = np.arange(len(flips))[::-1]
    for arm, shift in (("baseline", 0.16), ("rdrop", -0.16)):
        look: dict[str, Any] = {"marker": _STYLE[arm]["marker"], "color": _STYLE[arm]["color"], "linestyle": ""}
        for place, quantity in zip(y, flips, strict=True):
            values = [v for v in getattr(quantity, arm) if v is not None]
            axes.plot(values, [place + shift] * len(values), alpha=0.4, markersize=5, markeredgewidth=0, **look)
            label = ARMS[arm] if place == y[0] else None
            axes.plot(np.mean(values), place + shift, markersize=8, markeredgecolor="black", label=label, **look)
    axes.set_yticks(y, [quantity.name.removeprefix("flipped by").lstrip(": ") for quantity in flips])
    axes.set_xlabel("predictions that change (%); large: mean over seeds")
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    _finish(figure, axes)
    return figure


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(_WIDTH, height * rows), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen, whatever backend the calling program has chosen
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=11)
        each.xaxis.label.set_fontsize(12)
        each.yaxis.label.set_fontsize(12)
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=12)


def _curves(runs: Sequence[FinishedRun], key: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of each run that logged the key."""
    logged = ([(entry["step"], entry[key]) for entry in run.log_history if key in entry] for run in runs)
    return [tuple(np.array(points).T) for points in logged if len(points) > 1]


def _has_values(quantity: Quantity) -> bool:
    return any(quantity.baseline) or any(quantity.rdrop)  # not all None or 0
