"""Choosing the next token from logits.

Axes: `B` batch, `V` vocabulary.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class SamplingConfig(BaseModel):
    """How tokens are drawn.

    temperature: 0 takes the most likely token.
    top_p: only the most likely tokens that together hold this probability are drawn from
        (nucleus sampling, https://arxiv.org/abs/1904.09751).
    seed: None draws anew each time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**64)


class Sampler:
    """Draws one token a row; a row's draws depend on the seed and never on its batch-mates."""

    def __init__(self, config: SamplingConfig, num_rows: int) -> None:
        self.config = config
        self.generators = [torch.Generator() for _ in range(num_rows)]
        for generator in self.generators:
            if config.seed is None:
                generator.seed()
            else:
                generator.manual_seed(config.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return (B,) int64 token ids from (B, V) logits."""
        if self.config.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = (logits.float().cpu() / self.config.temperature).softmax(dim=-1)
        if self.config.top_p < 1:
            probabilities = keep_nucleus(probabilities, self.config.top_p)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, self.generators, strict=True)
        ]
        return torch.cat(drawn).to(logits.device)


def keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches `top_p`; (B, V)."""
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of the tokens ahead of each
    return torch.zeros_like(probabilities).scatter(-1, index, ordered * (before < top_p))
