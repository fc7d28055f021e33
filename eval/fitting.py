"""Prompts that are longer than a model's positions: cut, and said so."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from eval.prompts import Message
from vlm.chat.processor import Processor
from vlm.errors import UserError

Prompt = str | list[Message]


@dataclass(frozen=True)
class Fitting:
    """Makes prompts fit into a model, losing what is furthest from the answer.

    Of a chat, examples and earlier turns go first, one with its answer at a time, then the
    beginning of the last message's words. A raw text loses its beginning, as in
    lm-evaluation-harness.

    max_tokens: of a prompt and what follows it.
    """

    processor: Processor
    max_tokens: int

    def fit(self, prompt: Prompt, num_answer_tokens: int) -> tuple[Prompt, bool]:
        """Return a prompt that leaves room for its answer, and whether it was cut.

        Raises:
            UserError: there is no room for a prompt.
        """
        limit = self.max_tokens - num_answer_tokens
        if self.num_tokens(prompt) <= limit:
            return prompt, False
        if isinstance(prompt, str):
            return self._last_of_text(prompt, limit), True
        chat = prompt
        while (shorter := _without_first_turn(chat)) is not None:
            chat = shorter
            if self.num_tokens(chat) <= limit:
                return chat, True
        return self._last_of_chat(chat, limit), True

    def num_tokens(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, with what begins the answer."""
        if isinstance(prompt, str):
            return len(self.processor.tokenizer.encode_start(prompt))
        return self.processor.num_tokens(prompt, add_generation_prompt=True)

    def num_answer_tokens(self, answers: Sequence[str]) -> int:
        """The most tokens that any of some answers has."""
        return max(len(self.processor.tokenizer.encode_start(answer)) for answer in answers)

    def _last_of_text(self, text: str, limit: int) -> str:
        # Cutting more never makes more tokens but by a few, where a word is cut: hence the loop.
        start = bisect_left(
            range(len(text)), True, key=lambda i: self.num_tokens(text[i:]) <= limit
        )
        while start < len(text) and self.num_tokens(text[start:]) > limit:
            start += 1
        if start == len(text):
            raise UserError(
                f"the model has {self.max_tokens} positions, and an answer leaves room for {limit} "
                "tokens of a prompt: lower decoding.max_tokens"
            )
        return text[start:]

    def _last_of_chat(self, chat: list[Message], limit: int) -> list[Message]:
        *before, last = chat
        parts = last["content"] if not isinstance(last["content"], str) else None
        words = last["content"] if parts is None else parts[-1]["text"]
        kept = [] if parts is None else parts[:-1]

        def with_words(text: str) -> list[Message]:
            return [*before, {**last, "content": [*kept, {"type": "text", "text": text}]}]

        def fits(start: int) -> bool:
            return self.num_tokens(with_words(words[start:])) <= limit

        start = bisect_left(range(len(words)), True, key=fits)
        while start < len(words) and not fits(start):
            start += 1
        if start == len(words):
            raise UserError(
                f"the model has {self.max_tokens} positions, and an answer leaves room for {limit} "
                "tokens of a chat: lower decoding.max_tokens, or shorten the system message"
            )
        return with_words(words[start:])


def _without_first_turn(chat: list[Message]) -> list[Message] | None:
    """A chat without its first question and answer; None where there is only the last question."""
    first = 1 if chat[0]["role"] == "system" else 0
    return [*chat[:first], *chat[first + 2 :]] if len(chat) > first + 2 else None
