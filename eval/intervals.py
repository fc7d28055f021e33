"""How sure a figure is: its 95 % interval, from resampled answers."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from eval.items import Item
from eval.metrics.measured import Array, Measured

NUM_RESAMPLES = 1000
SEED = 0
# Resamples drawn together: what their counts take of memory is this times the clusters.
BLOCK = 100
LOW, HIGH = 2.5, 97.5
# The normal distribution's quantile for 95 %.
Z_95 = 1.959964


class Figure(BaseModel):
    """A figure with the bounds of its 95 % interval; None where nothing can be divided by."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    low: float | None
    high: float | None

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Value, low and high; nan where there is none."""
        value, low, high = (math.nan if n is None else n for n in (self.value, self.low, self.high))
        return value, low, high


def figures(
    measured: Measured, clusters: NDArray[np.int64], units: NDArray[np.int64] | None = None
) -> dict[str, Figure]:
    """The figures of a metric with their intervals: percentiles of a bootstrap over clusters.

    Items that show the same picture are right or wrong together more often than others, so whole
    clusters are drawn. Where all of them are right, or none, resamples say nothing, and the bounds
    of a share are Wilson's, with the clusters as its n. Source: B. Efron, R. J. Tibshirani, An
    Introduction to the Bootstrap (1993), chapter 13.

    Args:
        clusters: (U,) the cluster of each unit.
        units: a part of the units; None takes all.
    """
    chosen = np.arange(len(clusters)) if units is None else units
    sums = by_cluster(measured.statistics[chosen], clusters[chosen])
    values = measured.figures(sums.sum(axis=0))
    drawn = measured.figures(resampled(sums))
    found = {}
    for name, value in values.items():
        low, high = _bounds(float(value), drawn[name], name not in measured.plain, len(sums))
        found[name] = Figure(value=_finite(float(value)), low=_finite(low), high=_finite(high))
    return found


def clusters_of(items: Sequence[Item], measured: Measured) -> NDArray[np.int64]:
    """The cluster (U,) of each unit: units that show the same first picture, or are one group."""
    numbers: dict[str, int] = {}
    clusters = np.zeros(len(measured.statistics), dtype=np.int64)
    for index, item in reversed(list(enumerate(items))):
        if item.images:
            key = f"picture {item.images[0].name}"
        else:
            key = f"item {item.id}" if item.group is None else f"group {item.group}"
        clusters[measured.unit[index]] = numbers.setdefault(key, len(numbers))
    return clusters


def by_cluster(statistics: Array, clusters: NDArray[np.int64]) -> Array:
    """The statistics of units (U, K), summed by cluster (C, K)."""
    numbers, place = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(numbers), statistics.shape[1]))
    np.add.at(sums, place, statistics)
    return sums


def resampled(sums: Array) -> Array:
    """Sums (R, K) over as many clusters (C, K) as there are, drawn with replacement.

    The same clusters are drawn each time, so that two models' figures can be compared.
    """
    count = len(sums)
    random = np.random.default_rng(SEED)
    shares = np.full(count, 1 / count)
    blocks = [
        random.multinomial(count, shares, size=BLOCK) @ sums for _ in range(NUM_RESAMPLES // BLOCK)
    ]
    return np.concatenate(blocks)


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Bounds of a share of n that are independent.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    shrunk = (mean + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    spread = Z_95 * math.sqrt(mean * (1 - mean) / n + Z_95**2 / (4 * n**2)) / (1 + Z_95**2 / n)
    # Rounding must not put the bounds of 0 and 1 on the wrong side.
    return min(mean, max(0.0, shrunk - spread)), max(mean, min(1.0, shrunk + spread))


def _bounds(value: float, drawn: Array, share: bool, num_clusters: int) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if not len(known) or not math.isfinite(value):
        return math.nan, math.nan
    low, high = (float(bound) for bound in np.percentile(known, [LOW, HIGH]))
    if low == high and share and value in (0.0, 1.0):
        return wilson(value, num_clusters)
    # A skewed statistic may have its own value outside of what most resamples give.
    return min(low, value), max(high, value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
