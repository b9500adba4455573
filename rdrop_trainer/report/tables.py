"""The quantities of a comparison as tables."""

from __future__ import annotations

from collections.abc import Sequence

from .quantities import Quantity

NOTHING = 1e-9  # a smaller difference is the rounding error of equal numbers
ARMS = {"baseline": "baseline", "rdrop": "R-Drop"}


def comparison_table(quantities: Sequence[Quantity]) -> str:
    """A row for each quantity: both arms, their difference, its interval and tests."""
    header = ["", "baseline", "R-Drop", "best", "worst", "difference", "95 % interval", "p", "p (sign flips)", "spread"]
    return markdown_table(header, [_row(quantity) for quantity in quantities])


def _row(quantity: Quantity) -> list[str]:
    d, s = quantity.difference, quantity.spread
    ends = [" / ".join(short(quantity.describe(arm)[end]) for arm in ARMS) for end in ("best", "worst")]
    interval = "" if d.low is None else f"{short(d.low)} to {short(d.high)}"
    spread = "" if s.ratio is None else f"{s.ratio:.2f} ({s.low:.2f} to {s.high:.2f})"
    means = [mean_std(quantity, arm) for arm in ARMS]
    return [
        named(quantity),
        *means,
        *ends,
        difference(quantity),
        interval,
        p_value(d.p_value),
        p_value(d.p_sign_flips),
        spread,
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; names of labels may hold the sign between cells."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def named(quantity: Quantity) -> str:
    """The name of a quantity, with its unit."""
    return f"{quantity.name} ({quantity.unit})" if quantity.unit else quantity.name


def mean_std(quantity: Quantity, arm: str) -> str:
    """Mean and standard deviation of an arm over seeds."""
    found = quantity.describe(arm)
    return short(found["mean"]) + ("" if found["std"] is None else f" ± {short(found['std'])}")


def difference(quantity: Quantity) -> str:
    """The mean difference, with its sign."""
    return signed(quantity.difference.mean)


def signed(value: float) -> str:
    """As `short`, with a plus before what is above 0."""
    return f"{'+' if value >= NOTHING else ''}{short(value)}"


def short(value: float | None) -> str:
    """Two decimals, or three digits of a small number; "-" for an unknown value."""
    if value is None:
        return "-"
    if abs(value) < NOTHING:
        return "0.00"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def p_value(value: float | None) -> str:
    """Three decimals; empty where there was no test."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
