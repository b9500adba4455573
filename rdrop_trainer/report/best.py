"""The best run of each arm: where it lies, which of its weights were scored, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..run_folder import how_to_load
from .quantities import Quantity
from .runs import FinishedRun
from .scored import weights_of
from .tables import markdown_table, named, short


@dataclass(frozen=True)
class Best:
    """The best run of each arm by a score.

    Attributes:
        score: the quantity.
        runs: by arm.
        arm: the one whose run is the best of all.
        tried: number of runs that they are the best of.
    """

    score: Quantity
    runs: Mapping[str, FinishedRun]
    arm: str
    tried: int

    def lines(self) -> list[str]:
        """For the terminal."""
        run = self.runs[self.arm]
        first, *others = ("; ".join(way) for way in how_to_load(run.folder, run.pipeline))
        what = f"{self.arm}, seed {run.seed}, {weights_of(run)}"
        return [
            f"best      {run.folder}: {what}, {named(self.score)} {self._value(run)}",
            f"load      {first}",
            *(f"or        {line}" for line in others),
        ]

    def markdown(self) -> str:
        """A table, and the lines that load the best of all."""
        header = ["arm", "folder", "weights that were scored", named(self.score)]
        rows = [[arm, f"`{run.folder}`", weights_of(run), self._value(run)] for arm, run in self.runs.items()]
        run = self.runs[self.arm]
        load = "\n".join(line for way in how_to_load(run.folder, run.pipeline) for line in way)
        caution = f"The best of {self.tried} runs are picked by the rows that the score is of, so it is optimistic."
        return f"{markdown_table(header, rows)}\n\n{caution} The best of all loads with\n\n```python\n{load}\n```"

    def as_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "score": self.score.key,
            "arm": self.arm,
            "runs": {
                arm: {
                    "folder": str(run.folder),
                    "seed": run.seed,
                    "weights": weights_of(run),
                    "score": self._value(run),
                }
                for arm, run in self.runs.items()
            },
        }

    def _value(self, run: FinishedRun) -> str:
        return short(self.score.in_its_unit(run.known(self.score.key)))


def best_of(arms: Mapping[str, Sequence[FinishedRun]], quantities: Sequence[Quantity]) -> Best | None:
    """The best run of each arm by the first score; None unless every arm has runs with a folder and that score."""
    score = next((quantity for quantity in quantities if quantity.group == "score"), None)
    if score is None:
        return None
    known = {
        arm: [run for run in runs if run.folder is not None and run.known(score.key) is not None]
        for arm, runs in arms.items()
    }
    if not all(known.values()):
        return None

    def merit(run: FinishedRun) -> float:
        return run.known(score.key) * (1 if score.higher_is_better else -1)

    best = {arm: max(runs, key=merit) for arm, runs in known.items()}
    return Best(score, best, max(best, key=lambda arm: merit(best[arm])), sum(map(len, known.values())))
