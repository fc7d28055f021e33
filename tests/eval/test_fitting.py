from typing import Any

import pytest

import vlm
from eval.fitting import Fitting
from vlm.errors import UserError


def said(role: str, words: str, *images: bytes) -> dict[str, Any]:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": words}]}


CHAT = [
    said("system", "Be brief."),
    said("user", "one two three", b"picture"),
    said("assistant", "four"),
    said("user", "five six seven"),
    said("assistant", "eight"),
    said("user", "nine ten eleven twelve", b"picture"),
]


@pytest.fixture(scope="module")
def unlimited(model: vlm.Model) -> Fitting:
    return Fitting(model.processor, 10_000)


def limited(unlimited: Fitting, max_tokens: int) -> Fitting:
    return Fitting(unlimited.processor, max_tokens)


def test_what_fits_is_left_alone(unlimited: Fitting) -> None:
    size = unlimited.num_tokens(CHAT)
    assert limited(unlimited, size + 5).fit(CHAT, 5) == (CHAT, False)
    assert limited(unlimited, size + 4).fit(CHAT, 5) != (CHAT, False)


def test_a_chat_loses_its_first_turns_and_keeps_its_system_message(unlimited: Fitting) -> None:
    size = unlimited.num_tokens(CHAT)
    assert limited(unlimited, size - 1).fit(CHAT, 0) == ([CHAT[0], *CHAT[3:]], True)
    alone = unlimited.num_tokens([CHAT[0], CHAT[5]])
    assert limited(unlimited, alone).fit(CHAT, 0) == ([CHAT[0], CHAT[5]], True)


def test_then_the_last_message_loses_the_beginning_of_its_words_and_no_picture(
    unlimited: Fitting,
) -> None:
    alone = unlimited.num_tokens([CHAT[0], CHAT[5]])
    (_, last), cut = limited(unlimited, alone - 8).fit(CHAT, 0)
    words = last["content"][-1]["text"]
    assert cut and last["content"][0] == {"type": "image", "image": b"picture"}
    assert words and CHAT[5]["content"][-1]["text"].endswith(words)
    longer = CHAT[5]["content"][-1]["text"][-len(words) - 1 :]
    assert unlimited.num_tokens([CHAT[0], said("user", longer, b"")]) > alone - 8
    with pytest.raises(UserError, match=r"lower decoding\.max_tokens, or shorten the system"):
        limited(unlimited, 3).fit(CHAT, 0)


def test_a_text_loses_its_beginning(unlimited: Fitting) -> None:
    text = " ".join(str(number) for number in range(200))
    size = unlimited.num_tokens(text)
    kept, cut = limited(unlimited, size // 2).fit(text, 10)
    assert cut and text.endswith(kept)
    assert size // 2 - 14 <= unlimited.num_tokens(kept) <= size // 2 - 10
    with pytest.raises(UserError, match="leaves room for -1"):
        limited(unlimited, 9).fit(text, 10)
