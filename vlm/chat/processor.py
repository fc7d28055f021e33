"""Messages and pictures to one encoded row.

Axes: `S` text length.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from PIL import Image

from encoders.config import VisionConfig
from encoders.tiling import TiledImage, place, tile_draft, tile_picture
from vlm.chat.template import (
    LLAMA3_TEMPLATE,
    ChatTemplate,
    PartKind,
    Slot,
    Structure,
    read_chat_format,
)
from vlm.chat.tokenizer import Tokenizer
from vlm.errors import UserError
from vlm.images import read_draft, read_image
from vlm.inputs import EncodedImage, Example

ROLES = ("system", "user", "assistant")
# Chats of one structure share a plan; beyond this many structures the plans are made anew.
MAX_PLANS = 1024
# Longer chats are rarely alike, and many of their plans would fill a server's memory.
MAX_PLANNED_MESSAGES = 64


class Message(Protocol):
    """What one side says; parts have a `type`, "image" or "text", and text parts a `text`."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str | Sequence[Any]: ...


class Processor:
    """Turns chats and their pictures into model inputs."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, vision: VisionConfig) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.vision = vision
        self._plans: dict[tuple[Structure, bool], tuple[_Markup | _Words, ...]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vision: VisionConfig, vocab_size: int) -> Self:
        """Train a tokenizer on texts and pair it with Llama 3's template.

        Raises:
            UserError: `vocab_size` is too small.
        """
        tokenizer = Tokenizer.train(texts, vocab_size)
        template = ChatTemplate(LLAMA3_TEMPLATE, tokenizer.named_tokens)
        return cls(tokenizer, template, vision)

    @classmethod
    def from_folder(cls, folder: Path, vision: VisionConfig) -> Self:
        """Read the tokenizer and the template of a model folder or a Hugging Face tokenizer folder.

        Raises:
            UserError: a file is missing or damaged.
        """
        tokenizer, template = read_chat_format(folder)
        return cls(tokenizer, template, vision)

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hexadecimal, of what decides how text becomes tokens."""
        parts = f"{self.tokenizer.fingerprint}\n{self.template.source}"
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the template as transformers reads them."""
        self.tokenizer.save(folder)
        self.template.save(folder)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        images: Sequence[Image.Image | TiledImage | EncodedImage] = (),
        add_generation_prompt: bool = False,
    ) -> Example:
        """Encode a chat.

        Supervised are the words of the assistant and what ends its turns.

        Args:
            messages: each has a role and, as content, text or parts; see `Message`.
            images: one for each image part, in order; RGB pictures, or tiled or encoded already.
            add_generation_prompt: end with the header of an answer to come.
        Raises:
            UserError: a malformed message, another number of pictures than of image parts, or a
                chat that the template refuses.
        """
        ids, loss_mask, num_parts = self._encode_texts(messages, add_generation_prompt)
        if num_parts != len(images):
            raise UserError(
                f"the chat has {num_parts} image parts and comes with {len(images)} pictures; "
                "each part stands for one picture"
            )
        return Example(
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor(loss_mask, dtype=torch.bool),
            tuple(self.tile(i) if isinstance(i, Image.Image) else i for i in images),
        )

    def num_tokens(
        self, messages: Sequence[Mapping[str, Any] | Message], add_generation_prompt: bool = False
    ) -> int:
        """Return how many text tokens a chat has; a picture is one.

        Raises:
            UserError: a malformed message, or a chat that the template refuses.
        """
        return len(self._encode_texts(messages, add_generation_prompt)[0])

    def _encode_texts(
        self, messages: Sequence[Mapping[str, Any] | Message], add_generation_prompt: bool
    ) -> tuple[list[int], list[bool], int]:
        """The ids of a chat, which of them are supervised, and how many pictures it shows."""
        structure, texts = _read(messages)
        ids: list[int] = []
        loss_mask: list[bool] = []
        for step in self._plan(structure, add_generation_prompt):
            if isinstance(step, _Markup):
                ids += step.ids
                loss_mask += step.loss_mask
            else:
                words = self.tokenizer.encode(step.trim(texts[step.slot.index]))
                ids += words
                loss_mask += [step.supervised] * len(words)
        return ids, loss_mask, sum(kinds.count("image") for _, kinds in structure)

    def encode_answer(
        self, messages: Sequence[Mapping[str, Any] | Message], answer: str
    ) -> list[int]:
        """Return the ids of the words of an answer to a chat, as its template writes them.

        Raises:
            UserError: a malformed message, or a chat that the template refuses.
        """
        structure, texts = _read([*messages, {"role": "assistant", "content": answer}])
        words = [step for step in self._plan(structure, False) if isinstance(step, _Words)]
        last = max(words, key=lambda step: step.slot.index)
        return self.tokenizer.encode(last.trim(texts[-1]))

    def tile(self, image: Image.Image) -> TiledImage:
        """Cut an RGB picture into tiles.

        Raises:
            UserError: it is of another mode, or has no pixels.
        """
        try:
            return tile_picture(image, self.vision.tile_size_px, self.vision.max_num_tiles)
        except ValueError as error:
            raise UserError(str(error)) from error

    def tile_file(self, content: bytes, draft: bool = False) -> TiledImage:
        """Read the bytes of a picture file and cut it into tiles.

        Args:
            draft: decode a large JPEG at a reduced scale and resize with a faster kernel. Nearly
                the same pixels, for training; see `read_draft` and `tile_draft`.
        Raises:
            ImageError: it cannot be read.
        """
        if not draft:
            return self.tile(read_image(content))
        tiles = self.vision.tile_size_px, self.vision.max_num_tiles
        draft_image = read_draft(content, lambda height, width: place(height, width, *tiles)[1])
        return tile_draft(
            draft_image.image,
            draft_image.full_size_px,
            *tiles,
            draft_image.extent_px,
            draft_image.turn,
        )

    def _plan(
        self, structure: Structure, add_generation_prompt: bool
    ) -> tuple["_Markup | _Words", ...]:
        key = structure, add_generation_prompt
        if len(structure) > MAX_PLANNED_MESSAGES:
            return self._make_plan(*key)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._make_plan(structure, add_generation_prompt)
        return plan

    def _make_plan(
        self, structure: Structure, add_generation_prompt: bool
    ) -> tuple["_Markup | _Words", ...]:
        pieces = self.template.skeleton(structure, add_generation_prompt)
        slots = [piece for piece in pieces if isinstance(piece, Slot)]
        # The last words of each turn of the assistant; what follows them must end the turn.
        last = {slot.message: slot for slot in slots if structure[slot.message][0] == "assistant"}
        plan: list[_Markup | _Words] = []
        for before, piece in pairwise(("", *pieces, "")):
            ends_turn = isinstance(before, Slot) and last.get(before.message) == before
            markup = piece if isinstance(piece, str) else ""
            if markup or ends_turn:
                plan.append(self._markup(markup, ends_turn))
            if isinstance(piece, Slot):
                plan.append(_Words(piece, piece.message in last))
        return tuple(plan)

    def _markup(self, text: str, ends_turn: bool) -> "_Markup":
        """Tokenise what the template wrote; supervised is what the model must write to end."""
        ids = self.tokenizer.encode_markup(text)
        num_supervised = 0
        if ends_turn:
            ends = [index for index, token in enumerate(ids) if token in self.tokenizer.end_ids]
            if not ends:
                raise UserError(
                    f"the chat template writes {text!r} after the assistant's words: nothing that "
                    "ends a turn, so that no answer would ever end; needed is one of "
                    f"{self.tokenizer.decode(self.tokenizer.end_ids, skip_special=False)}"
                )
            num_supervised = ends[0] + 1
        return _Markup(ids, [index < num_supervised for index in range(len(ids))])


@dataclass(frozen=True)
class _Markup:
    """Tokens that the template wrote."""

    ids: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True)
class _Words:
    """The place of the words of a text part."""

    slot: Slot
    supervised: bool

    def trim(self, text: str) -> str:
        """Remove the outer whitespace that the template removes."""
        text = text.lstrip() if self.slot.trims_left else text
        return text.rstrip() if self.slot.trims_right else text


def _read(messages: Sequence[Mapping[str, Any] | Message]) -> tuple[Structure, list[str]]:
    """Return the structure of a chat and its texts, adjacent ones joined.

    Raises:
        UserError: there is no message, or one has an unknown role or a part of another kind.
    """
    if not messages:
        raise UserError("the chat has no messages; at least one is needed")
    structure = []
    texts: list[str] = []
    for number, message in enumerate(messages):
        if isinstance(message, Mapping):
            role, content = message.get("role"), message.get("content")
        else:
            role, content = message.role, message.content
        if role not in ROLES:
            raise UserError(
                f"messages[{number}] has the role {role!r}; there are {', '.join(ROLES)}"
            )
        kinds: list[PartKind] = []
        for kind, text in _read_parts(content, number):
            if kind == "text" and kinds[-1:] == ["text"]:
                texts[-1] += text
                continue
            kinds.append(kind)
            if kind == "text":
                texts.append(text)
        structure.append((role, tuple(kinds)))
    return tuple(structure), texts


def _read_parts(content: Any, number: int) -> Iterator[tuple[PartKind, str]]:
    """Yield kind and text of a message's parts; an image has no text."""
    if isinstance(content, str):
        yield "text", content
        return
    if not isinstance(content, Sequence):
        raise UserError(
            f"the content of messages[{number}] is a {type(content).__name__}, "
            "needed: text or a list of parts"
        )
    for part in content:
        try:
            kind = part["type"] if isinstance(part, Mapping) else part.type
            if kind == "image":
                yield "image", ""
                continue
            text = part["text"] if isinstance(part, Mapping) else part.text
        except (KeyError, AttributeError):
            kind = text = None
        if kind != "text" or not isinstance(text, str):
            raise UserError(
                f"messages[{number}] has a part that is neither "
                '{"type": "text", "text": ...} nor {"type": "image"}'
            )
        yield "text", text
