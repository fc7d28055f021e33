from collections.abc import Callable

import pytest

from eval.items import Item
from eval.metrics.measured import Measured
from eval.metrics.vqa import (
    aokvqa_score,
    leave_one_out,
    normalise,
    score,
    textvqa_normalise,
    textvqa_score,
)
from vlm.errors import UserError

Measure = Callable[..., Measured]


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The two dogs.", "2 dogs"),
        ("well-known", "well known"),  # punctuation between words leaves a space
        ("left, right", "left right"),  # beside a space it does not
        ("1,000 men-at-arms", "1000 menatarms"),  # nor anywhere if a number has a comma
        ("3.5", "3.5"),
        ("no. 5", "no 5"),
        ("ends in 5.", "ends in 5"),  # the official pattern means to spare this period, and fails
        ("dont", "don't"),
        ("Im", "im"),  # the table's entries with capitals never match
        ("somebody'd", "somebodyd"),
        ("y'alldve", "y'alldve"),
        ("hadn'tve", "hadn't've"),
        ("a", ""),
        ("none", "0"),
        ("it's", "it's"),
        ("what:", "what:"),  # the colon is not among the official punctuation
        ("first\nsecond", "first second"),
    ],
)
def test_normalising_keeps_the_official_quirks(answer: str, plain: str) -> None:
    assert normalise(answer) == plain


def test_answers_are_normalised_only_where_people_disagree() -> None:
    assert score("The cigarette", ["cigarette"] * 10) == 0
    assert score("cigarette", ["cigarette"] * 10) == 1
    assert score("The cigarette", ["cigarette"] * 9 + ["pipe"]) == 1


def test_nobody_counts_for_himself() -> None:
    # Two of ten: in eight sets of nine there are two, in two sets one.
    assert leave_one_out(2, 10) == pytest.approx((8 * 2 / 3 + 2 * 1 / 3) / 10)
    assert leave_one_out(0, 10) == 0
    assert leave_one_out(4, 10) == 1


def test_textvqa_always_normalises() -> None:
    assert textvqa_score("The Coke!", ["coke"] * 10) == 1
    assert textvqa_normalise("Moe's, bar?") == "moe 's bar"


def test_aokvqa_counts_all_ten_people() -> None:
    assert [aokvqa_score("Cat", ["cat"] * n + ["dog"] * (10 - n)) for n in range(5)] == [
        0,
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        1,
        1,
    ]
    assert aokvqa_score("the cat", ["cat"] * 10) == 0


def test_vqa_accuracy_is_of_ten_people(measure: Measure) -> None:
    with pytest.raises(UserError, match="'a' has 2 answers"):
        measure("vqa", [(Item("a", "?", answers=("cat", "dog")), "cat")])
    item = Item("a", "?", answers=("cat",) * 10)
    assert measure("vqa", [(item, "cat"), (item, "dog")]).values() == {"VQA accuracy": 0.5}
    assert measure("textvqa", [(item, "Cat")]).values() == {"TextVQA accuracy": 1}
    assert measure("aokvqa", [(item, "Cat")]).values() == {"direct answer accuracy": 1}
