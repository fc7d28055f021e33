from collections.abc import Callable

import pytest

from eval.items import Item
from eval.metrics.chair_words import categories, find_objects
from eval.metrics.measured import Measured
from vlm.errors import UserError

Measure = Callable[..., Measured]


def named(caption: str) -> list[str]:
    return [category for _, category in find_objects(caption)]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Two women and their puppies.", ["person", "dog"]),
        ("A hot dog beside a dog", ["hot dog", "dog"]),
        ("a baby elephant", ["elephant"]),
        ("A baby holds knives", ["person", "knife"]),
        ("passenger trains on train tracks", ["train"]),
        ("the toilet seat", ["toilet"]),
        ("at home plate", []),
        ("a wine glass, glasses", ["wine glass"]),
        ("Mice and a teddy-bear", ["mouse", "teddy bear"]),
        ("a catalogue of cargo", []),
        ("the sunset", []),
    ],
)
def test_words_find_their_categories(caption: str, found: list[str]) -> None:
    assert named(caption) == found


def test_every_category_of_coco_finds_itself() -> None:
    assert len(set(categories())) == 80
    assert all(named(category) == [category] for category in categories())


def test_what_neither_annotations_nor_references_have_is_hallucinated(measure: Measure) -> None:
    item = Item("a", "", answers=("A man on a couch.",), facts={"objects": ["dog", "person"]})
    found = measure("chair", [(item, "A woman, a dog and two cats."), (item, "A sofa.")]).values()
    # Of four objects named one is not there: cats. Three are: person, couch, dog.
    assert found == {"CHAIRs": 0.5, "CHAIRi": 0.25, "recall": 0.5}


def test_hallucination_is_better_if_lower(measure: Measure) -> None:
    measured = measure("chair", [(Item("a", "", facts={"objects": []}), "a car")])
    assert measured.lower_is_better == {"CHAIRs", "CHAIRi"}
    assert measured.item_scores.tolist() == [0]


def test_chair_needs_objects_of_coco(measure: Measure) -> None:
    with pytest.raises(UserError, match="'a' has no 'objects'"):
        measure("chair", [(Item("a", ""), "a car")])
    with pytest.raises(UserError, match="has the object 'unicorn'"):
        measure("chair", [(Item("a", "", facts={"objects": ["unicorn"]}), "a car")])
