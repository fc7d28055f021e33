"""Questions out of packed shards, each to be asked alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.schema import ImagePart, RawSample, Turn
from data.shards import read_folder

UNTYPED = "other"
CAPTION_TYPE = "caption"


@dataclass(frozen=True)
class EvalQuestion:
    """A question with its pictures, encoded, and every answer that counts as right."""

    key: str
    text: str
    images: tuple[bytes, ...]
    type: str
    answers: tuple[str, ...]

    @property
    def usual_answer(self) -> str:
        """The most frequent of the answers, the first one among equals."""
        return Counter(self.answers).most_common(1)[0][0]


def read_questions(folder: Path) -> Iterator[EvalQuestion]:
    """Yield every question of a folder of shards; captions are no questions and are left out.

    Raises:
        UserError: no manifest, or a shard that differs from it.
    """
    for raw in read_folder(folder):
        yield from sample_questions(raw)


def sample_questions(raw: RawSample) -> Iterator[EvalQuestion]:
    """Yield the questions of one chat.

    A question comes with all pictures shown up to it and nothing else: no system message, no
    earlier question. What is asked about an earlier answer ("and why?") cannot be measured so.
    """
    sample = raw.sample
    turns = sample.turns or (Turn(),) * sample.num_turns
    num_shown = index = 0
    text = ""
    for message in sample.messages:
        num_shown += sum(isinstance(part, ImagePart) for part in message.content)
        if message.role == "user":
            text = message.text
        elif message.role == "assistant":
            kind = turns[index].type or UNTYPED
            if kind != CAPTION_TYPE:
                yield EvalQuestion(
                    key=f"{raw.key}#{index}",
                    text=text,
                    images=tuple(raw.images[:num_shown]),
                    type=kind,
                    answers=sample.accepted_answers[index],
                )
            index += 1
