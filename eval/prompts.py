"""What a model is shown: an item, and the examples before it, as a chat or as raw text."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.benchmark import BenchmarkConfig
from eval.items import LETTERS, Item, Picture
from vlm.errors import UserError

Message = dict[str, Any]
# Where MMMU's questions and options stand their pictures.
_IMAGE_TAG = re.compile(r"<image (\d+)>")
# Between the examples of a raw prompt.
SEPARATOR = "\n\n"


class Pictures:
    """Reads pictures once: equal names give the same object, so that it is encoded once."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def read(self, picture: Picture) -> bytes:
        """The encoded bytes of a picture."""
        content = self._known.get(picture.name)
        if content is None:
            content = self._known[picture.name] = picture.read()
        return content


class Examples:
    """The items that may be shown as examples, and the choice of those for an item."""

    def __init__(self, benchmark: BenchmarkConfig, pool: Sequence[Item]) -> None:
        self.config = benchmark.few_shot
        self.pool = pool
        self._by_type: dict[str, list[Item]] = {}
        for item in pool:
            self._by_type.setdefault(item.type, []).append(item)

    def of(self, item: Item) -> list[Item]:
        """The examples before an item; the same ones each time.

        Raises:
            UserError: there are too few.
        """
        if self.config is None:
            return []
        pool = self._by_type.get(item.type, []) if self.config.by_type else self.pool
        names = {picture.name for picture in item.images}
        allowed = [
            other
            for other in pool
            if other.id != item.id
            and (other.group is None or other.group != item.group)
            and names.isdisjoint(picture.name for picture in other.images)
        ]
        count = self.config.num_examples
        if len(allowed) < count:
            raise UserError(
                f"item {item.id!r} has {len(allowed)} examples to choose from, "
                f"few_shot.num_examples is {count}"
            )
        if self.config.first:
            return allowed[:count]
        return random.Random(f"{self.config.seed} {item.id}").sample(allowed, count)


def conversation(
    benchmark: BenchmarkConfig, item: Item, examples: Sequence[Item], pictures: Pictures
) -> list[Message]:
    """The chat that asks an item, as `Model.chat` takes it."""
    messages: list[Message] = []
    if benchmark.system is not None:
        messages.append({"role": "system", "content": benchmark.system})
    for example in examples:
        messages.append({"role": "user", "content": _parts(benchmark, example, pictures)})
        messages.append({"role": "assistant", "content": shown_answer(benchmark, example)})
    messages.append({"role": "user", "content": _parts(benchmark, item, pictures)})
    return messages


def raw_prompt(benchmark: BenchmarkConfig, item: Item, examples: Sequence[Item]) -> str:
    """The text that a model continues.

    Raises:
        UserError: an item has pictures, for which raw text has no place.
    """
    for shown in (*examples, item):
        if shown.images:
            raise UserError(f"item {shown.id!r} has pictures: set chat to true")
    parts = [fill(benchmark.header, item)] if benchmark.header else []
    for example in examples:
        answer = benchmark.answer_lead + shown_answer(benchmark, example)
        parts.append(fill(benchmark.prompt, example) + benchmark.answer_prefix + answer)
    parts.append(fill(benchmark.prompt, item) + benchmark.answer_prefix)
    return SEPARATOR.join(parts)


def choice_texts(benchmark: BenchmarkConfig, item: Item) -> list[str]:
    """What is scored of each choice.

    Raises:
        UserError: the item has no choices.
    """
    if not item.choices:
        raise UserError(f"item {item.id!r} has no choices, which ask: {benchmark.ask} needs")
    if benchmark.choose_by == "letter":
        texts = list(LETTERS[: len(item.choices)])
    else:
        texts = list(item.choices)
    return texts if benchmark.chat else [benchmark.answer_lead + text for text in texts]


def shows_pictures(prompt: str | Sequence[Message]) -> bool:
    """Whether a prompt shows any picture."""
    if isinstance(prompt, str):
        return False
    parts = [part for message in prompt for part in message["content"]]
    return any(isinstance(part, dict) and part["type"] == "image" for part in parts)


def shown_answer(benchmark: BenchmarkConfig, item: Item) -> str:
    """How an example is answered: its own words for it, a letter, a choice or the usual answer.

    Raises:
        UserError: nothing says what is right.
    """
    if "shown_answer" in item.fields:
        return item.fields["shown_answer"]
    if item.correct:
        by_letter = benchmark.rule == "letter" or benchmark.choose_by == "letter"
        return LETTERS[item.correct[0]] if by_letter else item.choices[item.correct[0]]
    if item.answers:
        return usual_answer(item)
    raise UserError(f"item {item.id!r} has no answer and cannot be an example")


def usual_answer(item: Item) -> str:
    """The most frequent of the answers, the first one among equals."""
    return max(item.answers, key=item.answers.count)


def fill(template: str, item: Item) -> str:
    """Put an item's words into a prompt.

    Raises:
        UserError: the prompt names a field that the item has not.
    """
    words: Mapping[str, str] = {
        **item.fields,
        "question": item.question,
        "options": item.options,
    }
    try:
        return template.format_map(words)
    except KeyError as error:
        raise UserError(
            f"the prompt names {error}, which item {item.id!r} has not; it has {', '.join(words)}"
        ) from None
    except (ValueError, IndexError) as error:
        raise UserError(f"the prompt {template!r} cannot be filled: {error}") from None


def _parts(benchmark: BenchmarkConfig, item: Item, pictures: Pictures) -> list[dict[str, Any]]:
    """An item's message: its pictures first, or each where a tag stands for it."""
    text = fill(benchmark.prompt, item)
    images = [{"type": "image", "image": pictures.read(picture)} for picture in item.images]
    if not (benchmark.image_tags and images and _IMAGE_TAG.search(text)):
        return [*images, {"type": "text", "text": text}]
    parts: list[dict[str, Any]] = []
    shown: set[int] = set()
    for number, piece in enumerate(_IMAGE_TAG.split(text)):
        if number % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
        elif int(piece) in shown:
            # A picture is shown where it is first spoken of, and named after that.
            parts.append({"type": "text", "text": f"<image {piece}>"})
        elif 1 <= int(piece) <= len(images):
            shown.add(int(piece))
            parts.append(images[int(piece) - 1])
        else:
            raise UserError(f"item {item.id!r} speaks of image {piece}, and has {len(images)}")
    unseen = [image for number, image in enumerate(images, 1) if number not in shown]
    return [*unseen, *parts]
