"""ScienceQA's parts and MM-Vet's capabilities."""

from collections.abc import Callable
from typing import Any

import pytest

from eval.items import MISSING, Answer, Item
from eval.metrics.measured import Measured
from vlm.errors import UserError

Measure = Callable[..., Measured]


def school(key: str, **facts: Any) -> Item:
    known = {"subject": "natural science", "grade": "grade7", "hint": "", "has_image": False}
    return Item(key, "?", choices=("x", "y"), correct=(0,), facts={**known, **facts})


def test_scienceqa_counts_its_eight_parts(measure: Measure) -> None:
    right, wrong = Answer("A", "x", 0), Answer("B", "y", 1)
    found = measure(
        "scienceqa",
        [
            (school("1", hint="look", has_image=True), right),
            (school("2", subject="social science", grade="grade6"), wrong),
            (school("3", subject="language science", grade="grade12", hint="read"), right),
            (school("4", grade="grade10"), wrong),
        ],
    ).values()
    assert found == {
        "accuracy": 0.5,
        "natural science": 0.5,
        "social science": 0,
        "language science": 1,
        "text context": 1,
        "image context": 1,
        "no context": 0,
        "grades 1-6": 0,
        "grades 7-12": pytest.approx(2 / 3),
    }


def test_scienceqa_needs_its_facts(measure: Measure) -> None:
    with pytest.raises(UserError, match="'1' has no 'subject'"):
        measure("scienceqa", [(Item("1", "?", choices=("x",)), Answer("A", "x", 0))])


def vet(key: str, *capability: str) -> Item:
    return Item(key, "?", facts={"capability": capability})


def test_grades_are_averaged_by_capability_and_by_set(measure: Measure) -> None:
    found = measure(
        "grades",
        [
            (vet("v1_0", "ocr", "math"), Answer("0.5", "0.5", follow_ups=("0.7",))),
            (vet("v1_1", "rec"), "1.0"),
            (vet("v1_2", "math", "ocr"), "0.0"),
            (vet("v1_3", "ocr"), MISSING),
        ],
    ).values()
    assert found == pytest.approx(
        {"total": 0.4, "ocr": 0.2, "math": 0.3, "rec": 1, "math + ocr": 0.3}
    )
    assert list(found)[:3] == ["total", "ocr", "math"]  # by how many questions need them


@pytest.mark.parametrize("text", ["two", "1.5", "-0.1", "nan", ""])
def test_an_answer_that_is_no_grade_is_refused(measure: Measure, text: str) -> None:
    with pytest.raises(UserError, match="needed: a judge's grade"):
        measure("grades", [(vet("v1_0", "ocr"), text)])
