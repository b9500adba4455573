"""Statistics of runs that are paired by their seed: how large a difference is, how sure, and what it would take.

SciPy does the arithmetic; it is part of the extra `report`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._extras import import_optional

LEVEL = 0.05  # of the tests; the intervals cover 1 - LEVEL
POWER = 0.8
_RESAMPLES = 10_000
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, over n pairs.

    Attributes:
        n: pairs of which both values are known.
        mean: of the differences; None without a pair.
        std: their standard deviation; None with fewer than two, and so is what follows.
        low, high: 95 % bootstrap interval of the mean (percentiles of 10,000 resamples of the pairs). With few pairs it
            is too narrow: of five, it holds the truth in some 83 of 100 cases.
        p_value: of the paired t-test, two-sided; None also where all differences are equal.
        p_sign_flips: of the permutation test that flips signs of differences (all flips up to 13 pairs, 10,000 random
            ones above), two-sided; it cannot be below 2 / 2^n, which is 0.0625 for five pairs.
        detectable: the true difference that so many pairs reveal with 80 % power, at this spread of differences.
    """

    n: int
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_sign_flips: float | None = None
    detectable: float | None = None

    @property
    def is_supported(self) -> bool:
        """Whether chance between seeds does not explain it: the t-test says so, and the interval excludes 0."""
        return self.p_value is not None and self.p_value < LEVEL and (self.low > 0 or self.high < 0)

    def pairs_for(self, difference: float) -> int | None:
        """How many pairs it takes to reveal a true difference with 80 % power; None where that is not known.

        Args:
            difference: in the unit of the values.
        """
        if not self.std:
            return None
        sizes = range(2, _MOST_SEEDS + 1)
        return next((n for n in sizes if _detectable(self.std, n) <= abs(difference)), None)


@dataclass(frozen=True)
class SpreadRatio:
    """How far values spread in the second group for 1 in the first.

    Attributes:
        ratio: of the standard deviations; None where one of them is 0 or of fewer than two values.
        low, high: its 95 % interval, for independent normal values (F distribution).
    """

    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> PairedDifference:
    """Compare two groups of values, pair by pair.

    Args:
        first: (n,) values; pairs with None, NaN or infinities are left out.
        second: (n,) values of the same seeds in the same order.
        seed: of the bootstrap.

    Returns:
        Mean of second minus first, its interval and tests.

    Raises:
        InputError: SciPy is not installed.
        ValueError: groups of different sizes.

    Example:
        >>> found = paired_difference([80.0, 81.5, 79.0, 80.5], [81.0, 82.0, 80.5, 81.5])
        >>> found.mean, round(found.p_value, 3), found.is_supported
        (1.0, 0.016, True)
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if _is_known(a) and _is_known(b)]
    n, differences = len(pairs), np.array([b - a for a, b in pairs], dtype=float)
    if n < 2:
        return PairedDifference(n, float(differences[0]) if n else None)
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    if std <= 1e-12 * np.abs(np.array(pairs)).max():
        return PairedDifference(n, mean, 0.0, mean, mean)
    stats = import_optional("scipy.stats", extra="report")
    bootstrap = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    flips = stats.permutation_test(
        (differences, np.zeros(n)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    low, high = bootstrap.confidence_interval
    return PairedDifference(
        n,
        mean,
        std,
        float(low),
        float(high),
        float(stats.ttest_1samp(differences, 0.0).pvalue),
        float(flips.pvalue),
        _detectable(std, n),
    )


def spread_ratio(first: Sequence[float], second: Sequence[float]) -> SpreadRatio:
    """Compare how far two groups of values spread.

    Args:
        first: values; None, NaN and infinities are left out.
        second: likewise.

    Returns:
        The second's standard deviation divided by the first's, with its interval.

    Raises:
        InputError: SciPy is not installed.

    Example:
        >>> round(spread_ratio([1.0, 2.0, 3.0], [1.0, 1.5, 2.0]).ratio, 3)
        0.5
    """
    groups = [np.array([v for v in values if _is_known(v)], dtype=float) for values in (first, second)]
    if min(map(len, groups)) < 2 or not min(group.std() for group in groups) > 0:
        return SpreadRatio()
    ratio = float(groups[1].std(ddof=1) / groups[0].std(ddof=1))
    f = import_optional("scipy.stats", extra="report").f(len(groups[1]) - 1, len(groups[0]) - 1)
    return SpreadRatio(ratio, ratio / math.sqrt(f.ppf(1 - LEVEL / 2)), ratio / math.sqrt(f.ppf(LEVEL / 2)))


def _detectable(std: float, n: int) -> float:
    """The difference that a two-sided t-test of n pairs finds with the power above, nearly."""
    t = import_optional("scipy.stats", extra="report").t(n - 1)
    return float((t.ppf(1 - LEVEL / 2) + t.ppf(POWER)) * std / math.sqrt(n))


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
