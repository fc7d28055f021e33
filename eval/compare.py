"""Two models on the same items: by how much one is better, and whether chance would explain it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.benchmark import BenchmarkConfig
from eval.intervals import by_cluster, clusters_of
from eval.items import Answer, Item
from eval.metrics.measured import Array, Measured
from eval.paired import Difference, Figure, holm, paired_difference
from eval.scoring import Scored, score
from vlm.errors import UserError


@dataclass(frozen=True)
class Row:
    """A figure of both models: of all items (`kind` None), or of those of a type.

    p_value: that of the difference; of types, adjusted for their number (Holm).
    """

    figure: str
    kind: str | None
    num_items: int
    a: float
    b: float
    difference: Difference
    p_value: float


@dataclass(frozen=True)
class Both:
    """An item that both models answered, and how right each answer is, 0..1."""

    item: Item
    a: Answer
    b: Answer
    score_a: float
    score_b: float


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    figures: each figure of all items, the headline first.
    types: the headline of each type of items, if there are several.
    both: the items that both answered, in their order.
    only_a, only_b: how many items only one of them answered; they are left out.
    plain, lower_is_better: see `Measured`.
    """

    figures: list[Row]
    types: list[Row]
    both: list[Both]
    only_a: int
    only_b: int
    plain: frozenset[str]
    lower_is_better: frozenset[str]

    @property
    def headline(self) -> Row:
        """The benchmark's first figure."""
        return self.figures[0]

    @property
    def gained(self) -> list[Both]:
        """Items that B answered better than A."""
        return [each for each in self.both if each.score_b > each.score_a]

    @property
    def lost(self) -> list[Both]:
        """Items that A answered better than B."""
        return [each for each in self.both if each.score_b < each.score_a]


def compare(benchmark: BenchmarkConfig, a: Scored, b: Scored) -> Comparison:
    """Compare two models' answers to a benchmark's items.

    Raises:
        UserError: they have no item in common.
    """
    answers_a = {item.id: answer for item, answer in zip(a.items, a.answers, strict=True)}
    answers_b = {item.id: answer for item, answer in zip(b.items, b.answers, strict=True)}
    items = [item for item in a.items if item.id in answers_b]
    if not items:
        raise UserError(f"{benchmark.name}: the two runs have no item in common")
    a, b = _on_items(benchmark, a, items, answers_a), _on_items(benchmark, b, items, answers_b)
    figures = [
        _row(name, None, len(items), a.measured[metric], b.measured[metric], items)
        for metric, measured in a.measured.items()
        for name in measured.values()
    ]
    scores = zip(a.headline.item_scores, b.headline.item_scores, strict=True)
    return Comparison(
        figures=figures,
        types=_types(a, b, items, figures[0].figure),
        both=[
            Both(item, answers_a[item.id], answers_b[item.id], float(score_a), float(score_b))
            for item, (score_a, score_b) in zip(items, scores, strict=True)
        ],
        only_a=len(answers_a) - len(items),
        only_b=len(answers_b) - len(items),
        plain=frozenset().union(*(measured.plain for measured in a.measured.values())),
        lower_is_better=frozenset().union(*(m.lower_is_better for m in a.measured.values())),
    )


def _on_items(
    benchmark: BenchmarkConfig, scored: Scored, items: Sequence[Item], answers: Mapping[str, Answer]
) -> Scored:
    """The answers to some of the items, measured anew unless they are all."""
    if [item.id for item in scored.items] == [item.id for item in items]:
        return scored
    return score(benchmark, items, [answers[item.id] for item in items])


def _types(a: Scored, b: Scored, items: Sequence[Item], figure: str) -> list[Row]:
    if len(a.types) < 2:
        return []
    rows = [
        _row(
            figure,
            kind,
            a.num_items(kind),
            a.headline,
            b.headline,
            items,
            a.units(a.headline, kind),
        )
        for kind in a.types
    ]
    adjusted = holm([row.p_value for row in rows])
    return [replace(row, p_value=p) for row, p in zip(rows, adjusted, strict=True)]


def _row(
    name: str,
    kind: str | None,
    num_items: int,
    a: Measured,
    b: Measured,
    items: Sequence[Item],
    units: NDArray[np.int64] | None = None,
) -> Row:
    def figure(sums: Array) -> Array:
        return np.asarray(a.figures(sums)[name])

    chosen = np.arange(len(a.statistics)) if units is None else units
    of_a, of_b = a.statistics[chosen], b.statistics[chosen]
    clusters = clusters_of(items, a)[chosen]
    difference = paired_difference(
        by_cluster(of_a, clusters),
        by_cluster(of_b, clusters),
        figure,
        _is_mean(of_a, figure) and _is_mean(of_b, figure),
    )
    figure_a, figure_b = (float(figure(statistics.sum(axis=0))) for statistics in (of_a, of_b))
    return Row(name, kind, num_items, figure_a, figure_b, difference, difference.p_value)


def _is_mean(statistics: Array, figure: Figure) -> bool:
    """Whether a figure is the mean of the first statistic: every unit's second one is 1."""
    if statistics.shape[1] != 2 or not (statistics[:, 1] == 1).all():
        return False
    return bool(np.isclose(figure(statistics.sum(axis=0)), statistics[:, 0].mean()))
