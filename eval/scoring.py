"""From items and predictions to figures: the rule reads answers, the metrics measure them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.benchmark import BenchmarkConfig
from eval.intervals import Figure, clusters_of, figures
from eval.items import LETTERS, Answer, Item
from eval.metrics.answers import normalise
from eval.metrics.measured import Measured
from eval.metrics.table import find_metric
from eval.predictions import Prediction
from eval.prompts import usual_answer
from eval.rules import read_answer
from vlm.errors import UserError


@dataclass(frozen=True)
class Scored:
    """Answers to a benchmark's items, measured.

    items: pictures are known by their names.
    measured: by the name of the metric, the headline's first.
    """

    items: Sequence[Item]
    answers: Sequence[Answer]
    measured: Mapping[str, Measured]

    @property
    def headline(self) -> Measured:
        """The metric whose first figure is the headline."""
        return next(iter(self.measured.values()))

    @property
    def types(self) -> list[str]:
        """The types of the items, sorted."""
        return sorted({item.type for item in self.items})

    def figures(self, kind: str | None = None) -> dict[str, Figure]:
        """All figures, of all items or of those of a type."""
        found: dict[str, Figure] = {}
        for measured in self.measured.values():
            units = None if kind is None else self.units(measured, kind)
            found |= figures(measured, clusters_of(self.items, measured), units)
        return found

    def values(self, kind: str | None = None) -> dict[str, float]:
        """All figures without their intervals; nan where nothing can be divided by."""
        found: dict[str, float] = {}
        for measured in self.measured.values():
            found |= measured.values(None if kind is None else self.units(measured, kind))
        return found

    def num_items(self, kind: str | None = None) -> int:
        """How many items there are, of a type or of all."""
        return sum(kind is None or item.type == kind for item in self.items)

    def units(self, measured: Measured, kind: str) -> NDArray[np.int64]:
        """The units of the headline or another metric whose first item is of a type."""
        _, first = np.unique(measured.unit, return_index=True)
        of_type = [self.items[index].type == kind for index in first]
        return np.flatnonzero(of_type)


def score(benchmark: BenchmarkConfig, items: Sequence[Item], answers: Sequence[Answer]) -> Scored:
    """Measure answers to items.

    Raises:
        UserError: there are no items, or a metric cannot measure them.
    """
    if not items:
        raise UserError(f"{benchmark.name}: there are no items to measure")
    measured = {name: find_metric(name)(items, answers) for name in benchmark.metrics}
    return Scored(items, answers, measured)


def read_answers(
    benchmark: BenchmarkConfig, items: Sequence[Item], predictions: Sequence[Prediction]
) -> list[Answer]:
    """Read predictions as the benchmark's rule says."""
    return [
        _chosen(benchmark, item, prediction)
        if prediction.logprobs
        else read_answer(benchmark.rule, item, prediction.text, prediction.follow_ups)
        for item, prediction in zip(items, predictions, strict=True)
    ]


def majority_answers(items: Sequence[Item], counted: Sequence[Item]) -> list[Answer]:
    """The most frequent right answer of each item's type, as a constant answer to all of them.

    Of multiple choice, the most frequent place of the right choice.

    Args:
        counted: the items that are counted: the same, or those of a training set. Of a type that
            they have not, the most frequent of all.
    """
    overall: dict[str, int] = {}
    by_type: dict[str, dict[str, int]] = {}
    for item in counted:
        for counts in (overall, by_type.setdefault(item.type, {})):
            for right in _rights(item):
                counts[right] = counts.get(right, 0) + 1
    answers = []
    for item in items:
        counts = by_type.get(item.type) or overall
        # Among equally frequent answers the first met wins.
        usual = max(counts, key=lambda right: counts[right]) if counts else ""
        if item.choices:
            place = LETTERS.index(usual) if usual else 0
            place = min(place, len(item.choices) - 1)
            answers.append(Answer(text=usual, value=item.choices[place], choice=place))
        else:
            answers.append(Answer(text=usual, value=usual))
    return answers


def _rights(item: Item) -> list[str]:
    if item.choices:
        return [LETTERS[index] for index in item.correct]
    return [normalise(usual_answer(item))] if item.answers else []


def _chosen(benchmark: BenchmarkConfig, item: Item, prediction: Prediction) -> Answer:
    """The likeliest choice, the first among equals; of one text alone, its likelihood."""
    logprobs, counts = prediction.logprobs, prediction.num_tokens
    if benchmark.ask == "perplexity":
        return Answer(text="", value="", logprobs=logprobs, num_tokens=counts)
    if len(logprobs) != len(item.choices):
        raise UserError(
            f"item {item.id!r} has {len(item.choices)} choices, its prediction {len(logprobs)}"
        )
    lengths = {
        "none": [1] * len(logprobs),
        "tokens": list(counts),
        "characters": [len(choice) for choice in item.choices],
    }[benchmark.normalise]
    scores = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
    choice = max(range(len(scores)), key=lambda index: scores[index])
    value = item.choices[choice]
    return Answer(value, value, choice, logprobs, counts)
