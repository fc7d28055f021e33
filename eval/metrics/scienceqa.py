"""ScienceQA's accuracy by subject, by what a question comes with, and by grade.

Source: P. Lu et al., Learn to Explain (2022), https://arxiv.org/abs/2209.09513, table 4, and
https://github.com/lupantech/ScienceQA, tools/evaluate_acc.py.
"""

from collections.abc import Callable, Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.choices import is_right
from eval.metrics.measured import Array, Measured, divide
from vlm.errors import UserError

# Of an item's facts: subject, grade (`grade7`), hint (a text, may be empty), has_image.
NEEDED = ("subject", "grade", "hint", "has_image")
PARTS: dict[str, Callable[[Item], bool]] = {
    "natural science": lambda item: item.facts["subject"] == "natural science",
    "social science": lambda item: item.facts["subject"] == "social science",
    "language science": lambda item: item.facts["subject"] == "language science",
    "text context": lambda item: bool(item.facts["hint"]),
    "image context": lambda item: bool(item.facts["has_image"]),
    "no context": lambda item: not item.facts["hint"] and not item.facts["has_image"],
    "grades 1-6": lambda item: 1 <= _grade(item) <= 6,
    "grades 7-12": lambda item: 7 <= _grade(item) <= 12,
}


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, and that of each of the paper's eight parts.

    Raises:
        UserError: an item lacks the facts that tell its parts.
    """
    # Right and all; of the whole, then of each part.
    statistics = np.zeros((len(items), 1 + len(PARTS), 2))
    for row, item, answer in zip(statistics, items, answers, strict=True):
        missing = [name for name in NEEDED if name not in item.facts]
        if missing:
            raise UserError(f"item {item.id!r} has no {missing[0]!r}, which ScienceQA's parts need")
        right = is_right(item, answer)
        row[0] = (right, 1)
        for place, belongs in enumerate(PARTS.values(), start=1):
            row[place] = (right, 1) if belongs(item) else (0, 0)

    def figures(sums: Array) -> dict[str, Array]:
        by_part = sums.reshape(*sums.shape[:-1], 1 + len(PARTS), 2)
        return {
            name: divide(by_part[..., place, 0], by_part[..., place, 1])
            for place, name in enumerate(("accuracy", *PARTS))
        }

    return Measured(
        item_scores=statistics[:, 0, 0],
        unit=np.arange(len(items)),
        statistics=statistics.reshape(len(items), -1),
        figures=figures,
    )


def _grade(item: Item) -> int:
    return int(str(item.facts["grade"]).removeprefix("grade"))
