import pytest

from eval.items import Item
from eval.rules import read_answer

FOUR = Item("i", "which?", choices=("a dog", "a cat", "two cats", "a bird"))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        ("B.", 1),
        ("(C)", 2),
        ("b", None),
        ("The answer is D", 3),
        ("Answer: (A) a dog", 0),
        ("A dog is what I see", None),
        ("E", None),
        ("", None),
    ],
)
def test_a_letter_is_read_where_it_stands_for_a_choice(text: str, choice: int | None) -> None:
    answer = read_answer("letter", FOUR, text)
    assert answer.choice == choice
    assert answer.value == ("" if choice is None else FOUR.choices[choice])
    assert answer.text == text


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("a cat", 1),
        ("A Cat.", 1),
        ("I see two cats.", 2),
        ("a dog or a bird", None),
        ("C. two cats", 2),
        ("a horse", None),
    ],
)
def test_a_choice_is_read_by_its_words_or_its_letter(text: str, choice: int | None) -> None:
    assert read_answer("choice", FOUR, text).choice == choice


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ("text", "  two words \n", "two words"),
        ("first_line", "\n\n yes \nbecause", "yes"),
        ("first_line", "", ""),
        ("yes_no", "Yes, there is no dog", "yes"),
        ("yes_no", "I know none", "I know none"),
        ("yes_no", "There is NO dog", "no"),
        ("number", "so 3 + 4 = 7.", "7"),
        ("number", "#### 1,234", "1234"),
        ("number", "$-2.50", "-2.50"),
        ("number", "many", ""),
        ("code", "Here:\n```python\nx = 1\n```\nDone", "x = 1\n"),
        ("code", "x = 1", "x = 1"),
    ],
)
def test_what_counts_of_a_text(rule: str, text: str, value: str) -> None:
    assert read_answer(rule, Item("i", "?"), text).value == value
