"""Relaxed accuracy: numbers may be 5 % off; ChartQA's metric.

Source: N. Methani et al., PlotQA (2020), https://arxiv.org/abs/1909.00997, section 5.1, as
https://github.com/google-research/pix2struct, pix2struct/metrics.py computes it: what ends in `%`
is divided by 100, an answer of 0 and texts must be the same but for case.
"""

import math
from collections.abc import Sequence

from eval.items import Answer, Item
from eval.metrics.measured import Measured, mean

TOLERANCE = 0.05


def is_near(prediction: str, answer: str) -> bool:
    """Whether a prediction is within 5 % of a number, or the same text."""
    given, wanted = _to_number(prediction), _to_number(answer)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= TOLERANCE
    return prediction.strip().lower() == answer.strip().lower()


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`relaxed accuracy`; ChartQA's headline takes human and augmented questions together."""
    scores = [
        float(any(is_near(answer.value, right) for right in item.answers))
        for item, answer in zip(items, answers, strict=True)
    ]
    return mean("relaxed accuracy", scores)


def _to_number(text: str) -> float | None:
    stripped = text.strip()
    percent = stripped.endswith("%")
    try:
        number = float(stripped.rstrip("%"))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return number / 100 if percent else number
