from collections.abc import Callable

import pytest

from eval.items import Answer, Item
from eval.metrics.measured import Measured
from vlm.errors import UserError

Measure = Callable[..., Measured]


def asked(task: str, picture: str, *given: str) -> list[tuple[Item, Answer | str]]:
    """Two questions about a picture, the first of which is right to say yes."""
    return [
        (Item(f"{picture}#{n}", "?", answers=(right,), type=task, group=f"{task}/{picture}"), text)
        for n, (right, text) in enumerate(zip(("Yes", "No"), given, strict=True))
    ]


def test_a_task_scores_questions_and_pictures(measure: Measure) -> None:
    found = measure(
        "mme",
        [
            *asked("existence", "a", "yes", "no"),
            *asked("existence", "b", "yes", "yes"),
            *asked("OCR", "a", "yes", "no"),
            *asked("code_reasoning", "a", "other", "no"),
        ],
    ).values()
    # Three of four questions, one of two pictures.
    assert found["existence"] == pytest.approx(75 + 50)
    assert found["OCR"] == 200
    assert found["perception"] == pytest.approx(325)
    assert found["cognition"] == found["code_reasoning"] == 50
    assert found["accuracy"] == 6 / 8


def test_scores_are_no_shares(measure: Measure) -> None:
    measured = measure("mme", asked("color", "a", "yes", "no"))
    assert {"perception", "cognition", "color"} <= measured.plain
    assert "accuracy" not in measured.plain


def test_an_unknown_task_is_refused(measure: Measure) -> None:
    with pytest.raises(UserError, match="has the type 'colour'"):
        measure("mme", asked("colour", "a", "yes", "no"))
