"""What a sample is: a chat, the labels of its answers, and the encoded pictures it shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlm.errors import UserError


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class TextPart(BaseModel):
    """Words of a message. Text that looks like a special token is text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"] = "text"
    text: Text


class ImagePart(BaseModel):
    """The place of the sample's next picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["image"] = "image"


Part = Annotated[ImagePart | TextPart, Field(discriminator="type")]


class Message(BaseModel):
    """What one side says; only the user shows pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...] = Field(min_length=1)

    @property
    def text(self) -> str:
        """The words of the message, its text parts joined by a space."""
        return " ".join(part.text for part in self.content if isinstance(part, TextPart))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content):
            raise ValueError(f"a picture in a message of the {self.role}: only the user shows them")
        return self


class Turn(BaseModel):
    """Labels of one assistant message.

    type: the kind of question, by which accuracy is reported.
    answers: what counts as right; empty means the assistant's own text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str | None = None
    answers: tuple[str, ...] = ()


class Sample(BaseModel):
    """A chat: an optional system message, then user and assistant by turns, the assistant last.

    turns: nothing, or one entry for each assistant message.
    source: where the sample comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...]
    turns: tuple[Turn, ...] = ()
    source: str | None = None

    @property
    def num_images(self) -> int:
        """How many pictures the chat shows."""
        return sum(isinstance(p, ImagePart) for message in self.messages for p in message.content)

    @property
    def num_turns(self) -> int:
        """How many assistant messages the chat has."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def accepted_answers(self) -> tuple[tuple[str, ...], ...]:
        """For each assistant message, what counts as right when a model answers in its place."""
        texts = [message.text for message in self.messages if message.role == "assistant"]
        turns = self.turns or [Turn()] * len(texts)
        return tuple(turn.answers or (text,) for turn, text in zip(turns, texts, strict=True))

    def to_json(self) -> str:
        """The sample as it is kept in a shard: one line, the same for equal samples."""
        data = self.model_dump(mode="json", exclude_none=True)
        turns = [{name: value for name, value in t.items() if value} for t in data.pop("turns")]
        if turns:
            data["turns"] = turns
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def parse(content: bytes | str | Mapping[str, Any]) -> "Sample":
        """Read a sample from JSON or from what JSON holds.

        Raises:
            UserError: not JSON, or not a sample; says which part is wrong.
        """
        try:
            if isinstance(content, bytes | str):
                return Sample.model_validate_json(content)
            return Sample.model_validate(content)
        except ValidationError as error:
            raise UserError(first_fault(error)) from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        roles = [message.role for message in self.messages]
        talk = roles[1:] if roles[:1] == ["system"] else roles
        expected = ["user", "assistant"] * (len(talk) // 2)
        if not talk or talk != expected:
            raise ValueError(
                "roles must be user and assistant by turns, the assistant last, after an optional "
                f"system message; they are {', '.join(roles) or 'none'}"
            )
        if self.turns and len(self.turns) != self.num_turns:
            raise ValueError(
                f"{len(self.turns)} entries in turns for {self.num_turns} assistant messages"
            )
        return self


@dataclass(frozen=True)
class RawSample:
    """A sample with its encoded pictures, in the order of its image parts.

    key: unique in a data set; `sample_key` makes one from any text.
    has_features: whether `images` are what an encoder made of the pictures (`data.features`).
    """

    key: str
    sample: Sample
    images: list[bytes]
    has_features: bool = False


@dataclass(frozen=True)
class Reject:
    """An input that was left out.

    reason: a kind of fault, or `kind: details`; summaries count by kind.
    shard: the name of the shard that it was to be read from, if from one.
    """

    key: str
    reason: str
    shard: str | None = None

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.split(":")[0]


def sample_key(text: str) -> str:
    """Turn a file name or an id into a key: different texts give different keys.

    Letters, digits, `_`, `-`, `~` and `/` stay, anything else becomes `%` and its UTF-8 bytes in
    hexadecimal: a dot would end the key in a shard, and `__x__/` would hide the sample there.
    A `_` before another `_` and a `/` are changed too where the text begins with them.

    >>> sample_key("photos/St. Ives")
    'photos/St%2E%20Ives'
    """
    key = quote(text, safe="/", errors="surrogatepass").replace(".", "%2E")
    if key.startswith(("__", "/")):
        key = f"%{ord(key[0]):X}{key[1:]}"
    return key


def first_fault(error: ValidationError) -> str:
    """The first of pydantic's complaints, as `path: what is wrong` on one line."""
    fault = error.errors(include_url=False)[0]
    path = ".".join(str(step) for step in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
