from itertools import count

import pytest

from eval.elsewhere import Given
from eval.items import Item, Picture
from eval.matching import match
from vlm.errors import UserError

LINES = count(1)


def item(key: str, question: str = "", kind: str = "all", picture: str | None = None) -> Item:
    images = () if picture is None else (Picture(picture, bytes),)
    return Item(key, question, images=images, type=kind)


def row(key: str | None = None, **fields: object) -> Given:
    return Given(where=f"line {next(LINES)}", id=key, text="x", **fields)  # type: ignore[arg-type]


def places(items: list[Item], given: list[Given]) -> list[int]:
    """The place of each item's prediction."""
    found = match(items, given).found
    return [given.index(found[item.id]) for item in items]


def test_ids_match_in_any_order() -> None:
    matched = match([item("1"), item("2"), item("3")], [row("3"), row("1")])
    assert matched.how == "id"
    assert matched.missing([item("1"), item("2"), item("3")]) == ["2"]


def test_unknown_and_repeated_ids_are_counted_and_named() -> None:
    items = [item("1"), item("2")]
    with pytest.raises(UserError, match="2 of 3 predictions belong to no item: '8', '9'"):
        match(items, [row("1"), row("8"), row("9")])
    with pytest.raises(UserError, match="1 items have several predictions: '1'"):
        match(items, [row("1"), row("2"), row("1")])


def test_an_id_counts_within_the_type_that_a_file_is_called_after() -> None:
    items = [item("popular/1", kind="popular"), item("random/1", kind="random")]
    given = [row("1", part=("llava_random_answers",)), row("1", part=("llava_popular_answers",))]
    assert places(items, given) == [1, 0]
    assert places(items[:1], [row("1")]) == [0]  # of one type alone


def test_coco_ids_are_numbers_in_names() -> None:
    items = [item("a", picture="val2014/COCO_val2014_000000000042.jpg"), item("b", picture="7.jpg")]
    given = [row("7", id_field="image_id"), row("42", id_field="image_id")]
    assert places(items, given) == [1, 0]


def test_pictures_of_tasks_are_matched_by_their_questions() -> None:
    items = [
        item("count/1.jpg#1", "Two? Please answer yes or no.", "count", "count/1.jpg"),
        item("count/1.jpg#2", "One? Please answer yes or no.", "count", "count/1.jpg"),
        item("color/1.jpg#1", "Two? Please answer yes or no.", "color", "color/1.jpg"),
    ]
    given = [
        row(None, picture="1.jpg", question="One?  Please answer yes or no.", part=("count",)),
        row(None, picture="1.jpg", question="Two?", part=("color",)),
        # LLaVA: one id for both questions, the prompt goes on.
        row(
            "count/1.jpg",
            picture="count/1.jpg",
            question="<image>\ntwo?\nAnswer with one word.",
            part=("count",),
        ),
    ]
    assert places(items, given) == [2, 0, 1]


def test_without_ids_the_order_counts_and_questions_must_agree() -> None:
    items = [item("1", "Is there a dog?"), item("2", "Is there a cat?")]
    same = [row(question="Is there a dog?"), row(question="Is there a cat?")]
    assert match(items, same).how == "order"
    with pytest.raises(UserError, match="the predictions fit no items"):
        match(items, same[::-1])
    with pytest.raises(UserError, match="2 predictions in the order of the items; these are 1"):
        match(items, same[:1])


def test_ids_of_another_numbering_do_not_matter_where_the_order_fits() -> None:
    items = [item("1", "Is there a dog?"), item("2", "Is there a cat?")]
    given = [row(str(n), question=i.question) for n, i in enumerate(items, start=2)]
    assert places(items, given) == [0, 1]
    with pytest.raises(UserError, match="1 of 2 predictions belong to no item: '3'"):
        match(items, [row("2", question="Is there a cat?"), row("3", question="Is it?")])


def test_without_ids_types_may_come_in_another_order_or_alone() -> None:
    items = [
        item("popular/1", "Is there a dog?", "popular"),
        item("popular/2", "Is there a car?", "popular"),
        item("random/1", "Is there a dog?", "random"),
        item("random/2", "Is there a bed?", "random"),
    ]
    asked = [row(question=i.question) for i in items]
    given = [*asked[2:], *asked[:2]]
    assert places(items, given) == [2, 3, 0, 1]
    alone = match(items, asked[2:])
    assert sorted(alone.found) == ["random/1", "random/2"]
    named = [
        row(question=i.question, part=(f"answers_{i.type}",)) for i in (*items[2:], *items[:2])
    ]
    assert places(items, named) == [2, 3, 0, 1]
