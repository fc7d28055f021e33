"""MME's score: accuracy of questions plus accuracy of pictures, summed over tasks.

Each picture has two questions. A task's score is 100 times the share of questions that are right
plus 100 times the share of pictures with both right, so 200 at most; perception is the sum of ten
tasks, cognition that of four. An answer that is neither yes nor no (the rule `mme`) is wrong.
Source: C. Fu et al., MME (2023), https://arxiv.org/abs/2306.13394, section 2.2, and eval_tool's
calculation.py, https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Array, Measured, divide, units_of
from eval.metrics.yes_no import right_answer
from vlm.errors import UserError

TASKS = {
    "perception": (
        "existence count position color posters celebrity scene landmark artwork OCR"
    ).split(),
    "cognition": (
        "commonsense_reasoning numerical_calculation text_translation code_reasoning"
    ).split(),
}
ALL_TASKS = [task for tasks in TASKS.values() for task in tasks]


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`perception`, `cognition`, the score of each task, and the `accuracy` of all questions.

    An item's type is its task, its group its picture.

    Raises:
        UserError: a type is no task of MME's.
    """
    for item in items:
        if item.type not in ALL_TASKS:
            raise UserError(
                f"item {item.id!r} has the type {item.type!r}; MME's tasks are "
                f"{', '.join(ALL_TASKS)}"
            )
    scores = np.array(
        [
            float(answer.value.strip().lower() == right_answer(item))
            for item, answer in zip(items, answers, strict=True)
        ]
    )
    unit = units_of(items)
    # Of each picture and task: right, questions, both right, pictures.
    statistics = np.zeros((int(unit.max(initial=-1)) + 1, len(ALL_TASKS), 4))
    for item, number, score in zip(items, unit, scores, strict=True):
        statistics[number, ALL_TASKS.index(item.type), :2] += (score, 1)
    right, questions = statistics[..., 0], statistics[..., 1]
    statistics[..., 2] = (questions > 0) & (right == questions)
    statistics[..., 3] = questions > 0
    return Measured(
        item_scores=scores,
        unit=unit,
        statistics=statistics.reshape(len(statistics), -1),
        figures=_figures,
        plain=frozenset((*TASKS, *ALL_TASKS)),
    )


def _figures(sums: Array) -> Mapping[str, Array]:
    by_task = sums.reshape(*sums.shape[:-1], len(ALL_TASKS), 4)
    scores = 100 * (
        divide(by_task[..., 0], by_task[..., 1]) + divide(by_task[..., 2], by_task[..., 3])
    )
    found = {}
    for name, tasks in TASKS.items():
        places = [ALL_TASKS.index(task) for task in tasks]
        known = ~np.isnan(scores[..., places])
        total = np.where(known, scores[..., places], 0).sum(axis=-1)
        found[name] = np.where(known.any(axis=-1), total, np.nan)
    found |= {task: scores[..., place] for place, task in enumerate(ALL_TASKS)}
    totals = by_task.sum(axis=-2)
    found["accuracy"] = divide(totals[..., 0], totals[..., 1])
    return found
