"""Which weights of the runs were scored, and the best run of each arm: where it lies, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..run_folder import how_to_load, lines_to_load
from .quantities import Quantity, first_score, in_words
from .runs import FinishedRun
from .tables import markdown_table, named, short

_AT_THE_END = "the weights at the end of the training"


def scored_sentence(arms: Mapping[str, Sequence[FinishedRun]]) -> str:
    """The rule by which the weights were chosen that are scored."""
    rules = {arm: _rule(runs) for arm, runs in arms.items()}
    first = next(iter(rules.values()))
    if len(set(rules.values())) > 1:
        said = "; ".join(f"{arm}: {rule}" for arm, rule in rules.items())
        return f"Scored, by different rules, so that the arms cannot be compared without care: {said}."
    said = f"Scored, by one rule for all arms: {first}."
    if first == _AT_THE_END:
        return said
    return f"{said} The rows that chose it are among those that are scored, so the scores of all arms are optimistic."


def _rule(runs: Sequence[FinishedRun]) -> str:
    settings = runs[0].settings
    if not settings.get("load_best_model_at_end"):
        chosen = any(run.scored_step is not None for run in runs)
        return "a checkpoint that was chosen while the run trained" if chosen else _AT_THE_END
    metric = in_words(str(settings.get("metric_for_best_model") or "loss").removeprefix("eval_"))
    return f"the checkpoint with the {'highest' if settings.get('greater_is_better') else 'lowest'} {metric}"


def weights_of(run: FinishedRun) -> str:
    """Which weights of a run are scored."""
    if run.scored_step is not None:
        return f"checkpoint-{run.scored_step}"
    return "end of training" + (f" (step {run.last_step})" if run.last_step else "")


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
        what = f"{self.arm}, seed {run.seed}, {weights_of(run)}, {named(self.score)} {self._value(run)}"
        return [f"best      {run.folder}: {what}", *lines_to_load(run.folder, run.pipeline)]

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
    score = first_score(quantities)
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
