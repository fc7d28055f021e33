"""What is asked and what was answered: the words that readers, metrics and reports share."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from vlm.errors import UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Picture:
    """A picture of an item, read when it is needed.

    name: tells pictures of a benchmark apart; items that show the same picture name it alike.
    read: returns the bytes of the file as it is encoded.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def without_content(self) -> "Picture":
        """The same picture by name, for what only needs to know which it is."""

        def gone() -> bytes:
            raise UserError(f"picture {self.name!r} is known by its name only")

        return Picture(self.name, gone)


@dataclass(frozen=True)
class Item:
    """One thing that a benchmark asks.

    id: unique in the benchmark; the published one where there is one.
    question: what is asked, without options or instructions, which the prompt adds.
    answers: texts that count as right, all of them as published: ten people's in VQA.
    choices, correct: the options of a multiple choice question, and which of them are right.
    type: what figures are reported by, beside all together.
    group: items of a group count as one, as the metric says: circular copies, a pair, a caption and
        its negative.
    fields: more words for the prompt, by the name that stands there in braces: `context`.
    facts: what only the metric reads.
    follow_ups: questions that are asked after the first was answered, in the same chat.
    """

    id: str
    question: str
    images: tuple[Picture, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    type: str = "all"
    group: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    follow_ups: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """The choices as lines, `A. first`."""
        lines = zip(LETTERS, self.choices, strict=False)
        return "\n".join(f"{letter}. {choice}" for letter, choice in lines)

    def blind(self) -> "Item":
        """The same item without its pictures."""
        return replace(self, images=())

    def without_content(self) -> "Item":
        """The same item with pictures by name only: what scoring keeps of it."""
        return replace(self, images=tuple(image.without_content() for image in self.images))


@dataclass(frozen=True)
class Answer:
    """What a model said to an item, as a benchmark's rule reads it.

    text: as it was written.
    value: what counts of it, by the rule; in multiple choice the chosen option.
    choice: which of the item's choices was chosen; None where there are none, or none was readable.
    logprobs: of each of the item's choices, natural logarithms, where they were measured; of one
        with several tokens, their sum.
    num_tokens: of each choice, where `logprobs` were measured.
    follow_ups: as written, to `Item.follow_ups`.
    """

    text: str
    value: str
    choice: int | None = None
    logprobs: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    follow_ups: tuple[str, ...] = ()


# The answer to an item that was not answered: wrong by every metric, and never drawn by lot.
MISSING = Answer(text="", value="", choice=-1)


def items_sha256(items: Iterable[Item], shown: Iterable[Sequence[str]] = ()) -> str:
    """The hash of all that is asked and of what counts as right.

    Args:
        shown: the hashes of each item's pictures, where they were read.
    """
    digest = sha256()
    for item in items:
        content = [
            item.id, item.question, item.answers, item.choices, item.correct, item.type,
            item.group, dict(item.fields), item.follow_ups,
        ]  # fmt: skip
        digest.update(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for pictures in shown:
        digest.update(json.dumps(pictures).encode())
    return digest.hexdigest()
