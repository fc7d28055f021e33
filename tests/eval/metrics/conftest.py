"""Items and answers for tests of metrics."""

from collections.abc import Callable, Sequence

import pytest

from eval.items import Answer, Item
from eval.metrics.measured import Measured
from eval.metrics.table import find_metric

Measure = Callable[[str, Sequence[tuple[Item, Answer | str]]], Measured]


@pytest.fixture
def measure() -> Measure:
    """Measures pairs of an item and an answer (or the text of one) by a metric's name."""

    def measured(metric: str, pairs: Sequence[tuple[Item, Answer | str]]) -> Measured:
        answers = [
            answer if isinstance(answer, Answer) else Answer(text=answer, value=answer)
            for _, answer in pairs
        ]
        return find_metric(metric)([item for item, _ in pairs], answers)

    return measured
