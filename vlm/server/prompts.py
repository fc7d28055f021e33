"""Conversations to prompts: images fetched, decoded and cut in threads of their own, all limits."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm.chat.processor import Processor
from vlm.engine.image_cache import image_key
from vlm.errors import UserError
from vlm.images import ImageError, read_image
from vlm.inputs import Example
from vlm.safety.policy import ContentPolicyError, Safety
from vlm.server.config import ServerConfig
from vlm.server.errors import ApiError
from vlm.server.images import ImageSource
from vlm.server.schema import ChatMessage, TextPart

# What decoders may put into a message and no client should read: addresses, paths.
INTERNALS = re.compile(r"0x[0-9a-fA-F]{4,}|<[^>]*>|[\w.]*/[\w./-]+")


@dataclass(frozen=True)
class Prompt:
    """A conversation as the engine reads it.

    image_keys: for each image, a name that only the same decoded picture has.
    """

    example: Example
    image_keys: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Its text tokens."""
        return len(self.example.input_ids)


@dataclass(frozen=True)
class _Reference:
    """An image that was asked for: its bytes, or the URI that holds them."""

    param: str
    url: str
    content: bytes | None = None


class PromptReader:
    """Reads conversations, a few at a time."""

    def __init__(
        self,
        processor: Processor,
        config: ServerConfig,
        source: ImageSource,
        safety: Safety | None = None,
    ) -> None:
        self._processor = processor
        self._safety = safety
        self._config = config
        self._source = source
        self._threads = ThreadPoolExecutor(config.decode_threads, "decode")

    def close(self) -> None:
        """Let its threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read_chat(self, messages: Sequence[ChatMessage]) -> Prompt:
        """Encode a conversation.

        Raises:
            ApiError: an image that is not allowed or cannot be read, too many of them, too long a
                text, or what the model's chat template or the content policy refuses.
            ClassifierError: the content policy could not be applied.
        """
        references: list[_Reference] = []
        plain: list[dict[str, Any]] = []
        for number, message in enumerate(messages):
            parts: list[dict[str, str]] = []
            for place, part in enumerate(message.parts):
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                    continue
                param = f"messages[{number}].content[{place}].image_url.url"
                references.append(_Reference(param, part.image_url.url))
                parts.append({"type": "image"})
            role = "system" if message.role == "developer" else message.role
            plain.append({"role": role, "content": parts})
        return await self._read(plain, references, "messages")

    async def read_question(self, images: Sequence[bytes], question: str) -> Prompt:
        """Encode a question about images.

        Raises:
            ApiError: see `read_chat`.
        """
        references = [
            _Reference(f"image[{index}]", "", content) for index, content in enumerate(images)
        ]
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        return await self._read([{"role": "user", "content": parts}], references, "question")

    async def _read(
        self, messages: list[dict[str, Any]], references: Sequence[_Reference], param: str
    ) -> Prompt:
        self._check_size(messages, len(references), param)
        fetched = [
            r
            if r.content is not None
            else _Reference(r.param, r.url, await self._source.fetch(r.url, r.param))
            for r in references
        ]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode, messages, fetched, param)

    def _check_size(
        self, messages: Sequence[Mapping[str, Any]], num_images: int, param: str
    ) -> None:
        limits = self._config
        if num_images > limits.max_images:
            raise ApiError(
                400,
                f"{num_images} images, allowed: {limits.max_images}",
                param if param == "messages" else "image",
                "too_many_images",
            )
        num_chars = sum(
            len(part.get("text", "")) for message in messages for part in message["content"]
        )
        if num_chars > limits.max_text_chars:
            raise ApiError(
                400,
                f"{num_chars} characters of text, allowed: {limits.max_text_chars}",
                param,
                "context_length_exceeded",
            )

    def _encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        references: Sequence[_Reference],
        param: str,
    ) -> Prompt:
        pictures = [self._decode(reference) for reference in references]
        self._check_policy(messages, pictures, param)
        images = [self._processor.tile(picture) for picture in pictures]
        try:
            example = self._processor.encode(messages, images, add_generation_prompt=True)
        except UserError as error:
            raise ApiError(400, f"{param}: {error}", param) from error
        return Prompt(example, tuple(map(image_key, images)))

    def _check_policy(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Image.Image],
        param: str,
    ) -> None:
        if self._safety is None:
            return
        texts = [part["text"] for m in messages for part in m["content"] if "text" in part]
        try:
            self._safety.check_input("\n".join(texts), pictures)
        except ContentPolicyError as error:
            raise ApiError(400, str(error), param, "content_policy") from error

    def _decode(self, reference: _Reference) -> Image.Image:
        content, param = reference.content, reference.param
        if content is None:
            content = self._source.read(reference.url, param)
        try:
            return read_image(content, self._config.max_pixels)
        except ImageError as error:
            reason = INTERNALS.sub("...", str(error))
            raise ApiError(400, f"{param}: {reason}", param, "invalid_image") from error
