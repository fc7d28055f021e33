from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import BenchmarkConfig, circular_copies
from eval.items import Item, Picture
from eval.prompts import Examples, Pictures, choice_texts, conversation, fill, raw_prompt
from vlm.errors import UserError

SOURCE = {"homepage": "https://example.org", "get": "Draw it."}


def benchmark(**settings: Any) -> BenchmarkConfig:
    needed = {
        "name": "x",
        "title": "x",
        "source": SOURCE,
        "format": "shards",
        "metrics": ["answers"],
    }
    return BenchmarkConfig.model_validate({**needed, **settings})


def picture(name: str) -> Picture:
    return Picture(name, f"file {name}".encode)


ITEM = Item(
    "i", "which?", (picture("a"),), choices=("red", "blue"), correct=(1,), fields={"hint": "{look}"}
)
TEXT = Item("t", "1 + 1 =", answers=("2",))
POOL = [
    Item(f"e{n}", f"{n} + {n} =", answers=(str(2 * n),), type="odd" if n % 2 else "even")
    for n in range(8)
]


def test_a_prompt_is_filled_with_the_items_words_only_once() -> None:
    assert fill("{hint} {question}\n{options}", ITEM) == "{look} which?\nA. red\nB. blue"
    with pytest.raises(UserError, match="names 'context', which item 'i' has not; it has hint"):
        fill("{context}", ITEM)


def test_a_conversation_shows_the_pictures_before_the_words() -> None:
    config = benchmark(system="Be brief.", prompt="{question}!")
    assert conversation(config, ITEM, [], Pictures()) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": b"file a"},
                {"type": "text", "text": "which?!"},
            ],
        },
    ]


def test_tags_place_pictures_and_repeated_ones_name_them() -> None:
    item = Item("i", "Is <image 2> like <image 1>? <image 2>!", (picture("a"), picture("b")))
    (message,) = conversation(benchmark(image_tags=True), item, [], Pictures())
    assert [part.get("text", part.get("image")) for part in message["content"]] == [
        "Is ",
        b"file b",
        " like ",
        b"file a",
        "? ",
        "<image 2>",
        "!",
    ]
    with pytest.raises(UserError, match="speaks of image 3, and has 1"):
        conversation(
            benchmark(image_tags=True), Item("i", "<image 3>", (picture("a"),)), [], Pictures()
        )


def test_examples_are_answered_as_they_are_to_be_answered() -> None:
    letters = benchmark(rule="letter", prompt="{question}\n{options}")
    _, answer, _ = conversation(letters, TEXT, [ITEM], Pictures())
    assert answer == {"role": "assistant", "content": "B"}
    _, answer, _ = conversation(benchmark(), TEXT, [ITEM], Pictures())
    assert answer["content"] == "blue"
    worked = Item("w", "?", answers=("2",), fields={"shown_answer": "1 and 1 make 2"})
    assert conversation(benchmark(), TEXT, [worked], Pictures())[1]["content"] == "1 and 1 make 2"


def test_raw_text_has_its_examples_before_it() -> None:
    config = benchmark(chat=False, header="Sums.", answer_prefix="\nA:", ask="choose")
    assert raw_prompt(config, TEXT, POOL[1:3]) == (
        "Sums.\n\n1 + 1 =\nA: 2\n\n2 + 2 =\nA: 4\n\n1 + 1 =\nA:"
    )
    with pytest.raises(UserError, match="item 'i' has pictures: set chat to true"):
        raw_prompt(config, ITEM, [])


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"choose_by": "letter"}, ["A", "B"]),
        ({"choose_by": "text"}, ["red", "blue"]),
        ({"choose_by": "letter", "chat": False}, [" A", " B"]),
        ({"chat": False, "answer_lead": ""}, ["red", "blue"]),
    ],
)
def test_what_is_scored_of_a_choice(settings: dict[str, Any], texts: list[str]) -> None:
    assert choice_texts(benchmark(ask="choose", **settings), ITEM) == texts


def test_examples_are_drawn_by_seed_and_item_and_never_the_item_itself() -> None:
    config = benchmark(few_shot={"num_examples": 3})
    drawn = {item.id: Examples(config, POOL).of(item) for item in POOL}
    again = {item.id: Examples(config, POOL).of(item) for item in POOL}
    assert drawn == again
    assert all(
        len(found) == 3 and item not in {e.id for e in found} for item, found in drawn.items()
    )
    assert len({tuple(e.id for e in found) for found in drawn.values()}) > 4
    other = benchmark(few_shot={"num_examples": 3, "seed": 1})
    assert any(Examples(other, POOL).of(item) != drawn[item.id] for item in POOL)


def test_examples_of_a_type_and_the_first_ones() -> None:
    of_type = Examples(benchmark(few_shot={"num_examples": 3, "by_type": True}), POOL)
    assert {e.type for e in of_type.of(POOL[2])} == {"even"}
    first = Examples(benchmark(few_shot={"num_examples": 2, "first": True}), POOL)
    assert [e.id for e in first.of(POOL[0])] == ["e1", "e2"]
    with pytest.raises(UserError, match=r"item 'e0' has 7 examples .*num_examples is 9"):
        Examples(benchmark(few_shot={"num_examples": 9}), POOL).of(POOL[0])


def test_an_example_shows_no_picture_and_no_group_of_the_item() -> None:
    pool = [
        Item("same picture", "?", (picture("a"),)),
        Item("same group", "?", group="g"),
        Item("other", "?", (picture("b"),)),
    ]
    item = Item("i", "?", (picture("a"),), group="g")
    (example,) = Examples(benchmark(few_shot={"num_examples": 1}), pool).of(item)
    assert example.id == "other"


def test_circular_copies_keep_the_right_choice_right() -> None:
    item = Item("q", "?", choices=("a", "b", "c"), correct=(1,))
    copies = list(circular_copies(item))
    assert [copy.id for copy in copies] == ["q", "q+1", "q+2"]
    assert [copy.choices for copy in copies] == [
        ("a", "b", "c"),
        ("b", "c", "a"),
        ("c", "a", "b"),
    ]
    assert all(copy.choices[copy.correct[0]] == "b" and copy.group == "q" for copy in copies)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="for raw text: set chat to false"):
        benchmark(answer_prefix="A:")
    with pytest.raises(ValueError, match="which files has not"):
        benchmark(optional_files=["x"])


def test_the_same_picture_is_read_once(tmp_path: Path) -> None:
    pictures = Pictures()
    first = pictures.read(Picture("p", lambda: bytes(bytearray(b"content"))))
    assert pictures.read(Picture("p", lambda: b"other")) is first
