"""Open answers as a judge grades them; MT-Bench's figures.

Source: L. Zheng et al., Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena (2023),
https://arxiv.org/abs/2306.05685, section 3.1, single answer grading.
"""

from collections.abc import Sequence

import numpy as np

from eval.items import MISSING, Answer, Item
from eval.judge import HIGHEST, LOWEST, current_grader
from eval.metrics.measured import Array, Measured, divide

RATING, FIRST, LATER = "rating", "first turn", "later turns"


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`rating`, the mean grade (1..10) of all turns, `first turn`, `later turns`, `ungraded`, the
    share of turns that the judge gave no grade, and `answered`, of those that have any words.

    An item without an answer has the lowest grade. Without a judge, `answered` alone.
    """
    answered = np.zeros((len(items), 2))
    for row, item, answer in zip(answered, items, answers, strict=True):
        turns = (answer.text, *answer.follow_ups)
        row[:] = (sum(bool(turn.strip()) for turn in turns), 1 + len(item.follow_ups))
    grader = current_grader()
    if grader is None:
        return Measured(
            item_scores=answered[:, 0] / answered[:, 1],
            unit=np.arange(len(items)),
            statistics=answered,
            figures=lambda sums: {"answered": divide(sums[..., 0], sums[..., 1])},
        )
    there = [index for index, answer in enumerate(answers) if answer is not MISSING]
    told = iter(grader.grade([items[i] for i in there], [answers[i] for i in there]))
    grades = np.zeros((len(items), 4))
    for row, item, answer in zip(grades, items, answers, strict=True):
        lowest = [float(LOWEST)] * (1 + len(item.follow_ups))
        first, *later = lowest if answer is MISSING else next(told)
        for column, given in ((0, [first]), (2, later)):
            known = [grade for grade in given if grade is not None]
            row[column : column + 2] = (sum(known), len(known))
    sums, counts = grades[:, ::2].sum(axis=1), grades[:, 1::2].sum(axis=1)
    return Measured(
        item_scores=np.where(counts == 0, 0, sums / np.maximum(counts, 1)) / HIGHEST,
        unit=np.arange(len(items)),
        statistics=np.concatenate([grades, answered], axis=1),
        figures=_figures,
        plain=frozenset({RATING, FIRST, LATER}),
        lower_is_better=frozenset({"ungraded"}),
    )


def _figures(sums: Array) -> dict[str, Array]:
    first, num_first, later, num_later, answered, turns = np.moveaxis(sums, -1, 0)
    return {
        RATING: divide(first + later, num_first + num_later),
        FIRST: divide(first, num_first),
        LATER: divide(later, num_later),
        "ungraded": 1 - divide(num_first + num_later, turns),
        "answered": divide(answered, turns),
    }
