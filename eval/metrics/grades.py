"""Grades that a judge gave, by capability; MM-Vet's score.

Source: W. Yu et al., MM-Vet (2023), https://arxiv.org/abs/2308.02490, and
https://github.com/yuweihao/MM-Vet, mm-vet_evaluator.py: a capability's score is the mean grade of
the questions that need it, alone or with others, and so for each set of capabilities. Several runs
of the judge are averaged.
"""

from collections.abc import Sequence

import numpy as np

from eval.items import MISSING, Answer, Item
from eval.metrics.measured import Array, Measured, divide
from vlm.errors import UserError


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`total`, each capability, and each set of capabilities (`ocr + math`).

    An item's fact `capability` lists what it needs. An answer is the judge's grade, 0..1, those of
    further runs are its follow-ups.

    Raises:
        UserError: an answer is no grade: what a model wrote must be graded first.
    """
    grades = np.array([_grade(item, answer) for item, answer in zip(items, answers, strict=True)])
    needed = [tuple(sorted(item.facts["capability"])) for item in items]
    single = _by_frequency([name for names in needed for name in names])
    sets = _by_frequency([" + ".join(names) for names in needed if len(names) > 1])
    belongs = np.array(
        [
            [1, *(name in names for name in single), *(" + ".join(names) == s for s in sets)]
            for names in needed
        ],
        dtype=np.float64,
    )
    labels = ("total", *single, *sets)

    def figures(sums: Array) -> dict[str, Array]:
        points, counts = sums[..., : len(labels)], sums[..., len(labels) :]
        means = divide(points, counts)
        return {label: means[..., place] for place, label in enumerate(labels)}

    return Measured(
        item_scores=grades,
        unit=np.arange(len(items)),
        statistics=np.concatenate([belongs * grades[:, None], belongs], axis=1),
        figures=figures,
    )


def _grade(item: Item, answer: Answer) -> float:
    """The mean grade of all runs."""
    if answer is MISSING:
        return 0.0
    given = []
    for text in (answer.text, *answer.follow_ups):
        try:
            grade = float(text)
        except ValueError:
            grade = -1.0
        if not 0 <= grade <= 1:
            raise UserError(
                f"the answer to {item.id!r} is {text[:40]!r}, needed: a judge's grade from 0 to 1"
            )
        given.append(grade)
    return sum(given) / len(given)


def _by_frequency(names: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (-names.count(name), name))
