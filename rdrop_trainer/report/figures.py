"""How the pictures of a report look: sizes, colours and marks, titles and legends. They need Matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .tables import ARMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
_WIDTH, _TITLE = 8.0, 0.3  # inches: 1,600 pixels, shown at about half of that
_LETTERS = 80  # in a row of the legend
# Colours of Okabe and Ito, which colour-blind readers can tell apart; markers and lines differ too, for grey
_LOOKS = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "D", "--"),
    ("#009E73", "s", "-."),
    ("#CC79A7", "^", ":"),
    ("#56B4E9", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#000000", "P", (0, (1, 3))),
)
SCORED: dict[str, Any] = {
    "marker": "*",
    "markersize": 9,
    "markeredgecolor": "black",
    "markeredgewidth": 0.6,
    "linestyle": "",
}


def looks(arms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Arm -> its `color`, `marker` and `linestyle`; the baseline and R-Drop look the same in every picture."""
    names = list(dict.fromkeys([*ARMS, *arms]))
    return {
        name: dict(zip(("color", "marker", "linestyle"), _LOOKS[i % len(_LOOKS)], strict=True))
        for i, name in enumerate(names)
    }


def label(arm: str) -> str:
    """The name of an arm in a legend."""
    return ARMS.get(arm, arm)


def figure_of(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of some panels in one or two columns, `height` inches a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(_WIDTH, height * rows + _TITLE), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen, whatever backend the calling program has chosen
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=11)
        each.xaxis.label.set_fontsize(12)
        each.yaxis.label.set_fontsize(12)
    return figure, axes


def finish(figure: Figure, axes: Axes, title: str) -> Figure:
    """Put a title and the legend of a panel above all."""
    handles, labels = axes.get_legend_handles_labels()
    in_a_row = len(labels) if sum(len(each) + 6 for each in labels) <= _LETTERS else -(-len(labels) // 2)
    columns = max(1, in_a_row)
    look: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 12, "title": title, "title_fontsize": 12}
    figure.legend(handles, labels, loc="outside upper center", **look)
    return figure
