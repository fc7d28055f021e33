"""`/v1/chat/completions`."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from vlm.server.answers import Answers, Growth, Wish, joined
from vlm.server.connection import facts_of, unless_gone
from vlm.server.errors import ApiError, ErrorReply, internal_error
from vlm.server.prompts import Prompt
from vlm.server.schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
    Logprobs,
    Usage,
)
from vlm.server.service import Service, sampling_of
from vlm.server.worker import GenerationError, Lease

PATIENCE_S = 10.0  # of a silent stream, before a comment keeps it open
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 404, 408, 413, 429, 500, 503)
}
EVENTS = "text/event-stream"
STREAM = {EVENTS: {"schema": {"type": "string"}}}
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # by caches and by nginx


def chat_routes(service: Service) -> APIRouter:
    """The route, for a model."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**ERRORS, 200: {"content": STREAM}},
    )
    async def chat_completion(
        body: ChatRequest, request: Request, lease: Annotated[Lease, Depends(service.lease)]
    ) -> Response:
        """Continue a conversation about images, whole or as a stream of events."""
        _check(body, service)
        service.take(lease, body.n or 1)
        completion = await unless_gone(request, _start(body, service, lease, request))
        if not body.stream:
            return await unless_gone(request, completion.whole())
        return StreamingResponse(completion.events(), headers=UNBUFFERED, media_type=EVENTS)

    return router


def _check(body: ChatRequest, service: Service) -> None:
    if body.model != service.name:
        raise ApiError(
            404,
            f"there is no model {body.model!r}, only {service.name!r}",
            "model",
            "model_not_found",
        )
    limit = service.config.max_choices
    if (body.n or 1) > limit:
        raise ApiError(400, f"n is {body.n}, allowed: 1 to {limit}", "n")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(
            400, "max_tokens is the old name of max_completion_tokens: send one", "max_tokens"
        )


async def _start(
    body: ChatRequest, service: Service, lease: Lease, request: Request
) -> "_Completion":
    prompt = await service.prompts.read_chat(body.messages)
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    wish = Wish(
        max_new_tokens=service.answer_tokens(
            prompt, body.max_completion_tokens or body.max_tokens, param
        ),
        sampling=sampling_of(
            body.seed,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            logprobs=body.logprobs,
            top_logprobs=body.top_logprobs,
        ),
        stop=body.stops,
        num_choices=body.n or 1,
        with_logprobs=bool(body.logprobs),
        grammar=await service.grammar(body.response_format),
    )
    answers = service.answer(lease, prompt, wish, facts_of(request))
    return _Completion(body, service.name, prompt, answers)


@dataclass
class _Completion:
    """A conversation being continued."""

    body: ChatRequest
    model: str
    prompt: Prompt
    answers: Answers
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def usage(self) -> Usage:
        """The tokens up to now."""
        return Usage.of(self.prompt.num_tokens, self.answers.num_tokens)

    async def whole(self) -> Response:
        """All answers, when they have ended.

        Raises:
            GenerationError: one failed.
        """
        growths: list[list[Growth]] = [[] for _ in range(self.body.n or 1)]
        async for growth in self.answers.growth(PATIENCE_S):
            if growth is not None:
                growths[growth.index].append(growth)
        choices = []
        for index, grown in enumerate(growths):
            text, tokens, finish_reason = joined(grown)
            choices.append(
                Choice(
                    index=index,
                    message=AnswerMessage(content=text),
                    logprobs=Logprobs(content=tokens) if self.body.logprobs else None,
                    finish_reason=finish_reason,
                )
            )
        completion = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage,
        )
        return JSONResponse(completion.model_dump())

    async def events(self) -> AsyncIterator[bytes]:
        """The answers as server-sent events, as they grow."""
        for index in range(self.body.n or 1):
            first = Delta(role="assistant", content="")
            yield self._event([ChunkChoice(index=index, delta=first)])
        try:
            async for growth in self.answers.growth(PATIENCE_S):
                if growth is None:
                    yield b": waiting\n\n"
                    continue
                for choice in self._choices(growth):
                    yield self._event([choice])
        except GenerationError:
            yield _data(internal_error().body.model_dump_json())
            return
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield self._event([], self.usage)
        yield _data("[DONE]")

    def _choices(self, growth: Growth) -> list[ChunkChoice]:
        choices = []
        if growth.text or growth.logprobs:
            choices.append(
                ChunkChoice(
                    index=growth.index,
                    delta=Delta(content=growth.text),
                    logprobs=Logprobs(content=list(growth.logprobs))
                    if self.body.logprobs
                    else None,
                )
            )
        if growth.finish_reason is not None:
            choices.append(
                ChunkChoice(index=growth.index, delta=Delta(), finish_reason=growth.finish_reason)
            )
        return choices

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage,
        )
        return _data(chunk.model_dump_json())


def _data(text: str) -> bytes:
    return f"data: {text}\n\n".encode()
