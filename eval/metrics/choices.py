"""Multiple choice: the share of right choices, chosen by what was written or by likelihood."""

from collections.abc import Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Array, Measured, divide, units_of
from vlm.errors import UserError


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, and where answers were written, how many were `unreadable`: no choice, and wrong.

    An answer may also be right by its words, where an item has no choices.
    """
    pairs = list(zip(items, answers, strict=True))
    scores = np.array([is_right(i, a) for i, a in pairs], dtype=float)
    unread = np.array([bool(i.choices) and a.choice is None for i, a in pairs])
    columns = np.stack([scores, unread, np.ones_like(scores)], axis=1)

    def figures(sums: Array) -> dict[str, Array]:
        return {
            "accuracy": divide(sums[..., 0], sums[..., 2]),
            "unreadable": divide(sums[..., 1], sums[..., 2]),
        }

    written = any(not answer.logprobs for answer in answers)
    return Measured(
        item_scores=scores,
        unit=np.arange(len(items)),
        statistics=columns,
        figures=figures if written else lambda sums: {"accuracy": figures(sums)["accuracy"]},
        lower_is_better=frozenset({"unreadable"}),
    )


def measure_likelihood(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, and what it would be if lengths counted otherwise.

    `accuracy` is that of the choices made, as the benchmark says. `by sum` takes the choice with
    the highest log probability, `by token` and `by character` divide it by the choice's tokens or
    characters first (lm-evaluation-harness calls the last one acc_norm). First among equals.

    Raises:
        UserError: choices were written, not scored.
    """
    columns = np.zeros((len(items), 5))
    for row, item, answer in zip(columns, items, answers, strict=True):
        if len(answer.logprobs) != len(item.choices) or not item.choices:
            raise UserError(
                f"item {item.id!r} has {len(item.choices)} choices and {len(answer.logprobs)} log "
                "probabilities: this metric needs ask: choose"
            )
        logprobs = np.array(answer.logprobs)
        lengths = (1, np.array(answer.num_tokens), np.array([len(c) for c in item.choices]))
        chosen = [int(np.argmax(logprobs / np.maximum(length, 1))) for length in lengths]
        row[:] = (is_right(item, answer), *(place in item.correct for place in chosen), 1)

    names = ("accuracy", "accuracy, by sum", "accuracy, by token", "accuracy, by character")
    return Measured(
        item_scores=columns[:, 0],
        unit=np.arange(len(items)),
        statistics=columns,
        figures=lambda sums: {
            name: divide(sums[..., column], sums[..., 4]) for column, name in enumerate(names)
        },
    )


def measure_circular(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`circular accuracy` of MMBench: a question counts if all its rotated copies are right.

    `vanilla accuracy` is that of the first copy of each, which is as published.
    Source: Y. Liu et al., MMBench (2023), https://arxiv.org/abs/2307.06281, section 4.1.
    """
    scores = np.array([is_right(i, a) for i, a in zip(items, answers, strict=True)], dtype=float)
    unit = units_of(items)
    _, first = np.unique(unit, return_index=True)
    all_right = np.ones(len(first))
    np.minimum.at(all_right, unit, scores)
    return Measured(
        item_scores=scores,
        unit=unit,
        statistics=np.stack([all_right, scores[first], np.ones(len(first))], axis=1),
        figures=lambda sums: {
            "circular accuracy": divide(sums[..., 0], sums[..., 2]),
            "vanilla accuracy": divide(sums[..., 1], sums[..., 2]),
        },
    )


def measure_consistency(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy`, and `consistency` of NLVR: sentences that are judged right of all their pictures.

    Items of a group have the same sentence.
    Source: A. Suhr et al., A Corpus of Natural Language for Visual Reasoning (2017), and NLVR2's
    evaluation, https://github.com/lil-lab/nlvr, nlvr2/eval/metrics.py.
    """
    scores = np.array([is_right(i, a) for i, a in zip(items, answers, strict=True)], dtype=float)
    unit = units_of(items)
    num_units = int(unit.max(initial=-1)) + 1
    right, copies = np.bincount(unit, scores, num_units), np.bincount(unit, minlength=num_units)
    return Measured(
        item_scores=scores,
        unit=unit,
        statistics=np.stack([right, copies, right == copies, np.ones(num_units)], axis=1),
        figures=lambda sums: {
            "accuracy": divide(sums[..., 0], sums[..., 1]),
            "consistency": divide(sums[..., 2], sums[..., 3]),
        },
    )


def is_right(item: Item, answer: Answer) -> bool:
    """Whether a right choice was made; without choices, whether its words are, but for case."""
    if item.choices:
        return answer.choice in item.correct
    return answer.value.strip().lower() in {right.strip().lower() for right in item.answers}
