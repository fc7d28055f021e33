"""Answers of an engine as text, for callers in any number of threads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from vlm.chat.answer import AnswerText
from vlm.chat.grammar import Grammars
from vlm.chat.tokenizer import Tokenizer
from vlm.engine.constraint import Grammar
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.image_cache import ImageCache, image_key
from vlm.engine.request import Event, Request
from vlm.engine.sampling import SamplingConfig
from vlm.errors import UserError
from vlm.inputs import Example
from vlm.model import VisionLanguageModel

# Nobody waits for a step as in a server, so prompts are run in large pieces.
PREFILL_CHUNK_TOKENS = 4096
IMAGE_CACHE_MB = 1024
# Slots are made for this many positions, or twice as many until an answer fits, so that a
# conversation may go on in the slot that it has.
LEAST_POSITIONS = 256


@dataclass
class RunningAnswer:
    """An answer as it is written.

    events: its tokens, with what else was told of them.
    error: why it cannot be completed.
    """

    request_id: int
    text: AnswerText
    events: list[Event] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    error: str | None = None


class Answering:
    """A network with an engine of the size that is needed, and a tokenizer.

    The engine is kept for the next answers, unless those need a larger one.

    images: kept from one call to the next, also by whatever else reads them.
    """

    def __init__(self, network: VisionLanguageModel, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.grammars = Grammars(tokenizer)
        self.images = ImageCache(IMAGE_CACHE_MB * 2**20)
        self._session: _Session | None = None
        self._lock = Lock()

    def engine(self, config: EngineConfig, images: ImageCache | None = None) -> Engine:
        """An engine that ends and never writes what the tokenizer says."""
        return Engine(self.network, self.tokenizer.end_ids, self.never_written(), config, images)

    def never_written(self) -> list[int]:
        """What a reply cannot contain of the output layer: special tokens, and rows of no token."""
        size = self.network.decoder.config.vocab_size
        special = set(self.tokenizer.special_ids) - set(self.tokenizer.end_ids)
        tokenless = range(self.tokenizer.vocab_size, size)
        return [*(token for token in special if token < size), *tokenless]

    def run(
        self,
        prompts: Sequence[Example],
        samplings: Sequence[SamplingConfig],
        max_tokens: int,
        stop: Sequence[str],
        max_slots: int,
        grammar: Grammar | None = None,
    ) -> Iterator[list[RunningAnswer]]:
        """Answer prompts; yields all answers after every step and at the end, the same objects.

        An iterator that is dropped half way cancels what is left.

        Args:
            grammar: what every answer must look like.
        Raises:
            UserError: a prompt and its answer are longer than the model's positions.
        """
        if not prompts:
            return
        images = {id(image): image for prompt in prompts for image in prompt.images}
        keys = {name: image_key(image) for name, image in images.items()}
        requests = [
            Request(
                prompt,
                sampling,
                max_tokens,
                tuple(keys[id(image)] for image in prompt.images),
                grammar,
            )
            for prompt, sampling in zip(prompts, samplings, strict=True)
        ]
        session = self._fitting(prompts, max_tokens, max_slots)
        answers = session.start(requests, [AnswerText(self.tokenizer, stop) for _ in prompts])
        try:
            while any(answer.finish_reason is None for answer in answers):
                session.step()
                failed = [answer.error for answer in answers if answer.error is not None]
                if failed:
                    raise RuntimeError(f"the answer could not be generated: {failed[0]}")
                yield answers
            yield answers  # steps of others may have ended them
        finally:
            session.cancel(answers)

    def _fitting(self, prompts: Sequence[Example], max_tokens: int, max_slots: int) -> "_Session":
        """The session in use if its engine is large enough, else a new one."""
        limit = self.network.decoder.config.max_positions
        needed = max(len(prompt.input_ids) for prompt in prompts) + max_tokens
        num_slots, num_tokens = min(len(prompts), max_slots), LEAST_POSITIONS
        while num_tokens < needed:
            num_tokens *= 2
        with self._lock:
            config = None if self._session is None else self._session.engine.config
            if (
                self._session is None
                or config is None
                or config.slots < num_slots
                or config.max_tokens < min(needed, limit)
            ):
                config = EngineConfig(
                    slots=num_slots,
                    # Nobody waits for the first token of one of many.
                    min_free_slots=(num_slots + 1) // 2,
                    max_tokens=min(num_tokens, limit),
                    prefill_chunk_tokens=PREFILL_CHUNK_TOKENS,
                )
                self._session = _Session(self.engine(config, self.images))
            return self._session


class _Session:
    """An engine and the answers that it writes, stepped by whoever waits for one of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = Lock()
        self._answers: dict[int, RunningAnswer] = {}

    def start(
        self, requests: Sequence[Request], texts: Sequence[AnswerText]
    ) -> list[RunningAnswer]:
        with self._lock:
            answers: list[RunningAnswer] = []
            try:
                for request, text in zip(requests, texts, strict=True):
                    answers.append(RunningAnswer(self.engine.submit(request), text))
            except ValueError as error:
                for answer in answers:
                    self.engine.cancel(answer.request_id)
                raise UserError(f"{error}; shorten the prompt or lower max_tokens") from error
            self._answers.update((answer.request_id, answer) for answer in answers)
            return answers

    def step(self) -> None:
        """Run the engine once and add what it wrote to the answers, whoever waits for them."""
        with self._lock:
            for event in self.engine.step():
                answer = self._answers.get(event.request_id)
                if answer is None:  # it was cancelled
                    continue
                answer.events.append(event)
                if event.finish_reason == "error":
                    answer.error = event.error
                elif event.token is not None and answer.text.add(event.token):
                    answer.finish_reason = "stop"
                elif event.finish_reason in ("stop", "length"):
                    answer.finish_reason = event.finish_reason
                if answer.finish_reason is not None or answer.error is not None:
                    self._end(answer)

    def cancel(self, answers: Sequence[RunningAnswer]) -> None:
        """Give up those that have not ended."""
        with self._lock:
            for answer in answers:
                self._end(answer)

    def _end(self, answer: RunningAnswer) -> None:
        if self._answers.pop(answer.request_id, None) is not None:
            self.engine.cancel(answer.request_id)
