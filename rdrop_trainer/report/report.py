"""The report of a comparison: all its parts as Markdown, as JSON and as a summary for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..run_folder import versions
from .arms import Versus, arms_section
from .best import Best
from .classes import classes_section
from .measured import measured
from .quantities import EDIT_KINDS, Quantity
from .runs import FinishedRun
from .tables import ARMS, comparison_table, difference, markdown_table, mean_std, named, p_value, short

MARKDOWN, JSON = "report.md", "report.json"
_GROUPS = {"score": "Scores", "stability": "Stability", "calibration": "Calibration", "cost": "Cost"}
_NOTES = """\
Baseline: the arm `plain`, with alpha 0. Difference: R-Drop minus baseline, paired by seed; for values in % it is in
points. Interval: 95 % bootstrap over the seeds (percentiles of 10,000 resamples), too narrow where they are few. p:
paired t-test. p (sign flips): the test that counts how often differences as large come about when their signs are drawn
at random; with n seeds it cannot be below 2 / 2^n. Spread: standard deviation of R-Drop's values over seeds, for 1 of
the baseline's, with its 95 % interval (F distribution). Where twenty rows are tested, chance alone puts one of them
below 0.05. Edits are taken to leave the label as it is, which is not always so: `edits.csv` in a run's folder holds
those that count.
"""

_NO_PICTURES = 'No pictures: they need Matplotlib (`pip install "rdrop-trainer[report]"`).'


@dataclass(frozen=True)
class Report:
    """The result of a comparison.

    Attributes:
        baseline, rdrop: the runs, of the same seeds in the same order.
        quantities: what was compared.
        sentences: what the quantities show; the first sentence is on the score that decides.
        churn: arm -> share of the evaluation rows for which models of two seeds predict different labels, the mean over
            pairs of seeds. Empty unless the logits of at least two seeds are known.
        incomplete: seeds that only one of the two arms has.
        versus: with more than two arms, each pair that was compared, R-Drop against plain first.
        scored: which weights of the runs were scored.
        untimed: "arm, seed N" of the runs whose seconds of training are not known; the times are without them.
        best: the best run of each arm, where they lie in folders.
        pictures: file -> caption.
        folder: the folder that the report was written to.
    """

    baseline: Sequence[FinishedRun]
    rdrop: Sequence[FinishedRun]
    quantities: Sequence[Quantity]
    sentences: Sequence[str]
    churn: dict[str, float]
    incomplete: Sequence[int] = ()
    versus: Sequence[Versus] = ()
    scored: str = ""
    untimed: Sequence[str] = ()
    best: Best | None = None
    pictures: dict[Path, str] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def alpha(self) -> float:
        """alpha of the R-Drop runs."""
        return self.rdrop[0].alpha

    def summary(self) -> str:
        """The report in short, for one screen of a terminal."""
        lines = [self._title(), ""]
        wanted = [q for q in self.quantities if q.group == "score"][:3]
        wanted += [q for q in self.quantities if q.key in ("dropout_flip_rate", "edits_flip_rate")]
        wanted += [q for q in self.quantities if q.group == "cost"]
        rows = [["", *ARMS.values(), "difference", "p"]]
        for q in wanted:
            means = (mean_std(q, arm) for arm in ARMS)
            rows.append([named(q), *means, difference(q), p_value(q.difference.p_value)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += ["", *textwrap.wrap(" ".join([*self.sentences, self._left_out()]), 100)]
        lines += ["", *textwrap.wrap(self.scored, 100)] if self.scored else []
        lines += ["", *self.best.lines()] if self.best else []
        if self.folder is not None:
            lines += ["", f"report    {self.folder / MARKDOWN}"]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The whole report as Markdown."""
        first, *rest = self.sentences
        parts = [f"# {self._title()}", f"**{first}**", " ".join(rest), self._left_out(), self.scored]
        if self.versus:
            parts.append(f"## Arms\n\n{arms_section(self.versus)}")
        parts += [f"![{caption}]({path.name})" for path, caption in self.pictures.items()] or [_NO_PICTURES]
        for group, title in _GROUPS.items():
            inside = [q for q in self.quantities if q.group == group]
            if inside:
                parts.append(f"## {title}\n\n{comparison_table(inside)}")
            if group == "score" and (classes := classes_section(self.baseline, self.rdrop)):
                parts.append(f"## Classes\n\n{classes}")
            if group == "stability":
                parts += [
                    measured(self.baseline, self.rdrop) if inside else "",
                    _kinds_of_edits(inside),
                    self._churned(),
                ]
        if self.best:
            parts.append(f"## The best models\n\n{self.best.markdown()}")
        parts += [f"## Runs\n\n{self._runs()}", f"## How to read this\n\n{_NOTES.strip()}", self._origin()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _churned(self) -> str:
        shares = ", ".join(f"{ARMS[arm]} {100 * share:.2f} %" for arm, share in self.churn.items())
        return shares and f"Rows for which models of two seeds predict different labels, mean over pairs: {shares}."

    def _left_out(self) -> str:
        seeds = ", ".join(map(str, self.incomplete))
        said = [f"Left out, because one of the two runs is missing: seed {seeds}."] if seeds else []
        if self.untimed:
            said.append(
                f"The times leave out {'; '.join(self.untimed)}: resumed after an interruption, and the seconds "
                "before it are not known."
            )
        return " ".join(said)

    def as_json(self) -> dict[str, Any]:
        """All results as plain values, for JSON."""
        return {
            "verdict": list(self.sentences),
            "alpha": self.alpha,
            "seeds": [run.seed for run in self.rdrop],
            "incomplete_seeds": list(self.incomplete),
            "scored": self.scored,
            "untimed": list(self.untimed),
            "best": self.best.as_json() if self.best else None,
            "quantities": {quantity.key: quantity.as_json() for quantity in self.quantities},
            "seed_churn": self.churn,
            "arms": [
                {"arm": v.arm, "against": v.against, "quantities": {q.key: q.as_json() for q in v.quantities}}
                for v in self.versus
            ],
            "rows": dict(self.rdrop[0].rows),
            "settings": {"baseline": dict(self.baseline[0].settings), "rdrop": dict(self.rdrop[0].settings)},
            "pictures": [path.name for path in self.pictures],
            "versions": versions(),
        }

    def _title(self) -> str:
        seeds = f"{len(self.rdrop)} seed{'s' * (len(self.rdrop) > 1)}"
        name = f"{self.rdrop[0].name}: " if self.rdrop[0].name else ""
        return f"{name}R-Drop (alpha {self.alpha:g}) against its baseline, {seeds}"

    def _runs(self) -> str:
        """A row for each seed."""
        shown = [q for q in self.quantities if q.group in ("score", "cost") or q.key.endswith("flip_rate")]
        shown = [q for q in shown if "by_kind" not in q.key]
        header = ["seed", *(f"{named(q)}: baseline / R-Drop" for q in shown)]
        rows = [
            [str(run.seed), *(f"{short(q.baseline[i])} / {short(q.rdrop[i])}" for q in shown)]
            for i, run in enumerate(self.rdrop)
        ]
        return markdown_table(header, rows)

    def _origin(self) -> str:
        run = self.rdrop[0]
        model = str(run.settings.get("model_name_or_path") or "").rstrip("/")
        facts = [model] if model else []
        facts += [f"{count:,} {split} rows" for split, count in run.rows.items()]
        for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate"):
            if name in run.settings:
                facts.append(f"{name} {run.settings[name]:g}")
        return f"Of: {', '.join(facts)}." if facts else ""


def _kinds_of_edits(quantities: Sequence[Quantity]) -> str:
    """What each kind of small edits does, of those that were counted."""
    counted = {quantity.key for quantity in quantities}
    kinds = [
        f"{name} ({what})" for kind, (name, what) in EDIT_KINDS.items() if f"edits_by_kind_{kind}_flip_rate" in counted
    ]
    return f"The kinds of small edits: {'; '.join(kinds)}." if kinds else ""
