"""Comparing finished runs, and writing what came out: `report.md`, `report.json`, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean

from ..errors import InputError
from ..run_folder import ARMS_FILE, RESULTS, read_arms, write_json, write_text
from ..stability import seed_stability
from .arms import LONGER, PLAIN, RDROP, compare_arms, dropout_sentence
from .best import best_of, scored_sentence
from .pictures import draw_pictures
from .quantities import in_words, quantities_of
from .report import JSON, MARKDOWN, Report
from .runs import FinishedRun, pair_runs
from .tables import ARMS
from .verdict import verdict


def write_report(
    baseline: Sequence[FinishedRun],
    rdrop: Sequence[FinishedRun],
    output_dir: str | Path,
    alpha: float | None = None,
    *,
    others: Mapping[str, Sequence[FinishedRun]] | None = None,
) -> Report:
    """Compare runs, and write `report.md`, `report.json` and pictures.

    Args:
        baseline: runs with alpha 0.
        rdrop: runs with R-Drop, of the same seeds in any order.
        output_dir: the folder to write to; it is made if it does not exist.
        alpha: of the R-Drop runs to compare; required where there are several alphas.
        others: runs of further arms by name, such as "plain_longer": plain fine-tuning for as long as R-Drop took.

    Returns:
        The report that was written.

    Raises:
        InputError: runs that cannot be compared, SciPy is not installed, or output_dir cannot be written to.
    """
    baseline, rdrop, incomplete = pair_runs([*baseline, *rdrop], alpha)
    output_dir = Path(output_dir)
    quantities = quantities_of(baseline, rdrop)
    evaluated = next((n for split, n in rdrop[0].rows.items() if split.startswith("validation")), None)
    known = {quantity.key for quantity in quantities}
    undefined = [in_words(key) for key in rdrop[0].headline if key not in known]
    with_runs = {arm: runs for arm, runs in (others or {}).items() if runs}
    arms = {ARMS["baseline"]: baseline, ARMS["rdrop"]: rdrop, **with_runs}
    versus = compare_arms({PLAIN: baseline, RDROP: rdrop, **others}) if others else []
    longer = next((v.quantities for v in versus if (v.arm, v.against) == (RDROP, LONGER)), ())
    sentences = verdict(quantities, rdrop[0].alpha, evaluated, undefined, longer)
    if about_dropout := dropout_sentence(baseline[0], rdrop[0], versus):
        sentences.insert(1, about_dropout)
    if "loss" in known and (about_loss := _smoothing_sentence(arms)):
        sentences.append(about_loss)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        report = Report(
            baseline,
            rdrop,
            quantities,
            sentences,
            churn=_churn(baseline, rdrop),
            incomplete=incomplete,
            versus=versus,
            scored=scored_sentence(arms),
            untimed=_untimed(arms),
            best=best_of(arms, quantities),
            pictures=draw_pictures(baseline, rdrop, quantities, output_dir, with_runs),
            folder=output_dir,
        )
        write_json(output_dir / JSON, report.as_json())
        write_text(output_dir / MARKDOWN, report.markdown())
    except OSError as error:
        raise InputError(
            f"{output_dir}: the report cannot be written there ({error.strerror or error}). The runs are kept; "
            "python -m rdrop_trainer.report FOLDER_OF_THE_RUNS --output_dir ANOTHER writes it elsewhere"
        ) from error
    return report


def report_folder(folder: str | Path, output_dir: str | Path | None = None, alpha: float | None = None) -> Report:
    """Report on all finished runs in the subfolders of a folder.

    Args:
        folder: the folder that has the folders of the runs.
        output_dir: the folder to write to; default: the same folder.
        alpha: of the R-Drop runs to compare; required where there are several alphas.

    Returns:
        The report that was written.

    Raises:
        InputError: no finished run, a damaged one, or runs that cannot be compared.
    """
    folder = Path(folder)
    runs = {path.parent.name: FinishedRun.read(path.parent) for path in sorted(folder.glob(f"*/{RESULTS}"))}
    if not runs:
        raise InputError(f"{folder}: holds no finished run (no folder in it has {RESULTS})")
    output_dir = output_dir or folder
    if not (folder / ARMS_FILE).exists():
        return write_report(list(runs.values()), [], output_dir, alpha)
    arms = {
        arm: [run for name, run in runs.items() if name.rpartition("-seed")[0] == arm]
        for arm in read_arms(folder / ARMS_FILE)["arms"]
    }
    if alpha is not None:  # beside plain, other arms may have no R-Drop either
        chosen = [run for found in arms.values() for run in found if run.alpha == alpha]
        return write_report(arms.get(PLAIN, []), chosen, output_dir, alpha)
    return write_report(arms.pop(PLAIN, []), arms.pop(RDROP, []), output_dir, others=arms)


def _smoothing_sentence(arms: Mapping[str, Sequence[FinishedRun]]) -> str:
    """That the evaluation loss is not that of the labels alone; empty where it is."""
    factors = {arm: runs[0].settings.get("label_smoothing_factor") or 0 for arm, runs in arms.items()}
    if not any(factors.values()):
        return ""
    shown = ", ".join(f"{arm} {factor:g}" for arm, factor in factors.items())
    return f"The evaluation loss is of smoothed labels, as the training's is (label_smoothing_factor: {shown})."


def _untimed(arms: Mapping[str, Sequence[FinishedRun]]) -> list[str]:
    """The runs whose seconds are not known, though those of others are, or they are runs of the script."""
    runs = [(arm, run) for arm, found in arms.items() for run in found]
    timed = any(run.train_seconds is not None for _, run in runs)
    return [
        f"{arm}, seed {run.seed}"
        for arm, run in runs
        if run.train_seconds is None and (timed or run.settings.get("do_train"))
    ]


def _churn(baseline: Sequence[FinishedRun], rdrop: Sequence[FinishedRun]) -> dict[str, float]:
    found = {}
    for arm, runs in zip(ARMS, (baseline, rdrop), strict=True):
        logits = [run.class_logits for run in runs]
        if len(logits) > 1 and all(z is not None for z in logits):
            found[arm] = mean(seed_stability(pair).flip_rate for pair in combinations(logits, 2))
    return found if len(found) == 2 else {}
