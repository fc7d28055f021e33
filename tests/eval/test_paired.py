"""Paired comparisons, against enumerations and binomials counted out."""

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.paired import (
    bootstrap_interval,
    exact_p_value,
    holm,
    paired_difference,
    swapped_p_value,
)

Array = NDArray[np.float64]


def mean(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def f1(sums: Array) -> Array:
    """From true positives, false positives and false negatives."""
    found, false, missed = (sums[..., index] for index in range(3))
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * found / (2 * found + false + missed))


def scores(values: list[float], sizes: list[int] | None = None) -> Array:
    return np.stack([np.array(values, float), np.array(sizes or [1] * len(values), float)], axis=1)


def enumerated(gains: list[int]) -> float:
    """The share of all signs whose sum is at least as far from 0."""
    sums = [
        sum(s * g for s, g in zip(signs, gains, strict=True))
        for signs in product((1, -1), repeat=len(gains))
    ]
    return sum(abs(total) >= abs(sum(gains)) for total in sums) / len(sums)


@pytest.mark.parametrize(
    "gains", [[1], [1, 1, 1, -1], [3, -1, 2, 2, 0, -5], [4, 4, 4, 0, 1, 1], []]
)
def test_the_exact_p_value_is_the_share_of_all_signs(gains: list[int]) -> None:
    # Sums of at most 64 powers of two: rounding alone is between them.
    assert exact_p_value(np.array(gains, float)) == pytest.approx(enumerated(gains), abs=1e-12)


def test_of_right_and_wrong_it_is_mcnemars_binomial() -> None:
    better, worse = 37, 18
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(worse + 1)) / 2**n
    gains = np.array([1.0] * better + [-1.0] * worse + [0.0] * 900)
    assert exact_p_value(gains) == pytest.approx(2 * tail, rel=1e-10)
    assert exact_p_value(-gains) == exact_p_value(gains)


def test_random_swaps_come_near_the_exact_p_value() -> None:
    a = scores([1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0])
    b = scores([1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0])
    exact = exact_p_value(b[:, 0] - a[:, 0])
    # Four standard deviations of a share of 10,000 draws.
    spread = 4 * math.sqrt(exact * (1 - exact) / 10_000)
    assert swapped_p_value(a, b, mean) == pytest.approx(exact, abs=spread)


def test_swaps_of_a_figure_that_is_no_mean_match_their_enumeration() -> None:
    random = np.random.default_rng(3)
    a = random.integers(0, 4, (8, 3)).astype(float)
    b = a + random.integers(0, 3, (8, 3))
    observed = abs(f1(b.sum(axis=0)) - f1(a.sum(axis=0)))
    hits = 0
    for swaps in product((False, True), repeat=8):
        chosen = np.array(swaps)[:, None]
        left, right = np.where(chosen, b, a).sum(axis=0), np.where(chosen, a, b).sum(axis=0)
        hits += abs(f1(right) - f1(left)) >= observed - 1e-12
    expected = hits / 2**8
    spread = 4 * math.sqrt(expected * (1 - expected) / 10_000)
    assert swapped_p_value(a, b, f1) == pytest.approx(expected, abs=spread)


def test_a_figure_that_some_swaps_leave_undefined_counts_them_as_chance() -> None:
    a, b = np.array([[0.0, 0, 0]]), np.array([[1.0, 0, 0]])
    assert swapped_p_value(a, b, f1) == 1


def test_which_test_is_taken_depends_on_what_is_compared() -> None:
    right = scores([1, 0, 1])
    assert paired_difference(right, right[::-1], mean, is_mean=True).test == "mcnemar"
    pictures = scores([2, 1, 0], [2, 2, 1])
    assert paired_difference(pictures, pictures, mean, is_mean=True).test == "sign flips"
    shares = scores([0.3, 1, 0.6])
    assert paired_difference(shares, right, mean, is_mean=True).test == "swaps"
    assert paired_difference(right, right, mean, is_mean=False).test == "swaps"


def test_alike_models_do_not_differ() -> None:
    same = scores([1, 0, 1, 1])
    found = paired_difference(same, same, mean, is_mean=True)
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert swapped_p_value(same, same, mean) == 1


def test_the_interval_has_the_width_of_the_paired_mean() -> None:
    random = np.random.default_rng(0)
    gains = random.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=2_000)
    a = scores(list(np.where(gains < 0, 1.0, 0.0)))
    b = scores(list(np.where(gains < 0, 0.0, a[:, 0] + gains)))
    low, high = bootstrap_interval(a, b, mean)
    half = 1.96 * gains.std() / math.sqrt(len(gains))
    # Percentiles of 1,000 resamples are sure to about 5 % of the width.
    assert (low, high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.15 * half)


def test_clusters_widen_what_their_items_alone_would_show() -> None:
    """Five questions a picture, all won or lost together: a fifth of the evidence."""
    wins = [1.0] * 12 + [0.0] * 4
    items_b, items_a = np.repeat(wins, 5), 1 - np.repeat(wins, 5)
    alone = paired_difference(scores(list(items_a)), scores(list(items_b)), mean, is_mean=True)
    sizes = [5] * 16
    a, b = scores([5 - 5 * w for w in wins], sizes), scores([5 * w for w in wins], sizes)
    together = paired_difference(a, b, mean, is_mean=True)
    assert together.value == alone.value == 0.5
    assert together.p_value == pytest.approx(2 * sum(math.comb(16, k) for k in range(5)) / 2**16)
    assert alone.p_value < together.p_value / 1000
    # sqrt(5) = 2.2 times as wide, but for the few values that 16 clusters can take.
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_holms_p_values_are_those_counted_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
