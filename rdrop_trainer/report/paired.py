"""Statistics of runs that are paired by seed: the size of a difference, its significance, and the power of the test.

They need SciPy, which is part of the extra `report`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._extras import import_optional

LEVEL = 0.05  # significance level of the tests; the intervals cover 1 - LEVEL
POWER = 0.8
_RESAMPLES = 10_000
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairedDifference:
    """Second value minus first, over n pairs.

    Attributes:
        n: number of pairs of which both values are known.
        mean: mean of the differences; None without a pair.
        std: their standard deviation. With fewer than two pairs it is None, like all that follows.
        low, high: 95 % bootstrap interval of the mean (percentiles of 10,000 resamples of the pairs). With few pairs it
            is too narrow: with five, it covers the truth in about 83 of 100 cases.
        p_value: of the paired t-test, two-sided; None also where all differences are equal.
        p_sign_flips: of the permutation test that flips the signs of the differences, two-sided. It tries all flips of
            up to 13 pairs, and 10,000 random ones of more. It cannot be below 2 / 2^n, which is 0.0625 for five pairs.
        detectable: the true difference that n pairs detect with 80 % power, at this spread of the differences.
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
        """Whether the difference is more than chance between seeds: p_value < 0.05, and the interval excludes 0."""
        return self.p_value is not None and self.p_value < LEVEL and (self.low > 0 or self.high < 0)

    def pairs_for(self, difference: float) -> int | None:
        """How many pairs detect a true difference with 80 % power; None where that is unknown or above 1,000.

        Args:
            difference: in the unit of the values.
        """
        if not (std := self.std):
            return None
        sizes = range(2, _MOST_SEEDS + 1)  # the more pairs, the smaller the difference that they detect
        place = bisect_left(sizes, True, key=lambda n: _detectable(std, n) <= abs(difference))
        return sizes[place] if place < len(sizes) else None


@dataclass(frozen=True)
class SpreadRatio:
    """The spread of the values of a second group, relative to a first group.

    Attributes:
        ratio: second standard deviation divided by the first; None where one is 0 or a group has fewer than two values.
        low, high: 95 % interval of the ratio, for independent normal values (F distribution).
    """

    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> PairedDifference:
    """Compare two groups of values, pair by pair.

    Args:
        first: (n,) values; pairs with None, NaN or infinities are left out.
        second: (n,) values of the same seeds in the same order.
        seed: of the bootstrap and the random sign flips.

    Returns:
        The mean of second minus first, with its interval and tests.

    Raises:
        InputError: SciPy is not installed.
        ValueError: groups of different sizes.

    Examples:
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
    """Compare the spread of two groups of values.

    Args:
        first: values; None, NaN and infinities are left out.
        second: values; None, NaN and infinities are left out.

    Returns:
        The second's standard deviation divided by the first's, with its interval.

    Raises:
        InputError: SciPy is not installed.

    Examples:
        >>> round(spread_ratio([1.0, 2.0, 3.0], [1.0, 1.5, 2.0]).ratio, 3)
        0.5
    """
    groups = [np.array([v for v in values if _is_known(v)], dtype=float) for values in (first, second)]
    # Equal numbers may differ in their last bits
    if min(map(len, groups)) < 2 or not all(group.std() > 1e-12 * np.abs(group).max() for group in groups):
        return SpreadRatio()
    ratio = float(groups[1].std(ddof=1) / groups[0].std(ddof=1))
    f = import_optional("scipy.stats", extra="report").f(len(groups[1]) - 1, len(groups[0]) - 1)
    return SpreadRatio(ratio, ratio / math.sqrt(f.ppf(1 - LEVEL / 2)), ratio / math.sqrt(f.ppf(LEVEL / 2)))


def _detectable(std: float, n: int) -> float:
    """The difference that a two-sided t-test of n pairs detects with 80 % power, approximately."""
    t = import_optional("scipy.stats", extra="report").t(n - 1)
    return float((t.ppf(1 - LEVEL / 2) + t.ppf(POWER)) * std / math.sqrt(n))


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
