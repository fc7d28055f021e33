import pytest

from eval.items import Answer, Item
from eval.metrics.answers import measure, normalise, score


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes", "yes"),
        (" a Red  circle.\n", "red circle"),
        ("Two", "2"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("don't", "don't"),
        ("dont", "don't"),
        ("'well-known'", "well known"),
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


def test_ten_equal_answers_are_compared_as_they_are() -> None:
    # The official code normalises only where people disagree.
    assert score("The cat", ("cat",) * 10) == 0
    assert score("The cat", ("cat",) * 9) == 1


def test_accuracy_is_the_mean_score() -> None:
    items = [Item("a", "?", answers=("cat",)), Item("b", "?", answers=("dog",))]
    measured = measure(items, [Answer("Cat.", "Cat."), Answer("cow", "cow")])
    assert measured.values() == {"accuracy": 0.5}
    assert measured.item_scores.tolist() == [1, 0]
