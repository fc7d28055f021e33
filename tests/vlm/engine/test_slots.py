"""Which slot a prompt gets, and what it need not compute again."""

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.engine.request import Request
from vlm.engine.sampling import Sampler, SamplingConfig
from vlm.engine.slots import Answer, Slot, choose_slot, common_prefix
from vlm.inputs import Example

IMAGE = 99


def answer(prompt: Sequence[int], image_keys: tuple[str, ...] = ()) -> Answer:
    ids = torch.tensor(prompt)
    request = Request(Example(ids, ids > 0, ()), SamplingConfig(), 1, image_keys)
    return Answer(0, request, list(prompt), Sampler(SamplingConfig(), ()))


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_a_common_prefix_is_the_longest(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or not (
        first[length:] and second[length:]
    )


def test_a_slot_saves_its_common_prefix_but_the_last_token() -> None:
    slot = Slot(0, [1, 2, 3, 4])
    assert slot.reusable_tokens(answer([1, 2, 3, 4, 5]), IMAGE) == 4
    assert slot.reusable_tokens(answer([1, 2, 3, 4]), IMAGE) == 3
    assert slot.reusable_tokens(answer([1, 2, 9, 4]), IMAGE) == 2
    assert slot.reusable_tokens(answer([1, 9, 3, 4]), IMAGE) == 0  # less than half


def test_another_picture_ends_what_is_saved() -> None:
    slot = Slot(0, [1, 2, IMAGE, 4, IMAGE, 6], ("a", "b"))
    prompt = [1, 2, IMAGE, 4, IMAGE, 6, 7]
    assert slot.reusable_tokens(answer(prompt, ("a", "b")), IMAGE) == 6
    assert slot.reusable_tokens(answer(prompt, ("a", "c")), IMAGE) == 4
    assert slot.reusable_tokens(answer(prompt, ("c", "b")), IMAGE) == 0
    written = Slot(0, [1, 2, IMAGE, 4, IMAGE, 6], ("a",))
    assert written.reusable_tokens(answer(prompt, ("a", "b")), IMAGE) == 4


def test_a_prompt_gets_the_slot_that_saves_most() -> None:
    slots = [Slot(0, [1, 2, 3]), Slot(1, [1, 2, 3, 4]), Slot(2, [7])]
    chosen = choose_slot(slots, answer([1, 2, 3, 4, 5]), IMAGE)
    assert chosen is not None and (chosen[0].index, chosen[1]) == (1, 4)


def test_busy_slots_stay_close_together_and_the_oldest_goes_first() -> None:
    slots = [Slot(index, last_used=10 - index) for index in range(4)]
    chosen = choose_slot(slots, answer([1, 2]), IMAGE)
    assert chosen is not None and chosen[0].index == 3
    slots[1].answer = answer([1])
    chosen = choose_slot(slots, answer([1, 2]), IMAGE)
    assert chosen is not None and chosen[0].index == 2
    for slot in slots:
        slot.answer = answer([1])
    assert choose_slot(slots, answer([1, 2]), IMAGE) is None
