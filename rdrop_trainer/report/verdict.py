"""What the quantities of a comparison show, and what they do not show, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .quantities import Quantity, first_score
from .tables import ARMS, NOTHING, short, signed

# A regression has no flips; the divergence takes their place
_STABILITY = (("dropout_flip_rate", "dropout_divergence"), ("edits_flip_rate", "edits_divergence"))
_PROBABILITIES = ("loss", "expected_calibration_error")
_HALF_A_POINT = 0.5
_SHARES = ("accuracy", "mm_accuracy", "exact_match")  # means of right and wrong over the rows


def verdict(
    quantities: Sequence[Quantity],
    alpha: float,
    evaluation_rows: int | None,
    undefined: Sequence[str],
    longer: Sequence[Quantity],
) -> list[str]:
    """Sentences on the first score, and then on its spread, the evaluation loss, the calibration, the stability and the
    cost.

    An effect is supported if the paired t-test has p < 0.05 and the bootstrap interval excludes 0.

    Args:
        quantities: of the comparison; the first is the score that decides.
        evaluation_rows: how many were evaluated; None where unknown.
        undefined: names of headline scores that no seed has in both arms.
        longer: of R-Drop against plain fine-tuning that trained for as long as R-Drop; empty where there was none.
            Without it no gain is called one: R-Drop had more time.
    """
    by_key = {quantity.key: quantity for quantity in quantities}
    sentences = [f"The {name} is not defined in both runs of any seed." for name in undefined]
    score = first_score(quantities)
    if score is None:
        sentences.append("The runs have no score in common, so nothing can be said of whether R-Drop helps.")
    else:
        sentences += [
            _of_the_score(score, alpha),
            _of_undefined(score),
            _of_equal_time(score, next((q for q in longer if q.key == score.key), None), by_key.get("train_seconds")),
            _power(score),
            _of_its_spread(score),
            _of_other_rows(score, evaluation_rows),
        ]
    sentences += [
        _of_probabilities(by_key[key]) for key in _PROBABILITIES if key in by_key and by_key[key] is not score
    ]
    measured = [next((by_key[key] for key in keys if key in by_key), None) for keys in _STABILITY]
    sentences += [_of_stability(quantity) for quantity in measured if quantity is not None]
    sentences.append(_of_cost(by_key))
    return [sentence for sentence in sentences if sentence]


def _of_the_score(score: Quantity, alpha: float) -> str:
    d, (before, after), compared = score.difference, _means(score), _compared(score)
    who = f"R-Drop (alpha {alpha:g})"
    is_same = abs(d.mean) < NOTHING
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
    interval = f"{_interval(score)}, paired t-test p {_p(d.p_value)}"
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
        compared = f"{_compared(longer)} than" if abs(d.mean) >= NOTHING else "on average"
        said = f"the {score.name} was {compared} that of plain fine-tuning"
        if d.std:
            said += f" ({_interval(longer)}, p {_p(d.p_value)})"
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
    d, (before, after) = quantity.difference, _means(quantity)
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
    lost = ", ".join(f"{name}: {getattr(score, arm).count(None)}" for arm, name in ARMS.items())
    seeds = "seed is" if left_out == 1 else "seeds are"
    return (
        f"{left_out} {seeds} left out, because the {score.name} is not defined there ({lost} runs): a run that broke "
        "down counts for nothing in these figures."
    )


def _power(score: Quantity) -> str:
    d = score.difference
    if d.detectable is None or d.is_supported:
        return ""
    said = f"So many seeds reveal a true difference of {_amount(score, d.detectable)} four times in five"
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
    d, (before, after) = quantity.difference, _means(quantity)
    what, flip = ("Dropout", "flips") if quantity.key.startswith("dropout") else ("Small edits of the text", "flip")
    if quantity.unit == "%":
        said = f"{what} {flip} {after} of its predictions, {before} of the baseline's"
    else:
        said = f"{what}: divergence {after}, baseline {before}"
    if d.n < 2:
        return f"{said}."
    shown = f"{'more' if d.mean < 0 else 'less'} stable" if d.is_supported else "no difference is shown"
    p = "" if d.p_value is None else f" (p {_p(d.p_value)})"
    return f"{said}{p}: {shown}."


def _of_cost(by_key: dict[str, Quantity]) -> str:
    ratios = []
    for key, what in (("train_seconds", "the time"), ("peak_memory", "the peak memory")):
        if key in by_key:
            baseline, rdrop = (by_key[key].describe(arm)["mean"] for arm in ARMS)
            if baseline:
                ratios.append(f"{rdrop / baseline:.2f} times {what}")
    return f"Training took {' and '.join(ratios)} of the baseline." if ratios else ""


def _means(quantity: Quantity) -> list[str]:
    """The means of the baseline and of R-Drop, with their unit."""
    return [f"{short(quantity.describe(arm)['mean'])} {quantity.unit}".strip() for arm in ARMS]


def _amount(quantity: Quantity, difference: float) -> str:
    """The size of a difference, with its unit."""
    return f"{short(abs(difference))} {'points' if quantity.unit == '%' else quantity.unit}".strip()


def _compared(quantity: Quantity) -> str:
    """R-Drop's mean, compared with the baseline's."""
    mean = quantity.difference.mean
    if abs(mean) < NOTHING:
        return "the same"
    return f"{_amount(quantity, mean)} {'higher' if mean > 0 else 'lower'}"


def _interval(quantity: Quantity) -> str:
    d = quantity.difference
    return f"95 % bootstrap interval {signed(d.low)} to {signed(d.high)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"
