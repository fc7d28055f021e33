"""Whether two models' figures on the same items differ by more than chance would have it.

`a` and `b` are two models' statistics (C, K), summed by cluster. Items of a cluster, such as the
questions about one picture, are no independent evidence: clusters are drawn and swapped as wholes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.intervals import HIGH, LOW, resampled
from eval.metrics.measured import Array

# From sums (..., K) to a figure (...).
Figure = Callable[[Array], Array]
Test = Literal["mcnemar", "sign flips", "swaps"]

NUM_SWAPS = 10_000
SEED = 0
# Rows of resamples at a time: numbers in memory, 64 MB of float64.
CHUNK_NUMBERS = 8_000_000
# Sums in another order differ by less, differences of interest by more.
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Difference:
    """A figure of model B less that of model A.

    low, high: 95 % interval, from clusters drawn with replacement, the same ones for both models.
    p_value: the chance of a difference at least as large, either way, if both models were alike.
    test: where the p value comes from. `mcnemar`: exact, items right or wrong that each stand
        alone; `sign flips`: exact, whole numbers by cluster; `swaps`: of random ones.
    """

    value: float
    low: float
    high: float
    p_value: float
    test: Test


def paired_difference(a: Array, b: Array, figure: Figure, is_mean: bool) -> Difference:
    """Compare two models by a figure of their summed statistics.

    Args:
        a, b: (C, K).
        is_mean: the figure is the mean of scores: statistics are (sum of scores, number).
    """
    value = float(figure(b.sum(axis=0)) - figure(a.sum(axis=0)))
    low, high = bootstrap_interval(a, b, figure)
    gains = b[:, 0] - a[:, 0]
    if is_mean and np.array_equal(gains, np.rint(gains)):
        alone = bool((b[:, 1] == 1).all())
        return Difference(
            value, low, high, exact_p_value(gains), "mcnemar" if alone else "sign flips"
        )
    return Difference(value, low, high, swapped_p_value(a, b, figure), "swaps")


def exact_p_value(gains: Array) -> float:
    """The two-sided p value of a sum of whole numbers whose signs are chance.

    The distribution of the sum over all choices of signs, by convolution. Of gains of -1, 0 and 1
    it is McNemar's exact test (Q. McNemar, Psychometrika 12 (1947), 153-157).
    """
    sizes, counts = np.unique(np.abs(gains[gains != 0]).astype(np.int64), return_counts=True)
    chances = np.ones(1)  # of each sum of the positive ones
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = _binomial(int(count))
        chances = np.convolve(chances, of_size)
    total = len(chances) - 1
    sums = 2 * np.arange(total + 1) - total
    return min(1.0, float(chances[np.abs(sums) >= abs(gains.sum()) - 0.5].sum()))


def swapped_p_value(a: Array, b: Array, figure: Figure, num_swaps: int = NUM_SWAPS) -> float:
    """The two-sided p value of a difference of figures, from swapping the models in clusters.

    Each swap exchanges the two models' statistics in every cluster with the chance of a half. What
    was observed counts as one of them, so that p is never 0. Source: B. Phipson and G. Smyth,
    Statistical Applications in Genetics and Molecular Biology 9 (2010), article 39.
    """
    sum_a, sum_b = a.sum(axis=0), b.sum(axis=0)
    observed = abs(figure(sum_b) - figure(sum_a))
    moved = (b - a)[(a != b).any(axis=1)]
    generator = np.random.default_rng(SEED)
    at_least = 0
    for rows in _chunks(num_swaps, len(moved)):
        swaps = generator.integers(0, 2, (rows, len(moved)), dtype=np.uint8)
        shift = swaps.astype(np.float64) @ moved  # (rows, K)
        differences = np.abs(figure(sum_b - shift) - figure(sum_a + shift))
        # Where a figure is not defined, nothing speaks against chance.
        at_least += int((~(differences < observed - TOLERANCE)).sum())
    return (at_least + 1) / (num_swaps + 1)


def bootstrap_interval(a: Array, b: Array, figure: Figure) -> tuple[float, float]:
    """The 95 % interval of the figure of B less that of A: percentiles of paired resamples."""
    drawn = resampled(np.concatenate([a, b], axis=1))
    width = a.shape[1]
    differences = figure(drawn[:, width:]) - figure(drawn[:, :width])
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [LOW, HIGH])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several comparisons, made larger so that all hold together.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def _binomial(n: int) -> Array:
    """Chances of 0..n heads in n throws (n + 1,)."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    chances: Array = np.exp(logs[n] - logs - logs[::-1] - n * np.log(2))
    return chances


def _chunks(rows: int, numbers_per_row: int) -> Iterator[int]:
    """Parts of `rows` that are small enough for memory."""
    most = max(1, CHUNK_NUMBERS // max(1, numbers_per_row))
    while rows > 0:
        yield min(rows, most)
        rows -= most
