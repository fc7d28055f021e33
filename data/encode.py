"""Samples to encoded rows: a chat for next-token training, or a picture and a text to contrast."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data.config import DataConfig
from data.features import read_features
from data.schema import ImagePart, Message, RawSample, Sample, TextPart
from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.inputs import EncodedImage, Example

Supervision = Literal["assistant", "all"]


@dataclass(frozen=True)
class ChatRows:
    """The rows of one sample: its whole chat, or its turns one by one; they share its pictures."""

    key: str
    examples: tuple[Example, ...]

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """Text tokens of each row."""
        return tuple(len(example.input_ids) for example in self.examples)

    @property
    def num_tiles(self) -> int:
        """Tiles of its pictures, each picture counted once."""
        images = {id(image): image for example in self.examples for image in example.images}
        return sum(image.num_tiles for image in images.values())


@dataclass(frozen=True)
class PairRow:
    """A picture and a text that belong together.

    text_ids: (S,) int64, ending with the end-of-text token.
    """

    key: str
    image: TiledImage
    text_ids: Tensor

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """Text tokens; a pair is one row."""
        return (len(self.text_ids),)

    @property
    def num_tiles(self) -> int:
        """Tiles of the picture."""
        return self.image.num_tiles


class ChatEncoder:
    """Encode a sample as one chat, or as one row per turn, as `DataConfig.split_turns` says.

    supervision: `assistant` is for stages that answer about pictures; `all` is for text training,
        which supervises every token and leaves the pictures out.
    """

    def __init__(self, processor: Processor, config: DataConfig, supervision: Supervision) -> None:
        self.processor = processor
        self.config = config
        self.supervision = supervision

    def __call__(self, raw: RawSample, rng: random.Random) -> ChatRows:
        """Return the encoded rows; the same `rng` gives the same rows.

        Raises:
            UserError: a picture cannot be read, or a row exceeds `max_tokens`.
        """
        images: list[TiledImage | EncodedImage] = []
        messages = raw.sample.messages
        if self.supervision == "all":
            messages = without_images(messages)
        elif raw.has_features:
            images += [read_features(content, self.processor) for content in raw.images]
        else:
            draft = self.config.draft
            images += [self.processor.tile_file(content, draft) for content in raw.images]
        chats = [messages]
        if self.config.split_turns:
            chats = single_turns(messages)
            most = self.config.max_turns
            if most is not None and most < len(chats):
                chats = rng.sample(chats, most)
        return ChatRows(raw.key, tuple(self._row(chat, images) for chat in chats))

    def _row(
        self, messages: Sequence[Message], images: Sequence[TiledImage | EncodedImage]
    ) -> Example:
        example = self.processor.encode(messages, images)
        if len(example.input_ids) > self.config.max_tokens:
            raise UserError(
                f"{len(example.input_ids)} tokens, more than max_tokens {self.config.max_tokens}"
            )
        if self.supervision == "all":
            everything = torch.ones_like(example.loss_mask)
            return Example(example.input_ids, everything, example.images)
        return example


class PairEncoder:
    """Encode a sample as its first picture and one text.

    The text is one of the sample's captions, drawn anew each epoch; where it has none, its
    questions and answers in a new order, as many as fit into `max_tokens`. draft: see `DataConfig`.
    """

    def __init__(self, processor: Processor, max_tokens: int, draft: bool = False) -> None:
        self.processor = processor
        self.max_tokens = max_tokens
        self.draft = draft

    def __call__(self, raw: RawSample, rng: random.Random) -> PairRow:
        """Return the encoded pair; the same `rng` gives the same pair.

        Raises:
            UserError: the sample has no picture, it cannot be read, or no text fits.
        """
        if not raw.images:
            raise UserError("a text-only sample has no picture to contrast")
        picture = self.processor.tile_file(raw.images[0], self.draft)
        text_ids = self._text_ids(raw.sample, rng)
        return PairRow(raw.key, picture, torch.tensor(text_ids))

    def _text_ids(self, sample: Sample, rng: random.Random) -> list[int]:
        tokenizer = self.processor.tokenizer
        room = self.max_tokens - 1
        pairs = question_answers(sample)
        captions = [answer for _, answer, kind in pairs if kind == "caption"]
        if captions:
            return [*tokenizer.encode(rng.choice(captions))[:room], tokenizer.eot_id]
        texts = [f"{question} {answer}" for question, answer, _ in pairs]
        rng.shuffle(texts)
        ids: list[int] = []
        for piece in tokenizer.encode_batch(texts):
            if len(ids) + len(piece) <= room:
                ids += piece
        if not ids:
            raise UserError(f"no question and answer fits into max_tokens {self.max_tokens}")
        return [*ids, tokenizer.eot_id]


def question_answers(sample: Sample) -> list[tuple[str, str, str | None]]:
    """Each assistant turn as (what the user said before it, its text, its type)."""
    pairs: list[tuple[str, str, str | None]] = []
    question = ""
    for message in sample.messages:
        if message.role == "assistant":
            kind = sample.turns[len(pairs)].type if sample.turns else None
            pairs.append((question, message.text, kind))
        else:
            question = message.text
    return pairs


def without_images(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A chat without its pictures; a message that only showed some is left empty."""
    return tuple(
        message.model_copy(
            update={"content": tuple(p for p in message.content if isinstance(p, TextPart))}
        )
        for message in messages
    )


def single_turns(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """Make a chat of each question/answer turn: the system message, the images, the turn."""
    system = tuple(message for message in messages[:1] if message.role == "system")
    turns = list(zip(messages[len(system) :: 2], messages[len(system) + 1 :: 2], strict=True))
    image_parts = [p for user, _ in turns for p in user.content if isinstance(p, ImagePart)]
    chats: list[tuple[Message, ...]] = []
    for user, assistant in turns:
        words = [part for part in user.content if isinstance(part, TextPart)]
        question = user.model_copy(update={"content": (*image_parts, *words)})
        chats.append((*system, question, assistant))
    return chats
