"""Choosing the next token from logits.

Axes: `V` vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

MAX_TOP_LOGPROBS = 20


class SamplingConfig(BaseModel):
    """How tokens are drawn. Cuts apply in the order top_k, top_p, min_p.

    temperature: 0 takes the most likely token.
    top_p: only the most likely tokens that together hold this probability are drawn from
        (nucleus sampling, https://arxiv.org/abs/1904.09751).
    top_k: only so many of the most likely tokens are drawn from; None: all.
    min_p: only tokens at least this many times as likely as the likeliest are drawn from
        (https://arxiv.org/abs/2407.01082).
    repetition_penalty: positive logits of tokens that the prompt or the answer has are divided by
        this, negative ones multiplied (https://arxiv.org/abs/1909.05858, section 4.1).
    seed: None draws anew each time.
    stop_ids: tokens that end the answer, beside the model's own.
    logprobs: whether each token's log probability is told.
    top_logprobs: of how many of the likeliest tokens it is told too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: PositiveInt | None = None
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: PositiveFloat = Field(default=1.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)


class Sampler:
    """Draws one answer's tokens, which depend on its seed and on no other answer."""

    def __init__(self, config: SamplingConfig, prompt_ids: Sequence[int]) -> None:
        self.config = config
        self.generator = torch.Generator()
        if config.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(config.seed)
        self._seen = set(prompt_ids) if config.repetition_penalty != 1 else None

    @property
    def takes_likeliest(self) -> bool:
        """Whether the token is always that of the largest logit."""
        return self.config.temperature == 0 and self._seen is None

    def __call__(self, logits: Tensor) -> int:
        """Return a token of (V,) logits."""
        logits = logits.float().cpu()
        if self._seen is not None:
            logits = self._penalise(logits, self._seen)
        if self.config.temperature == 0:
            token = int(logits.argmax())
        else:
            probabilities = token_probabilities(logits, self.config)
            token = int(torch.multinomial(probabilities, 1, generator=self.generator))
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalise(self, logits: Tensor, seen: set[int]) -> Tensor:
        index = torch.tensor([token for token in seen if token < len(logits)], dtype=torch.int64)
        found, penalty = logits[index], self.config.repetition_penalty
        return logits.index_copy(0, index, torch.where(found > 0, found / penalty, found * penalty))


def token_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Return what tokens are drawn by, (V,) float32, in proportion; `temperature` is above 0."""
    probabilities = (logits / config.temperature).softmax(dim=-1)
    if config.top_k is not None and config.top_k < len(logits):
        kept = probabilities.topk(config.top_k).indices
        probabilities = torch.zeros_like(probabilities).scatter(0, kept, probabilities[kept])
        probabilities = probabilities / probabilities.sum()
    if config.top_p < 1:
        probabilities = keep_nucleus(probabilities, config.top_p)
    if config.min_p > 0:
        least = config.min_p * probabilities.max()
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities


def keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches `top_p`; (..., V)."""
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of the tokens ahead of each
    return torch.zeros_like(probabilities).scatter(-1, index, ordered * (before < top_p))


def log_probabilities(
    logits: Tensor, token: int, num_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the log probability of a token of (V,) logits, and the likeliest tokens with theirs.

    Tokens that cannot be written, of logit -inf, are not among the likeliest.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return float(logprobs[token]), tuple(pair for pair in pairs if math.isfinite(pair[1]))
