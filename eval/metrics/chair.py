"""CHAIR: objects that a caption names and the picture has not.

Source: A. Rohrbach et al., Object Hallucination in Image Captioning (2018),
https://arxiv.org/abs/1809.02156, section 3. What a picture has is what its annotations name and
what its reference captions do. Words are found by our own table (`chair_words.py`) instead of the
authors' list with `pattern`'s singulars, so figures are near theirs and not the same.
"""

from collections.abc import Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.chair_words import category_of, find_objects
from eval.metrics.measured import Measured, divide
from vlm.errors import UserError


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`CHAIRs`, `CHAIRi`, and the `recall` of objects.

    CHAIRs: captions with any hallucinated object. CHAIRi: of all objects named, those that are
    hallucinated. recall: of the objects that pictures have, those that are named. An item's
    references are its answers, its annotations the fact `objects`, a list of COCO's names.

    Raises:
        UserError: an item has no `objects`, or one that is not COCO's.
    """
    columns = np.zeros((len(items), 6))
    for row, item, answer in zip(columns, items, answers, strict=True):
        present = objects_of(item)
        named = [category for _, category in find_objects(answer.value)]
        wrong = [category for category in named if category not in present]
        row[:] = (
            bool(wrong),
            1,
            len(wrong),
            len(named),
            len(present.intersection(named)),
            len(present),
        )
    return Measured(
        item_scores=1 - columns[:, 0],
        unit=np.arange(len(items)),
        statistics=columns,
        figures=lambda sums: {
            "CHAIRs": divide(sums[..., 0], sums[..., 1]),
            "CHAIRi": divide(sums[..., 2], sums[..., 3]),
            "recall": divide(sums[..., 4], sums[..., 5]),
        },
        lower_is_better=frozenset({"CHAIRs", "CHAIRi"}),
    )


def objects_of(item: Item) -> set[str]:
    """The categories that an item's annotations and reference captions name."""
    if "objects" not in item.facts:
        raise UserError(f"item {item.id!r} has no 'objects', which CHAIR needs")
    present = {category for text in item.answers for _, category in find_objects(text)}
    for name in item.facts["objects"]:
        category = category_of(name)
        if category is None:
            raise UserError(f"item {item.id!r} has the object {name!r}, which COCO has not")
        present.add(category)
    return present
