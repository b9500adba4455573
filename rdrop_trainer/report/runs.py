"""Finished training runs, read from their folders or made by hand, and their pairs by seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..errors import InputError
from ..hub.card_data import is_score
from ..script.outcome import FREE_TO_CHANGE, LOGITS_FILE, RESULTS

_PREFIX = "eval_"
# Settings that may differ between two runs. Limits of the evaluated rows may not: scores of other rows do not compare.
_FREE = FREE_TO_CHANGE - {"max_eval_samples", "max_predict_samples"} | {"unlabeled_file", "max_unlabeled_samples"}


@dataclass(frozen=True)
class FinishedRun:
    """One run. `FinishedRun.read` reads it from a folder of `run_glue_rdrop.py`. For your own trainer:

        scores = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
        FinishedRun(seed=1, alpha=4.0, scores=scores, headline=["accuracy"], log_history=trainer.state.log_history)

    Attributes:
        seed: of the run.
        alpha: of R-Drop; 0 for the baseline.
        scores: of the evaluation, by name, without "eval_".
        headline: names of the scores that the report shows first.
        log_history: `trainer.state.log_history`.
        stability: the entry "stability" of `all_results.json`.
        train_seconds: of training alone.
        peak_memory: in bytes.
        logits, labels: of the evaluation rows, (N, C) and (N,).
        rows: split -> number of rows.
        settings: of the run. Runs are paired only if these are alike, apart from the seed and R-Drop.
        processes: number of processes that trained together.
        name: of the task or data, for the title of the report.
    """

    seed: int
    alpha: float
    scores: Mapping[str, float | None]
    headline: Sequence[str] = ()
    log_history: Sequence[Mapping[str, Any]] = ()
    stability: Mapping[str, Any] | None = None
    train_seconds: float | None = None
    peak_memory: int | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1
    name: str = ""

    @classmethod
    def read(cls, folder: str | Path) -> FinishedRun:
        """Read the folder of a run.

        Raises:
            InputError: the folder has no `all_results.json`, or one of its files is damaged.
        """
        folder = Path(folder)
        try:
            path = folder / RESULTS
            found = json.loads(path.read_text(encoding="utf-8"))
            path = state = folder / "trainer_state.json"
            history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.exists() else []
            logits = labels = None
            path = folder / LOGITS_FILE
            if path.exists():
                with np.load(path) as arrays:
                    logits, labels = arrays["logits"], arrays["labels"]
            path = folder / RESULTS
            settings, metrics = found["settings"], found["metrics"]
            return cls(
                seed=settings["seed"],
                alpha=settings["rdrop_alpha"],
                scores={k.removeprefix(_PREFIX): v for k, v in metrics.items() if k.startswith(_PREFIX)},
                headline=[k.removeprefix(_PREFIX) for k in found["headline"] if k.startswith(_PREFIX)],
                log_history=history,
                stability=found.get("stability"),
                train_seconds=found["seconds"].get("train"),
                peak_memory=(found.get("peak_memory") or {}).get("bytes"),
                logits=logits,
                labels=labels,
                rows=found["rows"],
                settings=settings,
                processes=found["processes"],
                name=found["task"],
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
            reason = "there is none" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: is not that of a finished run ({reason})") from error

    @property
    def is_regression(self) -> bool:
        """Whether its predictions are numbers: its stability then has no flip rate."""
        return ((self.stability or {}).get("dropout") or {"flip_rate": 0.0})["flip_rate"] is None

    def known_scores(self) -> dict[str, float | None]:
        """The scores of the headline, then the others, then the loss; seconds, rates and the like are left out."""
        names = [name for name in self.scores if is_score(name)] + [name for name in self.scores if name == "loss"]
        return {name: self.scores[name] for name in dict.fromkeys([*self.headline, *names]) if name in self.scores}


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be equal in a run and its baseline: all that affect a score, except R-Drop's own."""
    kept = {k: v for k, v in settings.items() if k not in _FREE and not k.startswith(("rdrop_", "hub_", "push_"))}
    return json.loads(json.dumps(kept))


def pair_runs(
    runs: Iterable[FinishedRun], alpha: float | None = None
) -> tuple[list[FinishedRun], list[FinishedRun], list[int]]:
    """Pair baseline and R-Drop runs by their seeds.

    Args:
        runs: baseline and R-Drop runs, in any order.
        alpha: of the R-Drop runs to pair; required where there are several alphas.

    Returns:
        The baseline runs, the R-Drop runs in the same order of seeds, and the seeds that only one of the two has.

    Raises:
        InputError: no pair, an alpha of 0, several alphas, two runs of the same alpha and seed, or runs that differ in
            more than R-Drop.

    Examples:
        >>> runs = [FinishedRun(seed, alpha, {"accuracy": 0.8}) for seed in (2, 1) for alpha in (0.0, 4.0)]
        >>> baseline, rdrop, incomplete = pair_runs([*runs, FinishedRun(3, 4.0, {"accuracy": 0.9})])
        >>> [run.seed for run in baseline], [run.seed for run in rdrop], incomplete
        ([1, 2], [1, 2], [3])
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
                raise InputError(f"there are two runs with alpha {value:g} and seed {run.seed}: leave one of them out")
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
    _check_alike(baseline + rdrop, comparable_settings)
    _check_alike(rdrop, lambda settings: {k: v for k, v in settings.items() if k.startswith("rdrop_")})
    return baseline, rdrop, sorted(arms[0].keys() ^ arms[1].keys())


def _check_alike(runs: Sequence[FinishedRun], settings_of: Any) -> None:
    first = settings_of(runs[0].settings) | {"processes": runs[0].processes}
    for run in runs[1:]:
        settings = settings_of(run.settings) | {"processes": run.processes}
        for name in sorted(first.keys() & settings.keys() - {"seed", "data_seed"}):
            if first[name] != settings[name]:
                raise InputError(
                    f"the runs differ in more than R-Drop: {name} is {first[name]!r} with seed {runs[0].seed} and "
                    f"alpha {runs[0].alpha:g}, {settings[name]!r} with seed {run.seed} and alpha {run.alpha:g}"
                )
