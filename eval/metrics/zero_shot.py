"""Zero-shot classification and retrieval: how early the right one is found.

Predictions are texts, as eval/zero_shot.py writes them.
"""

import re
from collections.abc import Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Measured, divide
from vlm.errors import UserError

TOP = (1, 5)
RECALL_AT = (1, 5, 10)
_PLACE = re.compile(r"\d+")


def measure_classification(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`top-1` and `top-5` accuracy.

    An answer has the names of classes, a line each, best first.
    """
    statistics = np.zeros((len(items), len(TOP) + 1))
    for row, item, answer in zip(statistics, items, answers, strict=True):
        rights = {item.choices[place] for place in item.correct}
        named = answer.text.split("\n")
        row[:] = (*(not rights.isdisjoint(named[:k]) for k in TOP), 1)
    return Measured(
        item_scores=statistics[:, 0],
        unit=np.arange(len(items)),
        statistics=statistics,
        figures=lambda sums: {
            f"top-{k}": divide(sums[..., column], sums[..., -1]) for column, k in enumerate(TOP)
        },
    )


def measure_retrieval(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`image to text R@1`, `R@5`, `R@10`, and `text to image`.

    Image to text: pictures for which any of their captions is among the first k. Text to image:
    captions whose picture is. An answer has the place of the first own caption, then, for each of
    the captions, that of the picture.

    Raises:
        UserError: an answer has not as many places.
    """
    width = len(RECALL_AT)
    statistics = np.zeros((len(items), 2 * width + 2))
    for row, item, answer in zip(statistics, items, answers, strict=True):
        places = [int(place) for place in _PLACE.findall(answer.text)]
        if len(places) != 1 + len(item.answers):
            raise UserError(
                f"the prediction for {item.id!r} is {answer.text!r}, needed: the place of a "
                f"caption, and {len(item.answers)} of the picture"
            )
        by_picture = [places[0] <= k for k in RECALL_AT]
        by_caption = [sum(place <= k for place in places[1:]) for k in RECALL_AT]
        row[:] = (*by_picture, *by_caption, 1, len(item.answers))
    names = ("image to text", "text to image")
    return Measured(
        item_scores=statistics[:, 0],
        unit=np.arange(len(items)),
        statistics=statistics,
        figures=lambda sums: {
            f"{name} R@{k}": divide(sums[..., side * width + column], sums[..., side - 2])
            for side, name in enumerate(names)
            for column, k in enumerate(RECALL_AT)
        },
    )
