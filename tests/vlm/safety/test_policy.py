"""Policies: what is blocked, logged or held back, and that nothing passes unchecked."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm.config import load_config
from vlm.errors import UserError
from vlm.safety.answer import MAX_HELD_CHARS, HeldAnswer
from vlm.safety.classifier import ClassifierError
from vlm.safety.config import SafetyConfig
from vlm.safety.policy import ContentPolicyError, Safety

PLUGIN = '''
class Dark:
    """Flags dark pictures, and fails on the word crash."""

    def __init__(self, below=100):
        self.below = below

    def classify(self, content):
        if "crash" in content.text:
            raise RuntimeError("crashed")
        if "nonsense" in content.text:
            return {"dark": float("nan")}
        return {"dark": float(any(p.getpixel((0, 0))[0] < self.below for p in content.pictures))}

class Nothing:
    pass
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "dark_pictures.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    return "dark_pictures:Dark"


def words(*flagged: str, **settings: Any) -> SafetyConfig:
    classifier = {"kind": "words", "settings": {"words": {"bad": list(flagged or ("bad",))}}}
    return SafetyConfig.model_validate({"classifiers": [classifier], **settings})


def test_a_policy_is_a_file_and_its_classifiers_join(plugin: str, tmp_path: Path) -> None:
    path = tmp_path / "safety.yaml"
    path.write_text(
        "classifiers:\n"
        "  - {kind: words, settings: {words: {violence: [bomb]}}}\n"
        f"  - {{kind: '{plugin}', settings: {{below: 10}}}}\n"
        "output: log\n"
    )
    safety = Safety(load_config(SafetyConfig, path))
    dark, grey = (Image.new("RGB", (4, 4), (value,) * 3) for value in (5, 50))
    safety.check_input("a bob", [grey])
    for text, picture, category in [("a bomb", grey, "violence"), ("a bob", dark, "dark")]:
        with pytest.raises(ContentPolicyError, match=category):
            safety.check_input(text, [picture])
    with pytest.raises(ContentPolicyError, match="dark, violence"):
        safety.check_input("a bomb", [grey, dark])
    verdict = safety.check_output("a bomb")
    assert verdict.flagged == {"violence": 1.0} and not verdict.blocked


def test_what_is_flagged_is_logged_without_the_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vlm.safety"):
        Safety(words(input="log")).check_input("a bad secret", [])
        assert not Safety(words(output=None)).check_output("a bad secret").blocked
    (record,) = caplog.records
    assert record.__dict__["facts"] == {"side": "input", "action": "log", "flagged": {"bad": 1.0}}
    assert "secret" not in record.getMessage()


@pytest.mark.parametrize("text", ["crash", "nonsense"])
def test_a_classifier_that_fails_lets_nothing_pass(plugin: str, text: str) -> None:
    for action in ("block", "log"):
        settings = {"classifiers": [{"kind": plugin}], "input": action, "output": action}
        safety = Safety(SafetyConfig.model_validate(settings))
        with pytest.raises(ClassifierError, match="dark_pictures:Dark"):
            safety.check_input(text, [])
        with pytest.raises(ClassifierError, match="dark_pictures:Dark"):
            safety.check_output(text)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("wrods", {}, "there are words, ngrams, pictures"),
        ("no_such_package:Class", {}, "cannot be imported"),
        ("dark_pictures:Missing", {}, "cannot be imported"),
        ("dark_pictures:Nothing", {}, "no method `classify`"),
        ("dark_pictures:Dark", {"above": 3}, "above"),
        ("words", {"wrods": {}}, "wrods"),
        ("pictures", {"folder": "nowhere", "categories": {}}, "nowhere"),
    ],
)
def test_a_classifier_that_cannot_be_made_is_told(
    plugin: str, kind: str, settings: Mapping[str, Any], message: str
) -> None:
    config = {"classifiers": [{"kind": kind, "settings": settings}]}
    with pytest.raises(UserError, match=message):
        Safety(SafetyConfig.model_validate(config))


def test_text_comes_out_by_sentences_and_ends_where_one_is_flagged() -> None:
    held = HeldAnswer(Safety(words(replacement="[withheld]")))
    assert held.add("It is a cir").text == ""
    assert held.add("cle. Its").text == "It is a circle. "
    assert held.add(" radius is 3.5 cm, and").text == ""
    assert held.add(" it is b").text == ""
    release = held.add("ad. More.", final=True)
    assert release.blocked and release.text == "[withheld]" and held.is_empty


def test_text_without_an_end_is_not_held_for_ever() -> None:
    held = HeldAnswer(Safety(words()))
    released = "".join(held.add("word ").text for _ in range(200))
    assert 1000 - MAX_HELD_CHARS <= len(released) < 1000


def test_what_stands_across_two_pieces_is_seen() -> None:
    held = HeldAnswer(Safety(words("one two")))
    long = "word " * (MAX_HELD_CHARS // 5 - 1)
    assert held.add(f"{long}one two").text == f"{long}one "
    assert held.add("", final=True).blocked


@given(st.lists(st.sampled_from(["ok ", " ", ". ", "!\n", "bad ", "x" * 300, "3.5"]), max_size=12))
def test_what_is_flagged_whole_is_flagged_in_pieces_and_the_rest_comes_out(
    pieces: list[str],
) -> None:
    safety = Safety(words())
    text = "".join(pieces)
    held = HeldAnswer(safety)
    shown, blocked = "", False
    for number, piece in enumerate(pieces):
        release = held.add(piece, final=number == len(pieces) - 1)
        blocked = release.blocked
        if blocked:
            break
        shown += release.text
        assert text.startswith(shown)
    assert blocked == safety.check_output(text).blocked
    assert HeldAnswer(safety).add(text, final=True).blocked == blocked
    assert blocked or shown == text
    assert not safety.check_output(shown).blocked
