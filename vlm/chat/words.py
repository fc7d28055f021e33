"""The words of an answer, and the tokens that write each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.chat.answer import UNFINISHED
from vlm.chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Word:
    """What stands between whitespace. places: of the tokens that write some of it, in order."""

    text: str
    places: tuple[int, ...]


def answer_words(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Word]:
    """Return the words of an answer; a token that writes parts of two words belongs to both."""
    # Characters that tokens write, a group for those that share the bytes of one.
    groups: list[tuple[list[int], int, int]] = []
    places: list[int] = []
    start, text = 0, ""
    for place in range(len(token_ids)):
        places.append(place)
        text = tokenizer.decode(token_ids[: place + 1])
        if not text.endswith(UNFINISHED) or place == len(token_ids) - 1:
            groups.append((places, start, len(text)))
            places, start = [], len(text)
    return [
        Word(
            found[0],
            tuple(
                place
                for group, first, end in groups
                if first < found.end() and end > found.start()
                for place in group
            ),
        )
        for found in re.finditer(r"\S+", text)
    ]
