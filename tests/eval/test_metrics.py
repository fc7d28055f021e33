import math

import pytest

from eval.metrics import accuracy, accuracy_by_type, normalise, score


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes", "yes"),
        (" a Red  circle.\n", "red circle"),
        ("Two", "2"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("don't", "don't"),
        ("A", "a"),
        ("The.", "the"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalise_drops_what_does_not_matter(answer: str, plain: str) -> None:
    assert normalise(answer) == plain


def test_one_accepted_answer_must_match_wholly() -> None:
    assert score("Yes.", ("yes",)) == 1
    assert score("yes it is", ("yes",)) == 0
    assert score("two", ("3", "2")) == 1
    assert score("", ("yes",)) == 0


@pytest.mark.parametrize(("people", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_ten_answers_are_scored_by_agreement(people: int, expected: float) -> None:
    answers = ("cat",) * people + ("dog",) * (10 - people)
    assert score("Cat", answers) == pytest.approx(expected)


def test_vqa_accuracy_is_the_mean_over_the_sets_of_nine() -> None:
    for people in range(11):
        answers = ["cat"] * people + ["dog"] * (10 - people)
        nines = [answers[:i] + answers[i + 1 :] for i in range(10)]
        expected = sum(min(nine.count("cat") / 3, 1) for nine in nines) / 10
        assert score("cat", tuple(answers)) == pytest.approx(expected)


def test_the_interval_is_wilsons() -> None:
    # Bounds solve |p - x| = z sqrt(x (1 - x) / n).
    figure = accuracy([1.0] * 30 + [0.0] * 10)
    assert figure.value == 0.75
    for bound in (figure.low, figure.high):
        assert abs(0.75 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 40))
    assert figure.low < 0.75 < figure.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_interval_of_all_or_nothing_stays_within_bounds(value: float) -> None:
    figure = accuracy([value] * 20)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert 0.1 < figure.high - figure.low < 0.2


def test_more_questions_narrow_the_interval() -> None:
    few, many = accuracy([1.0, 0.0] * 10), accuracy([1.0, 0.0] * 1000)
    assert many.high - many.low < (few.high - few.low) / 5


def test_types_are_counted_apart() -> None:
    figures = accuracy_by_type([("shape", 1.0), ("count", 0.0), ("shape", 0.0), ("count", 0.0)])
    assert {kind: figure.value for kind, figure in figures.items()} == {"count": 0.0, "shape": 0.5}
    assert figures["shape"].num_questions == 2
