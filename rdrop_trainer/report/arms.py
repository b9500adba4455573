"""The arms of a comparison: plain fine-tuning, R-Drop, and those that were asked for beside the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..run_folder import comparable_settings
from .quantities import Quantity, first_score, quantities_of
from .runs import FinishedRun, check_alike, rdrop_settings, same_seeds
from .tables import ARMS, difference, markdown_table, mean_std, named, short

PLAIN, RDROP, LONGER, DROPOUT = "plain", "rdrop", "plain_longer", "dropout"
_SHOWN = ("dropout_flip_rate", "edits_flip_rate", "expected_calibration_error", "train_seconds")


@dataclass(frozen=True)
class Versus:
    """One arm against another, on the seeds that both have.

    Attributes:
        arm: its name; in the quantities it stands as `rdrop`.
        against: the other's; there it stands as `baseline`.
        quantities: what was compared.
    """

    arm: str
    against: str
    quantities: Sequence[Quantity]

    def get(self, key: str) -> Quantity | None:
        """The quantity of a key; None where it is not known of both arms."""
        return next((quantity for quantity in self.quantities if quantity.key == key), None)


def compare_arms(arms: Mapping[str, Sequence[FinishedRun]]) -> list[Versus]:
    """R-Drop and every further arm against plain; against `plain_longer` and `dropout` all that have R-Drop."""
    for runs in arms.values():
        check_alike(runs, lambda settings: comparable_settings(settings) | rdrop_settings(settings))
    pairs = [(name, PLAIN) for name in arms if name != PLAIN]
    with_rdrop = [name for name, runs in arms.items() if any(run.alpha for run in runs)]
    pairs += [(name, against) for against in (LONGER, DROPOUT) if against in arms for name in with_rdrop]
    found = ((arm, against, same_seeds(arms[against], arms[arm])) for arm, against in pairs)
    return [Versus(arm, against, quantities_of(*runs)) for arm, against, runs in found if runs[0]]


def dropout_sentence(plain: FinishedRun, rdrop: FinishedRun, found: Sequence[Versus]) -> str:
    """What of a difference is R-Drop's where it also had another dropout; empty where it had the same."""
    values = [run.settings.get("rdrop_dropout") for run in (rdrop, plain)]
    if values[0] == values[1]:
        return ""
    ours, theirs = ("the model's own dropout" if value is None else f"dropout {value:g}" for value in values)
    said = f"R-Drop trained with {ours}, the baseline with {theirs}"
    same = next((versus for versus in found if (versus.arm, versus.against) == (RDROP, DROPOUT)), None)
    score = first_score(same.quantities) if same else None
    if score is None:
        return f"{said}: which of the two made a difference was not asked (--arms plain rdrop dropout asks it)."
    return f"{said}; beside a baseline with {ours} the difference in {named(score)} is {_with_interval(score)}."


def arms_section(found: Sequence[Versus]) -> str:
    """The tables of a comparison of more than two arms: what each came to, and the differences."""
    first = found[0]
    shown = [q for q in first.quantities if q.group == "score" or q.key in _SHOWN]
    of_plain = [versus for versus in found if versus.against == PLAIN]
    means = [[_label(PLAIN), *(mean_std(quantity, "baseline") for quantity in shown)]]
    means += [[_label(versus.arm), *_cells(versus, shown, lambda q: mean_std(q, "rdrop"))] for versus in of_plain]
    differences = [
        [f"{_label(versus.arm)} - {_label(versus.against)}", *_cells(versus, shown, _with_interval)] for versus in found
    ]
    header = ["", *map(named, shown)]
    return f"{markdown_table(header, means)}\n\n{markdown_table(header, differences)}"


def _label(arm: str) -> str:
    """As the rest of the report names it."""
    return {PLAIN: ARMS["baseline"], RDROP: ARMS["rdrop"]}.get(arm, arm)


def _cells(versus: Versus, shown, write) -> list[str]:
    return ["" if (quantity := versus.get(q.key)) is None else write(quantity) for q in shown]


def _with_interval(quantity: Quantity) -> str:
    d = quantity.difference
    return difference(quantity) + ("" if d.low is None else f" ({short(d.low)} to {short(d.high)})")
