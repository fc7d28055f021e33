"""GSM8K: whether the number at the end is right."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Measured, divide

NAMES = ("accuracy", "strict match", "flexible match")
# Source: https://github.com/openai/grade-school-math, dataset.py.
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
# Source: lm-evaluation-harness, tasks/gsm8k, filter "flexible-extract".
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, `strict match`, `flexible match`.

    accuracy: the number that the benchmark's rule reads equals the right one; 18.00 is 18.
    strict match: what stands after the first `####` is the right one, letter by letter but for
        commas and a full stop at the end: 18.00 is not 18.
    flexible match: the last thing like a number is, but for `$` too. lm-evaluation-harness reports
        the latter two.
    """
    columns = np.ones((len(items), 4))
    for row, item, answer in zip(columns, items, answers, strict=True):
        marked = _MARKED.search(answer.text)
        found = _FLEXIBLE.findall(answer.text)
        row[:3] = (
            any(_same_number(answer.value, right) for right in item.answers),
            marked is not None and _plain(marked[1]) in item.answers,
            bool(found) and _plain(found[-1]) in item.answers,
        )
    return Measured(
        item_scores=columns[:, 0],
        unit=np.arange(len(items)),
        statistics=columns,
        figures=lambda sums: {
            name: divide(sums[..., place], sums[..., 3]) for place, name in enumerate(NAMES)
        },
    )


def _plain(number: str) -> str:
    return re.sub("[$,]", "", number).removesuffix(".")


def _same_number(given: str, right: str) -> bool:
    try:
        return Decimal(given) == Decimal(right)
    except InvalidOperation:
        return False
