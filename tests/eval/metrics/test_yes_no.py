from collections.abc import Callable

import numpy as np
import pytest

from eval.items import MISSING, Answer, Item
from eval.metrics.measured import Measured
from vlm.errors import UserError

Measure = Callable[..., Measured]


def pairs(kind: str, *counts: int) -> list[tuple[Item, Answer | str]]:
    """True positives, false negatives, false positives, true negatives and unreadable noes."""
    cells = [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"), ("no", "perhaps")]
    return [
        (Item(f"{kind}{label}{given}{n}", "?", answers=(label,), type=kind), given)
        for (label, given), count in zip(cells, counts, strict=False)
        for n in range(count)
    ]


def test_figures_are_those_of_the_confusion_table(measure: Measure) -> None:
    measured = measure("yes_no", pairs("a", 6, 2, 3, 8, 1))
    assert measured.values() == pytest.approx(
        {
            "F1": 2 * (6 / 9) * (6 / 8) / (6 / 9 + 6 / 8),
            "precision": 6 / 9,
            "recall": 6 / 8,
            "accuracy": 14 / 20,
            "yes rate": 9 / 20,
        }
    )
    assert measured.item_scores.sum() == 14


def test_the_mean_of_types_is_llavas(measure: Measure) -> None:
    first, second = pairs("popular", 3, 1, 0, 4), pairs("random", 1, 3, 1, 3)
    both = measure("yes_no", first + second)
    alone = [measure("yes_no", part).values()["F1"] for part in (first, second)]
    assert both.values()["F1, mean of types"] == pytest.approx(sum(alone) / 2)
    # Of one type's units alone it is that type's F1.
    assert both.values(np.arange(8))["F1, mean of types"] == pytest.approx(alone[0])


def test_what_was_not_answered_is_wrong_and_no_yes(measure: Measure) -> None:
    measured = measure("yes_no", [(Item("a", "?", answers=("yes",)), MISSING)])
    assert measured.values()["accuracy"] == measured.values()["yes rate"] == 0


def test_other_answers_than_yes_and_no_are_refused(measure: Measure) -> None:
    with pytest.raises(UserError, match="'a' has the answer 'maybe'"):
        measure("yes_no", [(Item("a", "?", answers=("maybe",)), "yes")])
