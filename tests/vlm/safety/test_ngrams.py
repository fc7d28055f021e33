"""The text classifier that operators train: it learns, keeps, and is measured."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm import cli
from vlm.errors import UserError
from vlm.safety.classifier import Content
from vlm.safety.ngrams import NgramClassifier

THINGS = ("the house", "a red circle", "your square", "my friend", "this picture", "the dog")
THREATS = ("i will smash {}", "i'll destroy {} today", "watch me burn {}")
SALES = ("buy {} now, cheap", "{} for sale, best price", "order {} at half the price")
OTHERS = ("where is {}?", "i like {}", "describe {} please", "what colour is {}?", "{} is here")


def examples(num: int, seed: int) -> list[tuple[str, list[str]]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(num):
        kind = draw.choice(["threat", "sale", None, None])
        forms = {"threat": THREATS, "sale": SALES, None: OTHERS}[kind]
        text = draw.choice(forms).format(draw.choice(THINGS))
        rows.append((text, [] if kind is None else [kind]))
    return rows


@pytest.fixture(scope="module")
def trained() -> NgramClassifier:
    rows = examples(120, seed=0)
    return NgramClassifier.train([text for text, _ in rows], [found for _, found in rows])


def test_unseen_combinations_are_told_apart(trained: NgramClassifier) -> None:
    assert trained.categories == ("sale", "threat")
    for text, expected in [
        ("I will destroy the elephant", {"threat"}),
        ("buy an elephant, best price!", {"sale"}),
        ("what colour is the elephant?", set()),
    ]:
        scores = trained.classify(Content(text))
        assert {category for category, score in scores.items() if score >= 0.5} == expected, scores
        assert all(0 <= score <= 1 for score in scores.values())


def test_a_sentence_counts_in_a_long_text_too(trained: NgramClassifier) -> None:
    harmless = "what colour is the dog? i like this picture. " * 40
    assert trained.classify(Content(harmless))["threat"] < 0.5
    hidden = harmless + "i will smash the house. " + harmless
    assert trained.classify(Content(hidden))["threat"] > 0.5
    assert trained.classify(Content(""))["threat"] < 0.5


def test_training_is_repeatable_and_kept_to_the_bit(
    trained: NgramClassifier, tmp_path: Path
) -> None:
    rows = examples(120, seed=0)
    again = NgramClassifier.train([text for text, _ in rows], [found for _, found in rows])
    again.save(tmp_path / "c.safetensors")
    read = NgramClassifier.from_file(str(tmp_path / "c.safetensors"))
    for text, _ in examples(10, seed=1):
        assert read.classify(Content(text)) == trained.classify(Content(text))


def test_the_command_trains_and_says_how_good_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": text, "categories": c}) for text, c in examples(80, seed=2)]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines))
    out = tmp_path / "c.safetensors"
    assert cli.main(["safety", "train", str(tmp_path / "examples.jsonl"), str(out)]) == 0
    said = capsys.readouterr().out
    assert "64 examples, and 16 held out" in said and "threat: precision" in said
    assert NgramClassifier.from_file(str(out)).classify(Content("i will burn it"))["threat"] > 0.5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"] * 10, "line 1"),
        (['{"text": "a", "categories": "x"}'], "line 1"),
        (['{"text": "a", "categories": []}'] * 9, "at least 10"),
        (['{"text": "a", "categories": []}'] * 10, "texts with each category"),
        (['{"text": "a", "categories": ["x"]}'] * 10, "texts with each category"),
    ],
)
def test_examples_that_teach_nothing_are_one_line(
    tmp_path: Path, lines: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(lines))
    assert cli.main(["safety", "train", str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="vlm safety train"):
        NgramClassifier.from_file(str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="cannot be read"):
        NgramClassifier.from_file(str(tmp_path / "nowhere.safetensors"))
