"""The statistics of paired runs, against textbook formulas and brute force."""

import itertools
import math
import random
import statistics

import pytest
from scipy import special

from rdrop_trainer.report import SpreadRatio, paired_difference, spread_ratio

FIRST = [81.2, 80.4, 82.0, 79.9, 81.1]
SECOND = [82.0, 80.2, 82.9, 81.0, 82.4]
DIFFERENCES = [b - a for a, b in zip(FIRST, SECOND, strict=True)]


def t_tail(t, degrees):
    """Two-sided p of Student's t, by the incomplete beta function."""
    return special.betainc(degrees / 2, 0.5, degrees / (degrees + t * t))


def test_a_paired_t_test_by_its_formula():
    found = paired_difference(FIRST, SECOND)
    mean, std = statistics.mean(DIFFERENCES), statistics.stdev(DIFFERENCES)
    assert (found.n, found.mean, found.std) == (5, pytest.approx(mean), pytest.approx(std))
    assert found.p_value == pytest.approx(t_tail(mean / (std / math.sqrt(5)), 4))


def test_sign_flips_by_trying_them_all():
    found = paired_difference(FIRST, SECOND)
    total = abs(sum(DIFFERENCES)) - 1e-9
    flipped = [
        abs(sum(s * d for s, d in zip(signs, DIFFERENCES, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert found.p_sign_flips == pytest.approx(sum(value >= total for value in flipped) / 32)
    one_way = paired_difference([0] * 5, [1, 1.1, 1.2, 1.3, 1.4])
    assert one_way.p_sign_flips == pytest.approx(2 / 2**5) and one_way.p_value < 0.001


def test_the_interval_by_resampling():
    found = paired_difference(FIRST, SECOND)
    rng = random.Random(0)
    means = sorted(sum(rng.choices(DIFFERENCES, k=5)) / 5 for _ in range(8_000))
    assert found.low == pytest.approx(means[200], abs=0.05)
    assert found.high == pytest.approx(means[7_800], abs=0.05)
    assert paired_difference(FIRST, SECOND) == found, "the same each time"


def test_equal_values_have_no_spread_to_compare():
    found = paired_difference([0.0, 0.1, 0.7], [0.1, 0.1 + 0.1, 0.8])  # equal differences but for rounding
    assert (found.std, found.low, found.high, found.p_value) == (0.0, found.mean, found.mean, None)
    assert spread_ratio([0.1 + 0.2, 0.3, 0.3], [0.1, 0.2, 0.3]) == SpreadRatio()
    assert spread_ratio([0.1, 0.2, 0.3], [0.0, 0.0]) == SpreadRatio()


def test_what_can_be_detected():
    """Of true differences as large as said, a t-test finds four in five."""
    rng, found, hits = random.Random(0), paired_difference(FIRST, SECOND), 0
    critical = 2.776445  # of t with 4 degrees of freedom, two-sided 5 %
    for _ in range(4_000):
        sample = [rng.gauss(found.detectable, found.std) for _ in range(5)]
        hits += abs(statistics.mean(sample)) / (statistics.stdev(sample) / math.sqrt(5)) > critical
    assert hits / 4_000 == pytest.approx(0.8, abs=0.04)
    needed = found.pairs_for(0.5)
    # From the normal approximation, which needs a little less
    assert 0 <= needed - ((1.95996 + 0.84162) * found.std / 0.5) ** 2 < 4
    assert found.pairs_for(found.detectable) == 5 and found.pairs_for(1e-6) is None


def test_supported_needs_the_test_and_the_interval():
    assert paired_difference([0] * 5, [1, 1.1, 1.2, 1.3, 1.4]).is_supported
    assert paired_difference([0] * 5, [-1, -1.1, -1.2, -1.3, -1.4]).is_supported
    chance = paired_difference([0] * 5, [0.5, 0.2, -0.1, 0.4, 0.3])
    assert chance.low > 0 and chance.p_value > 0.05 and not chance.is_supported


@pytest.mark.parametrize(
    "first, second, n, mean, std",
    [
        ([], [], 0, None, None),
        ([1.0], [3.0], 1, 2.0, None),
        ([1.0, None], [3.0, 4.0], 1, 2.0, None),
        ([1.0, 2.0, math.nan], [3.0, 4.0, 5.0], 2, 2.0, 0.0),
        ([0.7] * 3, [0.7] * 3, 3, 0.0, 0.0),
        ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], 3, 0.1, 0.0),  # equal but for the last bits
    ],
)
def test_too_little_to_test(first, second, n, mean, std, recwarn):
    found = paired_difference(first, second)
    assert (found.n, found.mean, found.std) == (n, mean if mean is None else pytest.approx(mean), std)
    assert found.p_value is found.p_sign_flips is found.detectable is None and not found.is_supported
    assert found.pairs_for(0.5) is None and not recwarn.list


def test_groups_of_different_sizes_are_no_pairs():
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])


def test_the_spread_and_its_interval():
    narrow = [81 + 0.5 * (value - 81) for value in FIRST]
    found = spread_ratio(FIRST, narrow)
    f = 9.604530  # 97.5 % quantile of F with 4 and 4 degrees of freedom
    assert found.ratio == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5 / math.sqrt(f), 0.5 * math.sqrt(f)))
    assert spread_ratio([1, 1, 1], FIRST).ratio is None and spread_ratio([1], [1, 2]).ratio is None
    assert spread_ratio([1, 2, 3], [5, 5, 5]).ratio is None
