"""What a report compares: scores, stability, calibration and cost, each one number per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from .paired import PairedDifference, SpreadRatio, paired_difference, spread_ratio
from .runs import FinishedRun

# Last words of score names, for the scores of any task
_SHARES_TO_LOWER = frozenset("wer cer eer ece fpr fnr".split())
_LOWER_IS_BETTER = _SHARES_TO_LOWER | frozenset(
    "loss nll entropy perplexity ppl bpc bpb error ter mse rmse mae mape brier distance".split()
)
_NO_SHARES = _LOWER_IS_BETTER - _SHARES_TO_LOWER | {"bleu", "sacrebleu", "chrf"}  # however small they are
# Kind of small edits -> its name, and what it does
EDIT_KINDS = {
    "swap": ("letters swapped", "two neighbouring letters change places"),
    "drop": ("letter missing", "a letter is left out"),
    "double": ("letter doubled", "a letter stands twice"),
    "slip": ("wrong key", "a letter becomes one beside it on the keyboard"),
    "other_character": ("wrong character", "a Chinese character becomes another common one"),
    "case": ("case changed", "a word's upper and lower case are exchanged"),
    "spacing": ("space added", "a space is doubled, or put between two characters of a text without spaces"),
    "punctuation": ("end mark changed", "the mark at the end is removed, or a full stop is added"),
}


@dataclass(frozen=True)
class Quantity:
    """One number per run, for both arms.

    Attributes:
        name: as the report shows it.
        key: its name in report.json.
        group: "score", "stability", "calibration" or "cost".
        unit: "%", "nats", "s", "MiB" or "".
        higher_is_better: None where neither higher nor lower is better.
        baseline, rdrop: values by seed, in the same order; None where unknown.
        difference: R-Drop minus baseline, paired by seed.
        spread: R-Drop's standard deviation over seeds divided by the baseline's.
    """

    name: str
    key: str
    group: str
    unit: str
    higher_is_better: bool | None
    baseline: tuple[float | None, ...]
    rdrop: tuple[float | None, ...]
    difference: PairedDifference
    spread: SpreadRatio

    def in_its_unit(self, score: float) -> float:
        """A score of a run, which is a share where the unit is "%"."""
        return 100 * score if self.unit == "%" else score

    @property
    def is_known(self) -> bool:
        """Whether both arms have a value for some seed."""
        return self.difference.n > 0

    def describe(self, arm: str) -> dict[str, float | None]:
        """`mean`, `std`, `best` and `worst` of an arm, "baseline" or "rdrop", over the seeds that both arms know. Where
        neither higher nor lower is better, there is no best.
        """
        pairs = [pair for pair in zip(self.baseline, self.rdrop, strict=True) if None not in pair]
        values = [pair[arm == "rdrop"] for pair in pairs]
        std = stdev(values) if len(values) > 1 else None
        ends: tuple[float | None, float | None] = (max(values), min(values))
        if not self.higher_is_better:
            ends = (None, None) if self.higher_is_better is None else ends[::-1]
        return {"mean": mean(values), "std": std, "best": ends[0], "worst": ends[1]}

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        arms = {arm: {"values": list(getattr(self, arm)), **self.describe(arm)} for arm in ("baseline", "rdrop")}
        facts = {"name": self.name, "group": self.group, "unit": self.unit, "higher_is_better": self.higher_is_better}
        difference = {**vars(self.difference), "supported": self.difference.is_supported}
        return {**facts, **arms, "difference": difference, "spread_ratio": vars(self.spread)}


def quantities_of(baseline: Sequence[FinishedRun], rdrop: Sequence[FinishedRun]) -> list[Quantity]:
    """All quantities of runs of the same seeds in the same order; the scores of the headline come first."""
    runs = [*baseline, *rdrop]
    nats = "" if any(run.is_regression for run in runs) else "nats"  # squared differences have no unit

    def compare(name: str, key: str, group: str, unit: str, better: bool | None, of: Callable, scale=1.0) -> Quantity:
        before, after = (tuple(_scaled(of(run), scale) for run in arm) for arm in (baseline, rdrop))
        pairs = [pair for pair in zip(before, after, strict=True) if None not in pair]
        spread = spread_ratio([a for a, _ in pairs], [b for _, b in pairs])
        return Quantity(name, key, group, unit, better, before, after, paired_difference(before, after), spread)

    found = []
    for key in dict.fromkeys(name for run in runs for name in run.known_scores()):
        values = [abs(value) for run in runs if (value := run.known(key)) is not None]
        kind = _kind(key)
        # Shares and correlations are shown times 100, as on leaderboards
        percent = bool(values) and max(values) <= 1 and kind not in _NO_SHARES
        unit, scale = ("%", 100.0) if percent else (nats if kind == "loss" else "", 1.0)
        found.append(
            compare(in_words(key), key, "score", unit, not lower_is_better(key), lambda run, k=key: run.known(k), scale)
        )
    for name, path, unit, scale in (
        ("flipped by dropout", ("dropout", "flip_rate"), "%", 100.0),
        ("divergence under dropout", ("dropout", "divergence"), nats, 1.0),
        ("flipped by small edits", ("edits", "flip_rate"), "%", 100.0),
        ("divergence under small edits", ("edits", "divergence"), nats, 1.0),
        *(
            (f"flipped by: {name}", ("edits", "by_kind", kind, "flip_rate"), "%", 100.0)
            for kind, (name, _) in EDIT_KINDS.items()
        ),
    ):
        found.append(compare(name, "_".join(path), "stability", unit, False, _reader(path), scale))
    for key, better in (("expected_calibration_error", False), ("mean_confidence", None)):
        read = _reader(("calibration", key))
        found.append(compare(key.replace("_", " "), key, "calibration", "%", better, read, 100.0))
    found.append(compare("seconds of training", "train_seconds", "cost", "s", False, lambda run: run.train_seconds))
    found.append(compare("peak memory", "peak_memory", "cost", "MiB", False, lambda run: run.peak_memory, 2.0**-20))
    return [quantity for quantity in found if quantity.is_known]


def lower_is_better(score: str) -> bool:
    """Whether lower values of a score are better, by its name."""
    return _kind(score) in _LOWER_IS_BETTER


def _kind(score: str) -> str:
    """The word of a score's name that says what it is."""
    words = score.split("_")
    # What follows f1 is the name of a type of entities, which may be called loss
    return next((word for word in ("f1", "error") if word in words), words[-1])


def first_score(quantities: Sequence[Quantity]) -> Quantity | None:
    """The score that decides; None where there is none."""
    return next((quantity for quantity in quantities if quantity.group == "score"), None)


def _reader(path: Sequence[str]) -> Callable[[FinishedRun], float | None]:
    def read(run: FinishedRun) -> float | None:
        value: Any = run.stability
        for key in path:
            value = (value or {}).get(key)
        return value

    return read


def in_words(key: str) -> str:
    """The name of a score as the report shows it."""
    words = key.replace("_", " ")
    names = {"f1": "F1", "matthews correlation": "Matthews correlation", "mm accuracy": "accuracy (mismatched)"}
    names |= {"pearson": "Pearson correlation", "spearmanr": "Spearman correlation", "loss": "evaluation loss"}
    return names.get(words, words)


def _scaled(value: float | None, scale: float) -> float | None:
    return value * scale if value is not None and math.isfinite(value) else None
