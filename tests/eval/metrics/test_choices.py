import math
from collections.abc import Callable

import pytest

from eval.items import MISSING, Answer, Item
from eval.metrics.measured import Measured
from vlm.errors import UserError

Measure = Callable[..., Measured]


def item(key: str, correct: int, group: str | None = None) -> Item:
    return Item(key, "?", choices=("red", "dark blue"), correct=(correct,), group=group)


def chose(choice: int | None) -> Answer:
    return Answer(text="", value="", choice=choice)


def test_unreadable_choices_are_wrong_and_counted(measure: Measure) -> None:
    found = measure(
        "choices",
        [
            (item("a", 0), chose(0)),
            (item("b", 1), chose(0)),
            (item("c", 0), chose(None)),
            (item("d", 0), MISSING),
        ],
    ).values()
    assert found == {"accuracy": 0.25, "unreadable": 0.25}


def test_an_item_without_choices_is_right_by_its_words(measure: Measure) -> None:
    found = measure("choices", [(Item("a", "?", answers=("Red",)), "red "), (item("b", 0), "red")])
    assert found.values()["accuracy"] == 0.5


def test_likelihood_is_normalised_in_three_ways(measure: Measure) -> None:
    # By sum red, by token dark blue (-1 each), by character dark blue (-2 / 9).
    answer = Answer("red", "red", 0, logprobs=(-1.5, -2.0), num_tokens=(1, 2))
    found = measure("likelihood", [(item("a", 1), answer), (item("b", 0), answer)]).values()
    assert found == {
        "accuracy": 0.5,
        "accuracy, by sum": 0.5,
        "accuracy, by token": 0.5,
        "accuracy, by character": 0.5,
    }
    right = measure("likelihood", [(item("a", 1), answer)]).values()
    assert list(right.values()) == [0, 0, 1, 1]


def test_likelihood_needs_log_probabilities(measure: Measure) -> None:
    with pytest.raises(UserError, match="2 choices and 0 log probabilities"):
        measure("likelihood", [(item("a", 1), chose(1))])


def test_a_circular_question_counts_if_all_copies_are_right(measure: Measure) -> None:
    measured = measure(
        "circular",
        [
            (item("a", 0, "a"), chose(0)),
            (item("b", 0, "b"), chose(0)),
            (item("b+1", 1, "b"), chose(1)),
            (item("a+1", 1, "a"), chose(0)),
        ],
    )
    assert measured.values() == {"circular accuracy": 0.5, "vanilla accuracy": 1}
    assert measured.unit.tolist() == [0, 1, 1, 0]
    assert measured.item_scores.tolist() == [1, 1, 1, 0]


def test_consistency_asks_for_all_pictures_of_a_sentence(measure: Measure) -> None:
    found = measure(
        "consistency",
        [
            (item("s-0", 0, "s"), chose(0)),
            (item("s-1", 0, "s"), chose(0)),
            (item("t-0", 0, "t"), chose(0)),
            (item("t-1", 0, "t"), chose(1)),
        ],
    ).values()
    assert found == {"accuracy": 0.75, "consistency": 0.5}


def test_perplexity_is_of_all_texts_together(measure: Measure) -> None:
    texts = [("a bc", -4.0, 2), ("d\u00e9", -2.0, 4)]
    found = measure(
        "perplexity",
        [
            (Item(text, text), Answer("", "", logprobs=(logprob,), num_tokens=(count,)))
            for text, logprob, count in texts
        ],
    ).values()
    assert found == pytest.approx(
        {
            "perplexity": math.exp(6 / 6),
            "word perplexity": math.exp(6 / 3),
            "byte perplexity": math.exp(6 / 7),
            "bits per byte": 6 / 7 / math.log(2),
        }
    )
