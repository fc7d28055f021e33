"""Questions out of packed shards, each to be asked alone."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data.schema import ImagePart, RawSample, Turn
from data.shards import read_folder
from eval.files import Files
from eval.items import Item, Picture
from vlm.errors import UserError

UNTYPED = "other"
CAPTION_TYPE = "caption"


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every question of a folder of shards; captions are no questions and are left out.

    Raises:
        UserError: no manifest, or a shard that differs from it.
    """
    if options:
        raise UserError(f"format shards has no option {next(iter(options))!r}")
    yield from read_questions(files.folder)


def read_questions(folder: Path) -> Iterator[Item]:
    """Yield every question of a folder of shards; see `read`."""
    for raw in read_folder(folder):
        yield from sample_questions(raw)


def sample_questions(raw: RawSample) -> Iterator[Item]:
    """Yield the questions of one chat.

    A question comes with all pictures shown up to it and nothing else: no system message, no
    earlier question. What is asked about an earlier answer ("and why?") cannot be measured so.
    """
    sample = raw.sample
    turns = sample.turns or (Turn(),) * sample.num_turns
    pictures = tuple(
        Picture(f"{raw.key}.{number}", partial(bytes, content))
        for number, content in enumerate(raw.images)
    )
    num_shown = index = 0
    text = ""
    for message in sample.messages:
        num_shown += sum(isinstance(part, ImagePart) for part in message.content)
        if message.role == "user":
            text = message.text
        elif message.role == "assistant":
            kind = turns[index].type or UNTYPED
            if kind != CAPTION_TYPE:
                yield Item(
                    id=f"{raw.key}#{index}",
                    question=text,
                    images=pictures[:num_shown],
                    type=kind,
                    answers=sample.accepted_answers[index],
                )
            index += 1
