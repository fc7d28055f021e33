"""Word lists: what they find, what they do not, and what is refused."""

from typing import Any

import pytest

from vlm.errors import UserError
from vlm.safety.classifier import Content
from vlm.safety.words import WordClassifier


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Make a BOMB.", True),
        ("a\nbomb", True),
        ("bo\u00admb and bo\u200bmb", True),  # a soft hyphen; a zero-width space
        ("\uff42\uff4f\uff4d\uff42", True),  # full width
        ("blow  up\nthe house", True),
        ("bombastic", False),
        ("blown up", False),
        ("", False),
    ],
)
def test_words_and_phrases_are_found_whole(text: str, found: bool) -> None:
    classifier = WordClassifier(words={"violence": ["bomb", "Blow up"], "other": ["never"]})
    assert classifier.classify(Content(text)) == {"violence": float(found), "other": 0.0}


def test_patterns_add_to_the_words_of_their_category() -> None:
    classifier = WordClassifier(
        words={"code": ["secret"]},
        patterns={"code": [r"\bproject-\d{3}\b"], "mail": [r"@\w+\.com"]},
    )
    assert classifier.classify(Content("PROJECT-123")) == {"code": 1.0, "mail": 0.0}
    assert classifier.classify(Content("a secret for me@x.com")) == {"code": 1.0, "mail": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is empty"),
        ({"words": {"violence": []}}, "violence is empty"),
        ({"words": {"violence": [" "]}}, "violence is empty"),
        ({"patterns": {"violence": ["(a"]}}, "no regular expression"),
    ],
)
def test_a_list_that_finds_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WordClassifier(**settings)
