"""Finished training runs, as a report compares them: read from their folders, or made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..errors import InputError
from ..hub.card_data import is_score
from ..run_folder import (
    LOGITS_FILE,
    RESULTS,
    STATE,
    best_checkpoint,
    changed_settings,
    comparable_settings,
    name_of_data,
    not_finished,
    read_results,
)

_PREFIX = "eval_"
_CORRELATIONS = frozenset({"pearson", "spearmanr"})


@dataclass(frozen=True)
class FinishedRun:
    """One run. `FinishedRun.read` makes it from a folder of `run_glue_rdrop.py`; for a trainer of your own:

        scores = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
        FinishedRun(seed=1, alpha=4.0, scores=scores, headline=["accuracy"], log_history=trainer.state.log_history)

    Attributes:
        seed: of the run.
        alpha: of R-Drop; 0 is the baseline.
        scores: of the evaluation, by name, without "eval_". By the last word of their names, lower is better for
            losses (`loss`, `nll`, `perplexity`, ...), errors (`error`, `mse`, `wer`, `ece`, ...) and a `distance`; of
            all others higher is.
        headline: names of the scores to look at first.
        log_history: the trainer's.
        stability: as `all_results.json` holds it under this name.
        by_class: `scores` and `confusion` of the evaluation rows, as `all_results.json` holds them.
        train_seconds: of training alone.
        peak_memory: bytes.
        logits, labels: of the evaluation rows, (N, C) and (N,).
        rows: split -> how many.
        settings: all that were compared when the runs were paired.
        processes: that trained together.
        name: what was trained on, for people.
        folder: where the model lies.
        pipeline: of transformers for models of this kind, such as "text-classification"; None where there is none.
        scored_step: the step after which the weights were as they are scored; None for those at the end.
    """

    seed: int
    alpha: float
    scores: Mapping[str, float | None]
    headline: Sequence[str] = ()
    log_history: Sequence[Mapping[str, Any]] = ()
    stability: Mapping[str, Any] | None = None
    by_class: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float | None = None
    peak_memory: int | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1
    name: str = ""
    folder: Path | None = None
    pipeline: str | None = None
    scored_step: int | None = None

    @classmethod
    def read(cls, folder: str | Path) -> FinishedRun:
        """Read a run's folder.

        Raises:
            InputError: there is no `all_results.json`, or one of the files is damaged.
        """
        folder = Path(folder)
        found = read_results(folder)
        try:
            path = folder / STATE
            state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"log_history": []}
            history = state["log_history"]
            path = folder / LOGITS_FILE
            logits = labels = None
            if path.exists():
                with np.load(path) as arrays:
                    logits, labels = arrays["logits"], arrays["labels"]
            path = folder / RESULTS
            settings, metrics = found["settings"], found["metrics"]
            best = best_checkpoint(state, settings)
            return cls(
                seed=settings["seed"],
                alpha=settings["rdrop_alpha"],
                scores={k.removeprefix(_PREFIX): v for k, v in metrics.items() if k.startswith(_PREFIX)},
                headline=[k.removeprefix(_PREFIX) for k in found["headline"] if k.startswith(_PREFIX)],
                log_history=history,
                stability=found.get("stability"),
                by_class=next((v for k, v in found.get("by_class", {}).items() if k.startswith("validation")), {}),
                train_seconds=found["seconds"].get("train"),
                peak_memory=(found.get("peak_memory") or {}).get("bytes"),
                logits=logits,
                labels=labels,
                rows=found["rows"],
                settings=settings,
                processes=found["processes"],
                name=name_of_data(found),
                folder=folder,
                pipeline=found.get("pipeline"),
                scored_step=best.step if best and best.is_loaded else None,
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
            raise not_finished(path, error) from error

    @property
    def is_regression(self) -> bool:
        """Whether its predictions are numbers, as far as its stability or its scores tell: they cannot flip."""
        if dropout := (self.stability or {}).get("dropout"):
            return dropout["flip_rate"] is None
        return not _CORRELATIONS.isdisjoint(self.scores)

    @property
    def class_logits(self) -> np.ndarray | None:
        """Logits (N, C) of classes; None where there are none, or the model broke down, so that some are NaN."""
        logits = None if self.logits is None or self.is_regression else np.asarray(self.logits)
        fits = logits is not None and logits.ndim == 2 and logits.shape[1] > 1
        return logits if fits and np.isfinite(logits.max(1)).all() else None

    @property
    def last_step(self) -> int | None:
        """The last step that was logged."""
        return max((entry["step"] for entry in self.log_history if "step" in entry), default=None)

    def known(self, score: str) -> float | None:
        """A score; None where it is not defined."""
        value = self.scores.get(score)
        return None if value is None or not math.isfinite(value) else float(value)

    def known_scores(self) -> dict[str, float | None]:
        """The headline's scores, then the others, then the loss; seconds, rates and the like left out."""
        names = [name for name in self.scores if is_score(name)] + [name for name in self.scores if name == "loss"]
        return {name: self.scores[name] for name in dict.fromkeys([*self.headline, *names]) if name in self.scores}


def pair_runs(
    runs: Iterable[FinishedRun], alpha: float | None = None
) -> tuple[list[FinishedRun], list[FinishedRun], list[int]]:
    """Baseline and R-Drop runs of the same seeds.

    Args:
        runs: of both, in any order.
        alpha: the R-Drop runs to take; needed where there are several.

    Returns:
        Baseline runs, R-Drop runs in the same order of seeds, and the seeds of which one of the two is missing.

    Raises:
        InputError: no pair, an alpha of 0, several alphas, two runs of a kind with one seed, or runs that differ in
            more than R-Drop.
    """
    runs = list(runs)
    alphas = sorted({run.alpha for run in runs if run.alpha > 0})
    if alpha is None and len(alphas) > 1:
        raise InputError(f"there are R-Drop runs with alpha {', '.join(f'{a:g}' for a in alphas)}: choose one of them")
    if alpha is not None and not alpha > 0:
        raise InputError(f"alpha {alpha:g} is the baseline: choose the R-Drop runs by an alpha above 0")
    chosen = alpha if alpha is not None else (alphas or [None])[0]
    arms = []
    for value in (0.0, chosen):
        of_seed: dict[int, FinishedRun] = {}
        for run in (run for run in runs if run.alpha == value):
            if run.seed in of_seed:
                two = [str(found.folder) for found in (of_seed[run.seed], run) if found.folder]
                where = f" ({' and '.join(two)})" if two else ""
                raise InputError(
                    f"there are two runs with alpha {value:g} and seed {run.seed}{where}: leave one of them out"
                )
            of_seed[run.seed] = run
        arms.append(of_seed)
    seeds = sorted(arms[0].keys() & arms[1].keys())
    if not seeds:
        have = "; ".join(
            f"{name} {', '.join(map(str, sorted(arm))) or 'none'}"
            for name, arm in zip(("baseline", "R-Drop"), arms, strict=True)
        )
        raise InputError(f"no seed has both a baseline run and one with R-Drop (seeds: {have})")
    baseline, rdrop = ([arm[seed] for seed in seeds] for arm in arms)
    check_alike(baseline + rdrop, comparable_settings)
    check_alike(rdrop, rdrop_settings)
    return baseline, rdrop, sorted(arms[0].keys() ^ arms[1].keys())


def same_seeds(
    first: Sequence[FinishedRun], second: Sequence[FinishedRun]
) -> tuple[list[FinishedRun], list[FinishedRun]]:
    """The runs of two arms whose seed both have, in the order of the seeds."""
    a, b = ({run.seed: run for run in runs} for runs in (first, second))
    seeds = sorted(a.keys() & b.keys())
    return [a[seed] for seed in seeds], [b[seed] for seed in seeds]


def rdrop_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """R-Drop's own among the settings of a run."""
    return {name: value for name, value in settings.items() if name.startswith("rdrop_")}


def check_alike(runs: Sequence[FinishedRun], settings_of: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Refuse runs of which a setting that both have differs."""
    if not runs:
        return
    first = settings_of(runs[0].settings) | {"processes": runs[0].processes}
    for run in runs[1:]:
        settings = settings_of(run.settings) | {"processes": run.processes}
        shared = {name: value for name, value in settings.items() if name in first}
        changed = changed_settings(first, shared, free={"seed", "data_seed"})
        if changed:
            name, before, now = min(changed)
            raise InputError(
                f"the runs differ in more than R-Drop: {name} is {before!r} with seed {runs[0].seed} and "
                f"alpha {runs[0].alpha:g}, {now!r} with seed {run.seed} and alpha {run.alpha:g}"
            )
