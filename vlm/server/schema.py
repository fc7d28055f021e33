"""Requests and answers of the API: OpenAI's chat completions, and our own short forms.

What a client may send is said in full: an unknown or unsupported parameter is refused, not
ignored. `user` and `detail` are hints that change nothing.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, model_validator

MAX_CHOICES = 128  # OpenAI's; a server's own limit is lower
MAX_STOPS = 4
# Each costs tokens; so many that reading them would hold up others fit no context.
MAX_MESSAGES = 4096
MAX_PARTS = 4096
MAX_TOP_LOGPROBS = 20

DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ"
    "/pLvAAAAAElFTkSuQmCC"
)
EXAMPLES: list[dict[str, Any]] = [
    {
        "model": "finetune",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": DOT}},
                    {"type": "text", "text": "What colour is it?"},
                ],
            }
        ],
        "max_tokens": 16,
    },
    {
        "model": "finetune",
        "messages": [{"role": "user", "content": "Tell me about shapes."}],
        "temperature": 0.7,
        "seed": 1,
        "stream": True,
    },
]


class _Received(BaseModel):
    """What a client sends: exact types, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(_Received):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Received):
    """Where an image is: a data URI, or what the server allows (`http:`, `https:`, `file:`)."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Received):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _form(value: Any) -> str:
    return "as_text" if isinstance(value, str) else "as_parts"


def _stop_form(value: Any) -> str:
    return "as_text" if isinstance(value, str) else "as_list"


Content = Annotated[
    Annotated[str, Tag("as_text")]
    | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS), Tag("as_parts")],
    Discriminator(_form),
]
StopText = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopText, Tag("as_text")]
    | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("as_list")],
    Discriminator(_stop_form),
]


class ChatMessage(_Received):
    """What one side says; only the user shows images. `developer` is another name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: None = None

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return list(self.content)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.parts):
            raise ValueError(f"an image in a message of the {self.role}: only the user shows them")
        return self


class StreamOptions(_Received):
    """include_usage: a last event with the number of tokens."""

    include_usage: bool = False


class JsonSchema(_Received):
    """A JSON schema. It is always followed to the letter, whatever `strict` says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    content: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Received):
    """What answers look like: text, JSON of a schema, or any JSON object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        """The JSON schema; None is text."""
        if self.json_schema is not None:
            return self.json_schema.content
        return {"type": "object"} if self.type == "json_object" else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("the type `json_schema`, and no other, comes with a json_schema")
        return self


class ChatRequest(_Received):
    """A conversation to be continued.

    temperature: 0, the default, takes the likeliest token each time.
    seed: the same seed gives the same answer.
    n: how many answers; each draws with a seed of its own.
    top_k, min_p, repetition_penalty: not OpenAI's; see `vlm.engine.sampling.SamplingConfig`.
    """

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})  # type: ignore[dict-item]

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: float | None = Field(default=None, ge=0, le=0, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=0, le=0, allow_inf_nan=False)
    top_k: PositiveInt | None = None
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Usage(BaseModel):
    """Text tokens; images are not text."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Self:
        """With their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


FinishReason = Literal["stop", "length", "content_filter"]


class TopLogprob(BaseModel):
    """A token that could have been. bytes: None where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The tokens of the answer."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer.

    finish_reason: "length" when the number of tokens cut it off, "content_filter" when the server's
        content policy withheld it.
    """

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answers, whole."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What an answer grew by."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The growth of one answer."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A model that is served. max_model_len: tokens of its context."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vlm"
    max_model_len: int


class ModelList(BaseModel):
    """All models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ShortAnswer(BaseModel):
    """An answer to `/v1/ask` or `/v1/caption`."""

    text: str
    finish_reason: FinishReason
    model: str
    usage: Usage


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "ready"]
