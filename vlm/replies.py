"""What an answer of the API is: how it is asked for, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from vlm.answering import RunningAnswer
from vlm.engine.sampling import SamplingConfig
from vlm.errors import UserError
from vlm.inputs import Example
from vlm.safety.answer import HeldAnswer
from vlm.safety.policy import Safety

FinishReason = Literal["stop", "length", "content_filter"]


class AnswerConfig(SamplingConfig):
    """How an answer is generated.

    max_tokens: at most this many new tokens.
    stop: the answer ends before the first of these strings.
    json_schema: the answer is JSON that this JSON schema describes, unless `max_tokens` or `stop`
        cut it off. Needs the extra `schema`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: PositiveInt = 128
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    json_schema: dict[str, Any] | None = None


class Usage(BaseModel):
    """Text tokens of a request; image tokens are not text."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, its log probability, and the likeliest tokens with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Reply:
    """An answer.

    finish_reason: "length" when `max_tokens` cut it off, "content_filter" when the model's content
        policy withheld it.

    logprobs: of every token that was generated, if the setting `logprobs` asked for them.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()


def answer_config(settings: Mapping[str, Any]) -> AnswerConfig:
    """Read the keywords of a call.

    Raises:
        UserError: there is no such setting, or it has a wrong value.
    """
    unknown = set(settings) - set(AnswerConfig.model_fields)
    if unknown:
        raise UserError(
            f"unknown setting {sorted(unknown)[0]!r}; "
            f"there are {', '.join(AnswerConfig.model_fields)}"
        )
    try:
        return AnswerConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"setting {name} is {first['input']!r}: {first['msg']}") from None


def whole_reply(prompt: Example, answer: RunningAnswer, strip: bool) -> Reply:
    """The reply of an answer that has ended."""
    return Reply(
        answer.text.text.strip() if strip else answer.text.text,
        "stop" if answer.finish_reason == "stop" else "length",
        Usage(
            prompt_tokens=len(prompt.input_ids),
            completion_tokens=len(answer.text.token_ids),
        ),
        tuple(
            TokenLogprob(event.token, event.logprob, event.top_logprobs)
            for event in answer.events
            if event.token is not None and event.logprob is not None
        ),
    )


def checked_reply(reply: Reply, safety: Safety) -> Reply:
    """The reply, or the notice of a policy that withholds it."""
    release = HeldAnswer(safety).add(reply.text, final=True)
    if not release.blocked:
        return reply
    return Reply(release.text, "content_filter", reply.usage)
