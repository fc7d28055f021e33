"""Answers as they grow: from the engine's tokens to text and log probabilities."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from vlm.chat.answer import AnswerText
from vlm.chat.tokenizer import Tokenizer
from vlm.engine.constraint import Grammar
from vlm.engine.request import Event, Request
from vlm.engine.sampling import SamplingConfig
from vlm.safety.answer import HeldAnswer
from vlm.safety.classifier import ClassifierError
from vlm.safety.policy import Safety
from vlm.server.facts import RequestFacts
from vlm.server.prompts import Prompt
from vlm.server.schema import FinishReason, TokenLogprob, TopLogprob
from vlm.server.worker import GenerationError, Lease

logger = logging.getLogger(__name__)

SEEDS = 2**64


@dataclass(frozen=True)
class Wish:
    """What is wanted of the answers to a prompt.

    sampling: of the first; the seeds of others follow its seed.
    with_logprobs: whether clients get log probabilities.
    grammar: what every answer looks like; None: anything.
    """

    max_new_tokens: int
    sampling: SamplingConfig
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    with_logprobs: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Growth:
    """What one of the answers grew by: certain text, tokens, its end."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


class Answers:
    """The answers to one prompt; what they took is noted in `facts`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        lease: Lease,
        prompt: Prompt,
        wish: Wish,
        facts: RequestFacts,
        safety: Safety | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._facts = facts
        self._lease = lease
        self._wish = wish
        self._texts = [AnswerText(tokenizer, wish.stop) for _ in range(wish.num_choices)]
        self._held: list[list[TokenLogprob]] = [[] for _ in self._texts]
        self._unchecked: list[HeldAnswer] = []
        if safety is not None and safety.checks_answers:
            self._unchecked = [HeldAnswer(safety) for _ in self._texts]
        for index in range(wish.num_choices):
            lease.submit(
                Request(
                    prompt=prompt.example,
                    sampling=_reseeded(wish.sampling, index),
                    max_new_tokens=wish.max_new_tokens,
                    image_keys=prompt.image_keys,
                    grammar=wish.grammar,
                )
            )

    @property
    def num_tokens(self) -> int:
        """Tokens generated up to now, all answers together."""
        return self._facts.completion_tokens

    async def growth(self, patience_s: float) -> AsyncIterator[Growth | None]:
        """Yield what the answers grow by until all have ended; None when nothing came in time.

        Raises:
            GenerationError: one failed, or could not be checked.
        """
        while not self._lease.has_ended:
            found = await self._lease.next_event(patience_s)
            grown = None if found is None else self._grow(*found)
            if grown is not None and self._unchecked:
                grown = await self._check(grown)
            if found is None or grown is not None:
                yield grown

    async def _check(self, grown: Growth) -> Growth | None:
        """What of it may be shown, once the content policy has seen it."""
        index, unchecked = grown.index, self._unchecked[grown.index]
        final = grown.finish_reason is not None
        try:
            release = await asyncio.to_thread(unchecked.add, grown.text, final)
        except ClassifierError as error:
            logger.exception("an answer could not be checked")
            raise GenerationError(str(error)) from error
        if release.blocked:
            self._lease.stop(index)
            return Growth(index, release.text, finish_reason="content_filter")
        held = self._held[index]
        held[:0] = grown.logprobs
        if not release.text and not final:
            return None
        # Tokens tell the text, so they are held for as long as any of it is.
        logprobs = tuple(held) if unchecked.is_empty else ()
        if logprobs:
            held.clear()
        return Growth(index, release.text, logprobs, grown.finish_reason)

    def _grow(self, index: int, event: Event) -> Growth | None:
        text, held = self._texts[index], self._held[index]
        finish_reason: FinishReason | None = None
        if event.finish_reason is not None:
            finish_reason = "length" if event.finish_reason == "length" else "stop"
        if event.token is not None:
            self._facts.add_token()
            if self._wish.with_logprobs and event.token not in self._tokenizer.end_ids:
                held.append(self._logprob(event))
            if text.add(event.token):
                finish_reason = "stop"
                self._lease.stop(index)
        piece = "".join(text.new_pieces(final=finish_reason is not None))
        if not piece and finish_reason is None:
            return None  # a part of a character or, perhaps, of a stop string
        logprobs = tuple(held)
        held.clear()
        return Growth(index, piece, logprobs, finish_reason)

    def _logprob(self, event: Event) -> TokenLogprob:
        assert event.token is not None and event.logprob is not None
        chosen = self._named(event.token, event.logprob)
        others = [self._named(*pair) for pair in event.top_logprobs]
        return TokenLogprob(**chosen.model_dump(), top_logprobs=others)

    def _named(self, token: int, logprob: float) -> TopLogprob:
        text = self._tokenizer.decode([token], skip_special=False)
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        # JSON has no infinity; OpenAI's API writes this number for what cannot be.
        return TopLogprob(
            token=text,
            logprob=max(logprob, -9999.0),
            bytes=list(text.encode()) if whole else None,
        )


def _reseeded(sampling: SamplingConfig, index: int) -> SamplingConfig:
    if index == 0 or sampling.seed is None:
        return sampling
    return sampling.model_copy(update={"seed": (sampling.seed + index) % SEEDS})


def joined(growths: Sequence[Growth]) -> tuple[str, list[TokenLogprob], FinishReason]:
    """One answer's growths as its text, its tokens and how it ended.

    Of one that was withheld, the notice is the text.
    """
    last = growths[-1].finish_reason
    assert last is not None
    if last == "content_filter":
        return growths[-1].text, [], last
    tokens = [token for growth in growths for token in growth.logprobs]
    return "".join(growth.text for growth in growths), tokens, last
