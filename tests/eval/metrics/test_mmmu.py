import random
from collections.abc import Callable

import pytest

from eval.items import MISSING, Answer, Item
from eval.metrics.measured import Measured
from eval.metrics.mmmu import is_right_open, read_open

Measure = Callable[..., Measured]


def choice(key: str, correct: int = 0) -> Item:
    return Item(key, "?", choices=("w", "x", "y", "z"), correct=(correct,), type="")


def test_unreadable_choices_are_drawn_as_the_official_code_draws(measure: Measure) -> None:
    # Python's generator with seed 42 chooses A, A, C, B, B of four letters.
    lots = random.Random(42)
    drawn = [lots.choice("ABCD") for _ in range(5)]
    assert drawn == ["A", "A", "C", "B", "B"]
    unread = Answer(text="who knows", value="", choice=None)
    pairs = [(choice(f"validation_Art_{n}"), unread) for n in range(5)]
    pairs.insert(1, (choice("validation_Art_9"), Answer("B", "x", 1)))
    measured = measure("mmmu", pairs)
    assert measured.item_scores.tolist() == [1, 0, 1, 0, 0, 0]
    assert measured.values()["drawn by lot"] == pytest.approx(5 / 6)


def test_what_was_not_answered_is_not_drawn(measure: Measure) -> None:
    found = measure("mmmu", [(choice("validation_Art_1"), MISSING)]).values()
    assert found["accuracy"] == found["drawn by lot"] == 0


def test_disciplines_gather_subjects(measure: Measure) -> None:
    found = measure(
        "mmmu",
        [
            (choice("validation_Art_Theory_1"), Answer("A", "w", 0)),
            (choice("validation_Music_1"), Answer("B", "x", 1)),
            (choice("validation_Physics_1"), Answer("A", "w", 0)),
        ],
    ).values()
    assert found == {
        "accuracy": pytest.approx(2 / 3),
        "Art and Design": 0.5,
        "Science": 1,
        "drawn by lot": 0,
    }


def test_an_open_answer_is_what_follows_the_words_before_answers() -> None:
    assert read_open("The answer is 3.") == {3.0}
    # What follows a comma in a number counts as one too.
    assert read_open("So the total is 1,234 m") == {"1,234 m", 1234.0, 234.0}
    assert read_open("Nothing") == {"nothing"}


def test_an_equation_counts_in_the_last_line_only() -> None:
    found = read_open("x = 5\ny = 7")
    assert 7.0 in found
    assert 5.0 not in found


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("It is 1.06 m", ("1.06",), True),
        ("It is 1.0604", ("1.06",), True),  # two digits
        ("It is 1.1", ("1.06",), False),
        ("1,000", ("1000",), True),
        ("2e3 is it", ("2000",), False),
        ("it is 2e3", ("2000",), True),
        ("the answer is a dark square", ("square",), True),
        ("round", ("square", "round"), True),
        ("banana", ("a",), False),  # a single letter must be a word's end or beginning
        ("vitamin a", ("a",), True),
        ("a or b", ("a",), True),
        ("", ("a",), False),
    ],
)
def test_open_answers_are_right_if_they_hold_the_text_or_number(
    text: str, answers: tuple[str, ...], right: bool
) -> None:
    assert is_right_open(text, answers) is right
