"""Yes or no: precision, recall, F1 and accuracy of "yes", and how often it was said.

Source: Y. Li et al., Evaluating Object Hallucination in Large Vision-Language Models (POPE, 2023),
https://arxiv.org/abs/2305.10355, and https://github.com/RUCAIBox/POPE, evaluate.py. That script
takes everything that is not "no" for "yes": the rule `pope`. By another rule an answer may be
neither, and then is wrong and no "yes".
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Array, Measured, divide
from vlm.errors import UserError

# Columns of the statistics, of each type.
_TRUE, _SAID, _HIT, _RIGHT, _ALL = range(5)


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`F1`, `precision`, `recall`, `accuracy`, `yes rate`.

    Where there are several types (POPE: adversarial, popular, random), `F1, mean of types` is what
    LLaVA's papers give as POPE.
    """
    types = sorted({item.type for item in items})
    statistics = np.zeros((len(items), len(types), 5))
    for index, (item, answer) in enumerate(zip(items, answers, strict=True)):
        label = right_answer(item)
        given = answer.value.strip().lower()
        statistics[index, types.index(item.type)] = (
            label == "yes",
            given == "yes",
            given == label == "yes",
            given == label,
            1,
        )

    def figures(sums: Array) -> Mapping[str, Array]:
        by_type = sums.reshape(*sums.shape[:-1], len(types), 5)
        found = _figures(by_type.sum(axis=-2))
        if len(types) > 1:
            found["F1, mean of types"] = _mean_of_known(_figures(by_type)["F1"])
        return found

    return Measured(
        item_scores=statistics[:, :, _RIGHT].sum(axis=1),
        unit=np.arange(len(items)),
        statistics=statistics.reshape(len(items), -1),
        figures=figures,
    )


def right_answer(item: Item) -> str:
    """`yes` or `no`, as the item has it.

    Raises:
        UserError: it has neither.
    """
    right = item.answers[0].strip().lower() if item.answers else ""
    if right not in ("yes", "no"):
        raise UserError(f"item {item.id!r} has the answer {right!r}, needed: yes or no")
    return right


def _figures(sums: Array) -> dict[str, Array]:
    precision = divide(sums[..., _HIT], sums[..., _SAID])
    recall = divide(sums[..., _HIT], sums[..., _TRUE])
    return {
        # 2 PR / (P + R), written so that it is 0 and not undefined where nothing was hit.
        "F1": divide(2 * sums[..., _HIT], sums[..., _SAID] + sums[..., _TRUE]),
        "precision": precision,
        "recall": recall,
        "accuracy": divide(sums[..., _RIGHT], sums[..., _ALL]),
        "yes rate": divide(sums[..., _SAID], sums[..., _ALL]),
    }


def _mean_of_known(values: Array) -> Array:
    """The mean over the last axis of what is a number."""
    known = ~np.isnan(values)
    return divide(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))
