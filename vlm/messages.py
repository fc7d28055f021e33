"""Conversations as callers of the API give them: text, and images among it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.errors import UserError

ImageSource = str | Path | bytes | Image.Image


def as_sequence(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    """One image, or several, as several."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    return images


def question_chat(images: Sequence[ImageSource], question: str) -> list[dict[str, Any]]:
    """A chat that shows images and asks a question."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def split_images(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[ImageSource]]:
    """Separate the images of messages from their places.

    Raises:
        UserError: a message is not of the form that `vlm.api.Model.chat` tells.
    """
    plain: list[dict[str, Any]] = []
    images: list[ImageSource] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise UserError(f"{where} is a {type(message).__name__}, needed: role and content")
        if set(message) != {"role", "content"}:
            raise UserError(f"{where} has the keys {sorted(message)}, needed: role and content")
        content = message["content"]
        if not isinstance(content, str | list | tuple):
            raise UserError(
                f"the content of {where} is a {type(content).__name__}, "
                "needed: text or a list of parts"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kept = []
        for part in parts:
            match part:
                case {"type": "image", "image": image}:
                    images.append(image)
                    kept.append({"type": "image"})
                case {"type": "text", "text": str(text)}:
                    kept.append({"type": "text", "text": text})
                case _:
                    raise UserError(
                        f"{where} has a part that is neither "
                        '{"type": "text", "text": ...} nor {"type": "image", "image": ...}'
                    )
        plain.append({"role": message["role"], "content": kept})
    return plain, images
