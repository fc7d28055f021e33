"""Exact match: an answer is right if it is one of those that count, letter by letter."""

from collections.abc import Sequence

from eval.items import Answer, Item
from eval.metrics.measured import Measured, mean


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`exact match`; white space around does not matter."""
    scores = [
        float(answer.value.strip() in {right.strip() for right in item.answers})
        for item, answer in zip(items, answers, strict=True)
    ]
    return mean("exact match", scores)


def measure_gqa(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, of GQA: case and periods at the end do not matter either.

    GQA's own script compares texts as they are, https://cs.stanford.edu/people/dorarad/gqa,
    eval.py. Its answers are lower case without periods, so that papers write predictions so first:
    https://github.com/haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py.
    """
    scores = [
        float(gqa_normalise(answer.value) in {gqa_normalise(right) for right in item.answers})
        for item, answer in zip(items, answers, strict=True)
    ]
    return mean("accuracy", scores)


def gqa_normalise(text: str) -> str:
    """Lower case, without periods at the end.

    >>> gqa_normalise(" Yes. ")
    'yes'
    """
    return text.strip().rstrip(".").lower()
