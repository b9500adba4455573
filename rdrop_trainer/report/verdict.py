"""What the quantities of a comparison show, and what they do not show, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .quantities import Quantity
from .tables import NOTHING

# A regression has no flips; the divergence takes their place
_STABILITY = (("dropout_flip_rate", "dropout_divergence"), ("edits_flip_rate", "edits_divergence"))
_PROBABILITIES = ("loss", "expected_calibration_error")
_HALF_A_POINT = 0.5
_SHARES = ("accuracy", "mm_accuracy", "exact_match")  # means of right and wrong over the rows


def verdict(
    quantities: Sequence[Quantity],
    alpha: float,
    evaluation_rows: int | None,
    undefined: Sequence[str] = (),
    longer: Sequence[Quantity] = (),
) -> list[str]:
    """Sentences on the first score, and then on its spread, the evaluation loss, the calibration, the stability and the
    cost.

    An effect is supported if the paired t-test has p < 0.05 and the bootstrap interval excludes 0.

    Args:
        quantities: of the comparison; the first is the score that decides.
        alpha: of R-Drop.
        evaluation_rows: number of rows that were evaluated; None where unknown.
        undefined: names of headline scores that no seed has in both arms.
        longer: of R-Drop against plain fine-tuning that trained for as long as R-Drop; empty where there was none.
            Without it no gain is called one: R-Drop had more time.
    """
    by_key = {quantity.key: quantity for quantity in quantities}
    sentences = [f"The {name} is not defined in both runs of any seed." for name in undefined]
    score = next((quantity for quantity in quantities if quantity.group == "score"), None)
    if score is None:
        sentences.append("The runs have no score in common, so nothing can be said of whether R-Drop helps.")
    else:
        sentences += [
            _of_the_score(score, alpha),
            _of_undefined(score),
            _of_equal_time(score, _first({q.key: q for q in longer}, [score.key]), by_key.get("train_seconds")),
            _power(score),
            _of_its_spread(score),
            _of_other_rows(score, evaluation_rows),
        ]
    sentences += [
        _of_probabilities(by_key[key]) for key in _PROBABILITIES if key in by_key and by_key[key] is not score
    ]
    measured = [_first(by_key, keys) for keys in _STABILITY]
    sentences += [_of_stability(quantity) for quantity in measured if quantity is not None]
    sentences.append(_of_cost(by_key))
    return [sentence for sentence in sentences if sentence]


def _of_the_score(score: Quantity, alpha: float) -> str:
    d = score.difference
    unit = "points" if score.unit == "%" else score.unit
    before, after = (_number(score.describe(arm)["mean"], score.unit) for arm in ("baseline", "rdrop"))
    who = f"R-Drop (alpha {alpha:g})"
    is_same = abs(d.mean) < NOTHING
    amount = f"{_digits(abs(d.mean))} {unit}".strip()
    compared = "the same" if is_same else f"{amount} {'higher' if d.mean > 0 else 'lower'}"
    if d.n == 1:
        seed = "that was run" if len(score.baseline) == 1 else "for which it is defined"
        return (
            f"With the one seed {seed}, the {score.name} with {who} was {compared} ({before} to {after}). "
            "One seed says nothing about the next: run several."
        )
    if d.std == 0:
        if is_same:
            return f"Over {d.n} seeds, {who} and its baseline had the same {score.name} in every pair ({after})."
        return (
            f"Over {d.n} seeds the {score.name} with {who} was {compared} in every pair ({before} to {after}); "
            "differences that are all equal leave nothing to test."
        )
    interval = f"95 % bootstrap interval {_signed(d.low)} to {_signed(d.high)}, paired t-test p {_p(d.p_value)}"
    if d.is_supported:
        subject = f"With equal epochs {who} was better" if _is_gain(score) else f"{who} did harm"
        return (
            f"{subject}: over {d.n} seeds the {score.name} was {compared} than without ({before} to {after}; "
            f"{interval}), which is more than chance between seeds explains."
        )
    return (
        f"It is not shown that {who} helps: over {d.n} seeds the {score.name} was {compared} "
        f"{'on average' if is_same else 'than without'} ({before} to {after}; {interval}), which chance between seeds "
        "can explain."
    )


def _is_gain(quantity: Quantity) -> bool:
    """Whether R-Drop's values are better, by more than chance between seeds."""
    d = quantity.difference
    return d.is_supported and (d.mean > 0) == bool(quantity.higher_is_better)


def _of_equal_time(score: Quantity, longer: Quantity | None, seconds: Quantity | None) -> str:
    """What is left of a gain where the baseline has as many seconds."""
    if longer is not None and longer.difference.n > 1:
        d = longer.difference
        amount = f"{_digits(abs(d.mean))} {'points' if score.unit == '%' else score.unit}".strip()
        compared = f"{amount} {'higher' if d.mean > 0 else 'lower'} than" if abs(d.mean) >= NOTHING else "on average"
        said = f"the {score.name} was {compared} that of plain fine-tuning"
        if d.low is not None and d.std:
            said += f" (95 % bootstrap interval {_signed(d.low)} to {_signed(d.high)}, p {_p(d.p_value)})"
        if _is_gain(longer):
            return f"R-Drop helped: with equal seconds too {said}."
        return f"With equal seconds it is not shown that R-Drop helps: {said}."
    if not _is_gain(score) or seconds is None or not seconds.describe("baseline")["mean"]:
        return ""
    ratio = seconds.describe("rdrop")["mean"] / seconds.describe("baseline")["mean"]
    return (
        f"It took {ratio:.2f} times the time; whether training longer does the same was not asked (--arms plain rdrop "
        "plain_longer asks it)."
    )


def _of_probabilities(quantity: Quantity) -> str:
    """Whether the probabilities are better, which matters where they are used, whatever the labels do."""
    d = quantity.difference
    before, after = (_number(quantity.describe(arm)["mean"], quantity.unit) for arm in ("baseline", "rdrop"))
    if d.n < 2:
        return ""
    if d.is_supported:
        said = f"The {quantity.name} is {'lower' if d.mean < 0 else 'higher'}: {before} to {after} (p {_p(d.p_value)})."
    else:
        said = f"The {quantity.name} went from {before} to {after}: no difference is shown."
    return f"{said} {_of_undefined(quantity)}".strip()


def _of_undefined(score: Quantity) -> str:
    left_out = len(score.baseline) - score.difference.n
    if not left_out:
        return ""
    lost = {arm: sum(value is None for value in getattr(score, arm)) for arm in ("baseline", "rdrop")}
    seeds, is_are = ("seed", "is") if left_out == 1 else ("seeds", "are")
    return (
        f"{left_out} {seeds} {is_are} left out, because the {score.name} is not defined there (baseline: "
        f"{lost['baseline']}, R-Drop: {lost['rdrop']} runs): a run that broke down counts for nothing in these figures."
    )


def _power(score: Quantity) -> str:
    d = score.difference
    if d.detectable is None or d.is_supported:
        return ""
    unit = "points" if score.unit == "%" else score.unit
    said = f"So many seeds reveal a true difference of {_digits(d.detectable)} {unit}".strip()
    said += " four times in five"
    if score.unit != "%" or d.detectable <= _HALF_A_POINT:
        return f"{said}."
    seeds = d.pairs_for(_HALF_A_POINT)
    return f"{said}; for half a point it takes {f'about {seeds}' if seeds else 'more than a thousand'} seeds."


def _of_its_spread(score: Quantity) -> str:
    spread = score.spread
    if spread.ratio is None:
        return ""
    size = f"{spread.ratio:.2g} times the baseline's standard deviation"
    interval = f"95 % interval {spread.low:.2g} to {spread.high:.2g}"
    if spread.high < 1:
        return f"Its scores vary less from seed to seed: {size} ({interval})."
    if spread.low > 1:
        return f"Its scores vary more from seed to seed: {size} ({interval})."
    return (
        f"Whether its scores vary less from seed to seed cannot be said from {score.difference.n} seeds: {size}, "
        f"{interval}."
    )


def _of_other_rows(score: Quantity, rows: int | None) -> str:
    if not rows or score.difference.n < 2:
        return ""
    said = f"All this is about other seeds on the same {rows:,} evaluation rows"
    share = score.describe("rdrop")["mean"] / 100
    if score.key not in _SHARES or score.unit != "%" or not 0 < share < 1:
        return f"{said}, not about other rows."
    error = 100 * math.sqrt(share * (1 - share) / rows)
    return f"{said}; with other rows each score would itself move by some {error:.1f} points (standard error)."


def _of_stability(quantity: Quantity) -> str:
    d = quantity.difference
    before, after = (_number(quantity.describe(arm)["mean"], quantity.unit) for arm in ("baseline", "rdrop"))
    what = "Dropout" if quantity.key.startswith("dropout") else "Small edits of the text"
    flips = quantity.unit == "%"
    subject = f"{what} {'flips' if what == 'Dropout' else 'flip'}" if flips else f"{what}: divergence"
    of_what = f"{after} of its predictions, {before} of the baseline's" if flips else f"{after}, baseline {before}"
    if d.n < 2:
        return f"{subject} {of_what}."
    if d.is_supported:
        said = "more stable" if d.mean < 0 else "less stable"
        return f"{subject} {of_what} (p {_p(d.p_value)}): {said}."
    p = "" if d.p_value is None else f" (p {_p(d.p_value)})"
    return f"{subject} {of_what}{p}: no difference is shown."


def _of_cost(by_key: dict[str, Quantity]) -> str:
    ratios = []
    for key, what in (("train_seconds", "the time"), ("peak_memory", "the peak memory")):
        quantity = by_key.get(key)
        if quantity is not None:
            baseline, rdrop = (quantity.describe(arm)["mean"] for arm in ("baseline", "rdrop"))
            if baseline:
                ratios.append(f"{rdrop / baseline:.2f} times {what}")
    return f"Training took {' and '.join(ratios)} of the baseline." if ratios else ""


def _first(by_key: dict[str, Quantity], keys: Sequence[str]) -> Quantity | None:
    return next((by_key[key] for key in keys if key in by_key), None)


def _number(value: float, unit: str) -> str:
    return f"{_digits(value)} {unit}".strip()


def _digits(value: float) -> str:
    """Two decimals, or three significant digits of a small number."""
    return f"{value:.2f}" if abs(value) >= 0.1 or abs(value) < NOTHING else f"{value:.3g}"


def _signed(value: float) -> str:
    sign = "" if abs(value) < NOTHING else "+" if value > 0 else "-"
    return sign + _digits(abs(value))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"
