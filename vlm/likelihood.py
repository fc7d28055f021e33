"""How likely texts are: as answers of a chat, as what follows a text, or by themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.chat.tokenizer import Tokenizer
from vlm.engine.image_cache import ImageCache
from vlm.engine.scoring import Choices, Likelihood, Scorer
from vlm.errors import UserError
from vlm.inputs import Example
from vlm.model import VisionLanguageModel


class Likelihoods:
    """A scorer of token ids, and the processor that makes them of texts.

    Args:
        images: kept images of the network.
    """

    def __init__(
        self, network: VisionLanguageModel, processor: Processor, images: ImageCache
    ) -> None:
        self.processor = processor
        self.scorer = Scorer(network, images)

    def answers(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image | TiledImage],
        answers: Sequence[str],
    ) -> Choices:
        """Answers to a chat. Their words are tokenised by themselves, as in training, and stand
        where the template begins an answer; what ends the turn is not part of them.

        Raises:
            UserError: as in `Processor.encode`.
        """
        prompt = self.processor.encode(messages, images, add_generation_prompt=True)
        encode = self.processor.encode_answer
        return Choices(prompt, tuple(tuple(encode(messages, a)) for a in answers))

    def continuations(self, context: str, continuations: Sequence[str]) -> Choices:
        """What follows a text, without a chat template; see `split_continuation`."""
        tokenizer = self.processor.tokenizer
        prompt, _ = split_continuation(tokenizer, context, "")
        following = (split_continuation(tokenizer, context, c)[1] for c in continuations)
        return Choices(_text_prompt(prompt), tuple(map(tuple, following)))

    def score(self, requests: Sequence[Choices], batch_size: int) -> list[list[Likelihood]]:
        """Return the likelihood of each continuation of each request.

        Raises:
            UserError: a continuation has no tokens, or is too long with its prompt.
        """
        try:
            return self.scorer.score(requests, batch_size)
        except ValueError as error:
            raise UserError(f"this cannot be scored: {error}") from error

    def rolling(
        self, texts: Sequence[str], batch_size: int, window_tokens: int | None
    ) -> list[Likelihood]:
        """Return the likelihood of whole texts, each token after all that fits before it.

        Args:
            window_tokens: read at a time, at most; None: the model's positions.
        Raises:
            UserError: a text has no tokens, or the window is too long.
        """
        limit = self.scorer.network.decoder.config.max_positions
        if window_tokens is not None and not 1 <= window_tokens <= limit:
            raise UserError(f"window_tokens is {window_tokens}; the model has 1 to {limit}")
        tokenizer = self.processor.tokenizer
        requests, num_windows = [], []
        for text in texts:
            start, ids = split_continuation(tokenizer, "", text)
            windows = list(rolling_windows(ids, start[0], window_tokens or limit))
            requests += [Choices(_text_prompt(read), (tuple(told),)) for read, told in windows]
            num_windows.append(len(windows))
            if not windows:
                raise UserError("a text to be scored has no tokens")
        parts = iter(self.score(requests, batch_size))
        told = [[next(parts)[0] for _ in range(count)] for count in num_windows]
        return [
            Likelihood(
                tuple(logprob for part in of_text for logprob in part.token_logprobs),
                tuple(greedy for part in of_text for greedy in part.greedy),
            )
            for of_text in told
        ]


def split_continuation(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Return the ids of a context and those of what follows it, as lm-eval's harness splits them.

    Whitespace at the end of the context counts as the continuation's beginning, since words carry
    the space before them. The two are tokenised together, and the continuation has what comes
    behind as many tokens as the context has alone. Both start with the token that starts a text,
    if there is one; an empty context is that token, or else the end of a turn.
    https://github.com/EleutherAI/lm-evaluation-harness, `TemplateLM._encode_pair`.
    """
    stripped = context.rstrip()
    whole = tokenizer.encode_start(context + continuation)
    if not stripped:
        num_start = 0 if tokenizer.bos_id is None else 1
        start = tokenizer.eot_id if tokenizer.bos_id is None else tokenizer.bos_id
        return [start], whole[num_start:]
    alone = tokenizer.encode_start(stripped)
    return alone, whole[len(alone) :]


def rolling_windows(
    ids: Sequence[int], start: int, window_tokens: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text so that each token is told once, by lm-eval's rule.

    Windows follow each other without overlap, and the last reaches back as far as fits.

    Args:
        start: what stands before the text.
        window_tokens: read at a time: those before the told ones, and these without the last.
    Yields:
        the ids before, at least one, and the ids that are told.
    """
    before = [start, *ids]  # token n is told after before[: n + 1]
    for first in range(0, len(ids), window_tokens):
        end = min(first + window_tokens, len(ids))
        oldest = max(0, end - window_tokens)
        yield before[oldest : first + 1], list(ids[first:end])


def _text_prompt(ids: Sequence[int]) -> Example:
    return Example(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool), ())
