"""What every metric returns: figures that are functions of sums, so that resampling is cheap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eval.items import Answer, Item

Array = NDArray[np.float64]
Figures = Callable[[Array], Mapping[str, Array]]


@dataclass(frozen=True)
class Measured:
    """What a metric found in the answers to n items.

    Items that count together are a unit (all copies of a circular question); elsewhere every item
    is one. Each figure is a function of the units' `statistics` summed: accuracy of the sums of
    scores and of ones, F1 of those of true and false positives. So the figures of a part of the
    items, and of a thousand resamples, are those of other sums.

    item_scores: (n,) how right each answer is, 0..1.
    unit: (n,) int64, the unit of each item, 0..U-1.
    statistics: (U, K).
    figures: from sums (..., K) to figures (...) by name; the first is the headline. Where there is
        nothing to divide by, it gives nan.
    plain: figures that are no shares, and so are not shown in percent.
    lower_is_better: figures of which less is better.
    """

    item_scores: Array
    unit: NDArray[np.int64]
    statistics: Array
    figures: Figures
    plain: frozenset[str] = field(default=frozenset())
    lower_is_better: frozenset[str] = field(default=frozenset())

    def values(self, units: NDArray[np.int64] | None = None) -> dict[str, float]:
        """The figures of all units, or of some."""
        chosen = self.statistics if units is None else self.statistics[units]
        return {name: float(value) for name, value in self.figures(chosen.sum(axis=0)).items()}


Metric = Callable[[Sequence[Item], Sequence[Answer]], Measured]


def mean(name: str, item_scores: Sequence[float]) -> Measured:
    """The mean score of items that each count alone, as the figure `name`."""
    scores = np.asarray(item_scores, dtype=np.float64)
    return Measured(
        item_scores=scores,
        unit=np.arange(len(scores)),
        statistics=np.stack([scores, np.ones_like(scores)], axis=1),
        figures=lambda sums: {name: divide(sums[..., 0], sums[..., 1])},
    )


def divide(numerator: Array, denominator: Array) -> Array:
    """Elementwise; nan where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, np.asarray(numerator) / denominator)


def units_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """The unit (n,) of each item where groups count as one, in order of appearance."""
    numbers: dict[str, int] = {}
    # A group may be called like another item.
    keys = [
        f"group {item.group}" if item.group is not None else f"item {item.id}" for item in items
    ]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
