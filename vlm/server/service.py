"""What every route of a server shares."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from vlm.chat.grammar import Grammars
from vlm.chat.processor import Processor
from vlm.engine.constraint import Grammar
from vlm.engine.sampling import SamplingConfig
from vlm.errors import UserError
from vlm.safety.policy import Safety
from vlm.server.answers import Answers, Wish
from vlm.server.config import ServerConfig
from vlm.server.errors import ApiError
from vlm.server.facts import RequestFacts
from vlm.server.images import ImageSource
from vlm.server.metrics import Metrics
from vlm.server.prompts import Prompt, PromptReader
from vlm.server.schema import ResponseFormat
from vlm.server.worker import Engine, EngineWorker, GenerationError, Lease, QueueFullError

MAX_RETRY_AFTER_S = 30


class Service:
    """A model being served.

    name: what requests call it.
    max_context: tokens of a prompt and its answer together.
    draining: no new requests are taken; those in flight are finished.
    """

    def __init__(
        self,
        processor: Processor,
        engine: Engine,
        max_context: int,
        config: ServerConfig,
        name: str,
        source: ImageSource | None = None,
    ) -> None:
        self.name = config.name or name
        self.config = config
        self.max_context = max_context
        self.created = int(time.time())
        self.draining = False
        self.processor = processor
        self.worker = EngineWorker(engine, config.max_open)
        self.metrics = Metrics(self.worker)
        self._safety = None if config.safety is None else Safety(config.safety)
        self.prompts = PromptReader(processor, config, source or ImageSource(config), self._safety)
        self._grammars = Grammars(processor.tokenizer)
        self._answer_s = 1.0  # how long an answer takes, roughly

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.worker.is_alive and not self.draining

    def start(self) -> None:
        """Start the engine's thread."""
        self.worker.start()

    def stop(self) -> None:
        """End all threads."""
        self.worker.stop()
        self.prompts.close()

    async def lease(self) -> AsyncIterator[Lease]:
        """A request's part of the engine, given back however the request ends."""
        lease = Lease(self.worker)
        start = time.perf_counter()
        try:
            yield lease
        finally:
            lease.close()
            if lease.has_requests:
                self._answer_s += 0.1 * (time.perf_counter() - start - self._answer_s)

    def take(self, lease: Lease, num_places: int) -> None:
        """Reserve places for a request's answers.

        Raises:
            ApiError: 429 if the queue is full, 503 if nothing is generated any more.
        """
        try:
            lease.take(num_places)
        except QueueFullError:
            raise self.queue_full() from None
        except GenerationError as error:
            raise ApiError(503, "the server cannot generate answers: restart it") from error

    def queue_full(self) -> ApiError:
        """What a client is told that finds no place."""
        config = self.config
        seconds = round(self._answer_s * max(1, config.queue) / config.slots)
        return ApiError(
            429,
            f"{config.slots} answers are being written and {config.queue} may wait: try later",
            code="queue_full",
            retry_after_s=max(1, min(seconds, MAX_RETRY_AFTER_S)),
        )

    def answer_tokens(self, prompt: Prompt, wanted: int | None, param: str) -> int:
        """How long an answer may become.

        Raises:
            ApiError: prompt and answer exceed the context, or the answer the server's limit.
        """
        room = self.max_context - prompt.num_tokens
        if room < 1 or (wanted is not None and wanted > room):
            answer = f" and {wanted} for the answer are" if wanted else " leave none for an answer:"
            raise ApiError(
                400,
                f"{prompt.num_tokens} tokens of prompt{answer} more than the model's context of "
                f"{self.max_context} tokens",
                "messages" if room < 1 else param,
                "context_length_exceeded",
            )
        limit = self.config.max_tokens or room
        if wanted is not None and wanted > limit:
            raise ApiError(400, f"{param} is {wanted}, allowed: {limit}", param)
        return min(wanted or self.config.default_max_tokens, room, limit)

    async def grammar(self, form: ResponseFormat | None) -> Grammar | None:
        """Compile what a client wants answers to look like, beside the event loop.

        Raises:
            ApiError: its schema cannot be enforced, or no schema can: an extra is missing.
        """
        schema = None if form is None else form.schema_of_answers
        if schema is None:
            return None
        try:
            return await asyncio.to_thread(self._grammars.compile, schema)
        except UserError as error:
            raise ApiError(400, f"response_format: {error}", "response_format") from error

    def answer(self, lease: Lease, prompt: Prompt, wish: Wish, facts: RequestFacts) -> Answers:
        """Start generating."""
        facts.prompt_tokens = prompt.num_tokens
        facts.images = len(prompt.image_keys)
        return Answers(self.processor.tokenizer, lease, prompt, wish, facts, self._safety)


def sampling_of(seed: int | None, **wishes: Any) -> SamplingConfig:
    """Sampling as a client asks for it: what is None it leaves open; nothing said is greedy."""
    said = {name: value for name, value in wishes.items() if value is not None}
    return SamplingConfig(seed=None if seed is None else seed % 2**64, **said)
