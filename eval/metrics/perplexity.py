"""Perplexity: how surprised a model is by a text, for each token, word and byte of it."""

import math
from collections.abc import Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Measured, divide
from vlm.errors import UserError

NAMES = ("perplexity", "word perplexity", "byte perplexity")


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`perplexity`, `word perplexity`, `byte perplexity`, `bits per byte`.

    exp(-log probability / count), of all texts together. Tokens are the model's own, so that only
    the figures of words (parted by white space) and bytes (UTF-8) compare models with different
    tokenizers. What a benchmark counts otherwise is in an item's facts, `words` and `bytes`. An
    item's score is the mean probability (geometric) of its tokens.

    Raises:
        UserError: an answer has no log probability of its text.
    """
    columns = np.zeros((len(items), 4))
    for row, item, answer in zip(columns, items, answers, strict=True):
        if len(answer.logprobs) != 1 or len(answer.num_tokens) != 1:
            raise UserError(
                f"item {item.id!r} has {len(answer.logprobs)} log probabilities, perplexity needs "
                "that of its text: ask: perplexity"
            )
        text = item.question
        num_words = item.facts.get("words", len(text.split()))
        num_bytes = item.facts.get("bytes", len(text.encode("utf-8")))
        row[:] = (-answer.logprobs[0], answer.num_tokens[0], num_words, num_bytes)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        per_unit = [divide(sums[..., 0], sums[..., column]) for column in (1, 2, 3)]
        found = {name: np.exp(each) for name, each in zip(NAMES, per_unit, strict=True)}
        return {**found, "bits per byte": per_unit[2] / math.log(2)}

    every = frozenset((*NAMES, "bits per byte"))
    return Measured(
        item_scores=np.exp(-columns[:, 0] / np.maximum(columns[:, 1], 1)),
        unit=np.arange(len(items)),
        statistics=columns,
        figures=figures,
        plain=every,
        lower_is_better=every,
    )
