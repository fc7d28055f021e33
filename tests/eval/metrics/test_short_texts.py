"""ANLS, relaxed accuracy and exact match."""

from collections.abc import Callable

import pytest

from eval.items import Item
from eval.metrics.anls import edit_distance, score
from eval.metrics.measured import Measured
from eval.metrics.relaxed import is_near

Measure = Callable[..., Measured]


def test_edit_distance_counts_the_fewest_changes() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("abc", "abc") == 0


def test_anls_is_that_of_the_nearest_answer_above_the_threshold() -> None:
    answers = ("Coca Cola", "Coca Cola Company")
    assert score("coca  COLA ", answers) == 1
    assert score("CocaCola", answers) == pytest.approx(8 / 9)
    assert score("The Coca", answers) == 0
    assert score("ab", ("xb",)) == 0  # a distance of exactly one half is too far
    assert score("", ("a",)) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "near"),
    [
        ("105", "100", True),
        ("94.9", "100", False),
        ("-95", "-100", True),
        ("10%", "0.1", True),
        ("0.0", "0", False),  # 5 % of nothing: texts are compared
        ("0", "0", True),
        ("Yes", "yes", True),
        ("1,000", "1000", False),
        ("inf", "5", False),
    ],
)
def test_relaxed_accuracy_lets_numbers_be_five_percent_off(
    prediction: str, answer: str, near: bool
) -> None:
    assert is_near(prediction, answer) is near


def test_each_metric_has_its_own_idea_of_the_same(measure: Measure) -> None:
    item = Item("a", "?", answers=("yes",))
    right = {
        name: next(iter(measure(name, [(item, "Yes.")]).values().values()))
        for name in ("exact", "gqa", "anls", "relaxed")
    }
    assert right == {"exact": 0, "gqa": 1, "anls": 0.75, "relaxed": 0}
